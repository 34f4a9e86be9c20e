"""Measure the CPU time of the tabletop suites by part: `python benchmarks/tabletop.py [CELL]`."""

import sys
import time

import numpy as np

from apt_bench.envs import rendering
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.envs.tabletop.layouts import scene_spec
from apt_bench.envs.tabletop.scene_model import build, compile_scene
from apt_bench.suites import load_suite

EPISODES, STEPS, FRAMES = 10, 40, 15


def main(cell: str = "so") -> None:
    env, specs = TabletopEnv(), load_suite("rigid_pick_place").select([cell], episodes=EPISODES)
    env.reset(specs[0], ("agentview",))  # imports, GL
    robot = specs[0].args.get("robot", "panda")
    times: dict[str, list[float]] = {}

    def clock(name, work):
        began = time.process_time()
        work()
        times.setdefault(name, []).append(1000 * (time.process_time() - began))

    still = np.array([[0, 0, 0.1, 0, 0, 0, -1.0]] * STEPS)
    for k, spec in enumerate(specs):
        args = dict(spec.args)
        clock("draw a scene", lambda a=args, s=spec, k=k: scene_spec(a, s.key.task, k, 99))
        layout = scene_spec(args, spec.key.task, k, 99)
        clock("write its MJCF", lambda s=layout: build(s, robot))
        clock("write and compile it", lambda s=layout: compile_scene(s, robot))
        clock("reset with settling, no image", lambda s=spec: env.reset(s))
        clock(f"{STEPS} control steps", lambda: env.step_chunk(still, render=False))
        clock("load into GL, first image", env.frame)
        for size in (64, 128, 256):
            for _ in range(FRAMES):
                clock(f"image {size} x {size}", lambda n=size: env.frame(size=n))
    print(f"{cell}, {rendering.describe().renderer}; CPU milliseconds: median (least)")
    for name, values in times.items():
        print(f"{name:32}{np.median(values):8.1f} ({min(values):.1f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
