"""Measure the speed of rollouts: LIBERO's plain loop and apt-bench in one process, as Markdown tables.

    python benchmarks/rollout.py                    # every section, about 15 minutes on 2 cores
    python benchmarks/rollout.py --sections loop    # only the plain loop against apt-bench

Sections: `loop` (plain LIBERO and apt-bench at execute horizons 1, 5 and 10, time per part, ratio to the lower bound),
`memory` (resident memory over 200 episodes on many scenes), `ray` (Ray's share, and 1 against 2 workers).
Both loops run on one thread; "CPU" is this process's own time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
from fixed_actions import moves  # noqa: E402

from apt_bench.envs import rendering  # noqa: E402
from apt_bench.envs.base import AGENTVIEW, WRIST  # noqa: E402
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE  # noqa: E402
from apt_bench.suites import EpisodeSpec, load_suite  # noqa: E402

CAMERAS = (AGENTVIEW, WRIST)
HORIZONS = (1, 5, 10)


@dataclasses.dataclass
class Clock:
    """Wall and CPU seconds of a block."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Clock:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print Markdown."""
    header = list(header)
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---" if i == 0 else "---:" for i in range(len(header))) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


class PlainLibero:
    """The loop that openpi and others run: LIBERO's environment, two cameras at every step, hard resets."""

    def __init__(self, spec: EpisodeSpec):
        from libero.libero.envs import OffScreenRenderEnv

        from apt_bench.envs.libero.tasks import bddl_path, load_inits

        place = (spec.args["benchmark"], spec.args["task"])
        self.spec, self.init = spec, load_inits(*place)[spec.key.init]
        with redirect_stdout(sys.stderr):
            self.env: Any = OffScreenRenderEnv(
                bddl_file_name=str(bddl_path(*place)), camera_heights=256, camera_widths=256
            )

    def episode(self, actions: np.ndarray) -> tuple[Clock, Clock]:
        """Clocks of the reset (with settling) and of the steps."""
        with Clock() as reset, redirect_stdout(sys.stderr):
            self.env.seed(self.spec.env_seed)
            self.env.reset()
            self.env.set_init_state(self.init)
            for _ in range(self.spec.settle_steps):
                self.env.step([0.0] * 6 + [-1.0])
        with Clock() as steps:
            for action in actions:
                obs, _, _, _ = self.env.step(action)
                for key in ("agentview_image", "robot0_eye_in_hand_image"):
                    np.ascontiguousarray(obs[key][::-1, ::-1])
        return reset, steps


def fast_episode(env: Any, spec: EpisodeSpec, actions: np.ndarray, horizon: int) -> tuple[Clock, Clock]:
    """The same episode in apt-bench's loop, with one pair of images per decision."""
    with Clock() as reset:
        env.reset(spec, CAMERAS)
    with Clock() as steps:
        for start in range(0, len(actions), horizon):
            env.step_chunk(actions[start : start + horizon], render=start + horizon < len(actions))
    return reset, steps


def floor(env: Any, spec: EpisodeSpec, steps: int) -> tuple[float, float]:
    """CPU seconds of one control step of nothing but mj_step, and of drawing the complete scene for both cameras."""
    import mujoco

    env.reset(spec, CAMERAS)
    simulation = env.simulation
    with Clock() as physics:
        for _ in range(steps * 25):
            mujoco.mj_step(simulation.model, simulation.data)
    ids = [simulation.sim.model.camera_name2id(n) for n in ("agentview", "robot0_eye_in_hand")]
    renderer = simulation.renderer
    with Clock() as render:
        for _ in range(5):
            for camera in ids:
                renderer.camera.fixedcamid = camera
                mujoco.mjv_updateScene(
                    simulation.model, simulation.data, renderer.option, renderer.perturb, renderer.camera,
                    mujoco.mjtCatBit.mjCAT_ALL, renderer.scene,
                )  # fmt: skip
                renderer.canvas.draw(renderer.scene, IMAGE_SIZE)
    return physics.cpu / steps, render.cpu / 5


def loop_section(spec: EpisodeSpec, steps: int, repeats: int) -> None:
    """Plain LIBERO against apt-bench on one episode."""
    from apt_bench.envs.libero import LiberoEnv

    actions = moves(steps)
    spec = dataclasses.replace(spec, max_steps=steps + 1)
    rows, parts = [], []
    with Clock() as make:
        plain = PlainLibero(spec)
    runs = [plain.episode(actions) for _ in range(repeats)]
    reset, run = (min(clocks, key=lambda c: c.cpu) for clocks in zip(*runs, strict=True))
    plain.env.close()
    total = (reset.wall + run.wall, reset.cpu + run.cpu)
    rows.append(
        (
            "plain LIBERO",
            f"{make.cpu:.1f}",
            f"{1000 * reset.cpu:.0f}",
            f"{steps / run.cpu:.1f}",
            f"{total[0]:.1f}",
            f"{total[1]:.1f}",
            "1.0",
        )
    )
    env = LiberoEnv()
    with Clock() as make:
        env.reset(spec, CAMERAS)
    physics_floor, render_floor = floor(env, spec, 40)
    for horizon in HORIZONS:
        best = None
        for _ in range(repeats + 1):
            clocks = fast_episode(env, spec, actions, horizon)
            if best is None or clocks[0].cpu + clocks[1].cpu < best[0].cpu + best[1].cpu:
                best, seconds = clocks, dict(env.outcome().seconds)
        assert best is not None
        reset, run = best
        wall, cpu = reset.wall + run.wall, reset.cpu + run.cpu
        rows.append(
            (
                f"apt-bench, horizon {horizon}",
                f"{make.cpu:.1f}",
                f"{1000 * reset.cpu:.0f}",
                f"{steps / run.cpu:.1f}",
                f"{wall:.1f}",
                f"{cpu:.1f}",
                f"{total[1] / cpu:.1f}",
            )
        )
        decisions = -(-steps // horizon)
        bound = (steps + spec.settle_steps) * physics_floor + decisions * render_floor
        inside = sum(seconds.values())
        parts.append(
            (
                horizon,
                *(
                    f"{seconds[part]:.2f} ({100 * seconds[part] / wall:.0f}%)"
                    for part in ("reset", "physics", "render")
                ),
                f"{wall - inside:.2f} ({100 * (wall - inside) / wall:.0f}%)",
                f"{bound:.2f}",
                f"{cpu / bound:.2f}x",
            )
        )
    with Clock() as clock:
        for seed in range(20):
            env.simulation.reset(plain.init, seed)
    env.close()
    print(f"### {spec.key.cell} / {spec.key.task}, {steps} control steps, both cameras 256x256\n")
    table(
        (
            "loop",
            "first reset, CPU s",
            "reset + settling, CPU ms",
            "control steps / CPU s",
            "episode, wall s",
            "episode, CPU s",
            "speed-up (CPU)",
        ),
        rows,
    )
    print(f"Engine reset alone (without the ten settle steps): {1000 * clock.cpu / 20:.0f} ms CPU.\n")
    print(
        "Seconds per part (wall), and the floor: bare `mj_step` for every control step and the renders at "
        "decisions (CPU).\n"
    )
    table(("horizon", "reset", "physics", "render", "rest", "floor, CPU s", "episode / floor"), parts)


def rss_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_section(episodes: int) -> None:
    """Short episodes with one image each, going through many scenes (more models than the cache holds)."""
    from apt_bench.envs.libero import LiberoEnv

    specs = load_suite("libero_pro").select(cells=["object_pos", "goal_task"], episodes=3)
    order = [specs[i % len(specs)] for i in range(episodes)]
    env, rows = LiberoEnv(), []
    for number, spec in enumerate(order, 1):
        env.reset(spec, CAMERAS)
        env.step_chunk(moves(3))
        if number in (25, 50, 100, 150, episodes):
            rows.append((number, f"{rss_mb():.0f}"))
    env.close()
    print(f"### Memory of one worker, {len({s.group for s in specs})} scenes in turn\n")
    table(("episodes", "resident MB"), rows)


def ray_section(specs: list[EpisodeSpec], steps: int) -> None:
    """Ray's share of an episode, and the speed-up by a second worker. Each worker's first episode is left out, because
    it includes the start of Ray and the compilation of the first model."""
    from apt_bench.policies.registry import PolicyRef
    from apt_bench.rollout.cluster import ray_session
    from apt_bench.rollout.engine import PolicyActor, RayPool
    from apt_bench.rollout.schedule import Schedule
    from apt_bench.rollout.workers import Settings

    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    ref = PolicyRef("images", "image_policy:ImagePolicy")
    settings = Settings(policy=ref, policy_spec=ref.load().spec, execute=10, path=here)
    rows, rates = [], []
    for workers in (1, 2):
        chosen = [dataclasses.replace(s, max_steps=steps) for s in specs[: 6 * workers]]
        with ray_session(None, workers, len(chosen)) as count:
            policy = PolicyActor(ref, count, here)
            stream = RayPool(count, [settings], [[policy]], 600).stream(Schedule(chosen, 1), lambda: False)
            began, records = 0.0, []
            for number, (_, result) in enumerate(stream, 1):
                assert result.record is not None, result.error or result.fatal
                if number == workers:
                    began = time.perf_counter()
                elif number > workers:
                    records.append(result.record)
            wall = time.perf_counter() - began
        episode = sum(sum(r.seconds.values()) for r in records) / len(records)
        wait = sum(r.seconds["wait"] for r in records) / len(records)
        between = wall * workers / len(records) - episode
        rates.append(len(records) / wall)
        rows.append(
            (
                workers,
                len(records),
                f"{60 * rates[-1]:.1f}",
                f"{rates[-1] / rates[0]:.2f}x",
                f"{episode:.2f}",
                f"{100 * wait / episode:.1f}%",
                f"{between:.2f}",
            )
        )
    print(f"### Ray, {steps} control steps, horizon 10, a policy actor that gets both images\n")
    table(
        (
            "workers",
            "episodes",
            "episodes / min",
            "scaling",
            "episode, s",
            "waiting for Ray",
            "between episodes, s",
        ),
        rows,
    )


def main() -> None:
    sections: dict[str, Callable[[argparse.Namespace], None]] = {
        "loop": lambda a: loop_section(
            load_suite("libero_pro").select(cells=[a.cell], tasks=[a.task], episodes=1)[0], a.steps, a.repeats
        ),
        "memory": lambda a: memory_section(a.episodes),
        "ray": lambda a: ray_section(
            load_suite("libero_pro").select(cells=[a.cell], tasks=[a.task], episodes=12), a.steps
        ),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", default=",".join(sections), help="comma-separated: %(default)s")
    parser.add_argument("--cell", default="spatial_task")
    parser.add_argument("--task", default="0")
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--repeats", type=int, default=1, help="episodes per loop; the fastest counts")
    parser.add_argument("--episodes", type=int, default=200, help="of the memory section")
    arguments = parser.parse_args()
    os.environ["MUJOCO_GL"] = rendering.choose_backend()
    import libero.libero.envs  # noqa: F401  (as its users do, before apt-bench imports it without GL)

    backend = rendering.describe()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {backend.name}, {backend.renderer}\n"
    )
    for name in arguments.sections.split(","):
        if name not in sections:
            parser.error(f"unknown section '{name}'; known: {', '.join(sections)}")
        sections[name](arguments)


if __name__ == "__main__":
    main()
