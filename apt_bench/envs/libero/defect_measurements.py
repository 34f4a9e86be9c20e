"""Measure the known defects that decide whether a LIBERO-PRO task can be solved, or is solved without any work.

The measurements are made in the settled scene, so that anyone can check `known_defects.py`. A task in which an object
was moved is measured beside the unperturbed task of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apt_bench.envs.libero.env import LiberoEnv
from apt_bench.envs.libero.scene import LiberoScene
from apt_bench.envs.libero.validation import premise
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.runs.solvability import Proof
from apt_bench.suites import EpisodeSpec, Suite, load_suite

Figures = dict[str, Any]


def proofs(suite: Suite, specs: Sequence[EpisodeSpec]) -> dict[tuple[str, str], Proof]:
    """Measurements by (cell, task) and flag, from the first episode that has the flag. About 2 s per task."""
    found: dict[tuple[str, str], dict[str, Figures]] = {}
    env = LiberoEnv()
    try:
        for spec in specs:
            mine = found.setdefault((spec.key.cell, spec.key.task), {})
            for flag in spec.flags:
                if flag in _MEASURES and flag not in mine:
                    mine[flag] = _MEASURES[flag](env, suite, spec)
    finally:
        env.close()
    return {place: figures for place, figures in found.items() if figures}


def _opens_away(env: LiberoEnv, suite: Suite, spec: EpisodeSpec) -> Figures:
    """Angle by which the microwave's opening is turned away from the robot, here and in the unperturbed task."""
    env.reset(spec)
    here = _opening_angle(env.scene, "microwave_1")
    base, _, cell = str(suite.cell(spec.key.cell).control).partition(":")
    env.reset(load_suite(base).select([cell], [spec.key.task], episodes=1)[0])
    there = _opening_angle(env.scene, "microwave_1")
    return {"degrees between the opening and the robot's base": here, "in the unperturbed task": there}


def _opening_angle(scene: LiberoScene, name: str) -> int:
    """Angle in degrees, seen from above, between the directions to an object's closed door and to the robot's base."""
    model, data = scene.model, mujoco.MjData(scene.model)
    obj = scene.objects[name]
    joint = obj.joints[0]
    data.qpos[:] = scene.data.qpos
    data.qpos[model.jnt_qposadr[joint]] = 0.0
    mujoco.mj_kinematics(model, data)
    door = model.geom_bodyid == model.jnt_bodyid[joint]
    body = np.isin(model.geom_bodyid, obj.bodies) & ~door
    out = data.geom_xpos[door].mean(0) - data.geom_xpos[body].mean(0)
    robot = data.xpos[scene.robot.body_root] - data.geom_xpos[body].mean(0)
    cosine = out[:2] @ robot[:2] / np.linalg.norm(out[:2]) / np.linalg.norm(robot[:2])
    return round(float(np.rad2deg(np.arccos(cosine))))


def _degenerate(env: LiberoEnv, suite: Suite, spec: EpisodeSpec) -> Figures:
    """Position of the knob, and LIBERO's own ranges for off and on."""
    env.reset(spec)
    scene, stove = env.scene, env.scene.goal[0].args[0]
    address = scene.model.jnt_qposadr[scene.objects[stove].joints[0]]
    assert env.simulation is not None
    ranges = env.simulation.env.get_object(stove).object_properties["articulation"]
    return {
        "knob at the start (rad)": round(float(scene.data.qpos[address]), 4),
        "off below (rad)": max(ranges["default_turnoff_ranges"]),
        "on from (rad)": min(ranges["default_turnon_ranges"]),
    }


def _wrong_goal(env: LiberoEnv, suite: Suite, spec: EpisodeSpec) -> Figures:
    """Positions of the objects of the scored object's category. LIBERO calls +y right."""
    env.reset(spec)
    scene = env.scene
    scored = scene.objects[scene.goal[0].args[0]]
    same = [o for o in scene.objects.values() if o.category == scored.category]
    y = {f"{o.name} y (m)": round(float(scene.data.xpos[o.body][1]), 2) for o in same}
    return {"sentence": spec.prompt, "scored": scored.name, **y}


def _ejected(env: LiberoEnv, suite: Suite, spec: EpisodeSpec) -> Figures:
    """Displacement of the goal object while the scene settles."""
    found = [text for kind, text in premise(env, spec) if kind == "ejected_goal_object"]
    return {f"init {spec.key.init}": "; ".join(found)}


_MEASURES: dict[str, Callable[[LiberoEnv, Suite, EpisodeSpec], Figures]] = {
    "opens_away": _opens_away,
    "degenerate": _degenerate,
    "wrong_goal": _wrong_goal,
    "ejected_goal_object": _ejected,
}
