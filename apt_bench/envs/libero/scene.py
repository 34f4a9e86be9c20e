"""LIBERO's ground truth behind the `Scene` protocol: names, ids and predicates, read and never written."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np

from apt_bench.envs.base import Atom, Region, Robot, SceneObject
from apt_bench.envs.mj import mujoco


class LiberoScene:
    """A live `Scene` of one LIBERO environment (LIBERO's `ControlEnv`, or the robosuite environment inside it).

    Ids stay valid until the environment is built or hard-reset again; make a new scene then. Reading it changes
    neither the physics, nor the random state, nor what the next frame shows.
    """

    def __init__(self, env: Any, base_goal: tuple[Atom, ...] = ()) -> None:
        self._contact_masks: dict[str, np.ndarray] = {}
        self._env = env if hasattr(env, "object_states_dict") else env.env
        inner = self._env
        self.model: Any = inner.sim.model._model
        self.data: Any = inner.sim.data._data
        model = self.model
        problem = inner.parsed_problem
        categories = {
            name: kind
            for group in (problem["objects"], problem["fixtures"])
            for kind, names in group.items()
            for name in names
        }
        bodies = {**inner.objects_dict, **inner.fixtures_dict}
        self.objects: Mapping[str, SceneObject] = {
            name: _scene_object(model, name, categories[name], thing.root_body)
            for name, thing in bodies.items()
        }
        surface = next((n for n in categories if n not in bodies), "")
        self.regions: Mapping[str, Region] = {
            name: Region(
                name=name,
                parent=getattr(site, "parent_name", None) or surface,
                site=_id(model, mujoco.mjtObj.mjOBJ_SITE, name),
            )
            for name, site in inner.object_sites_dict.items()
        }
        self.robot: Robot = _robot(model, inner.robots[0])
        self.goal: tuple[Atom, ...] = goal_atoms(problem["goal_state"])
        self.base_goal = base_goal
        self.targets: tuple[str, ...] = tuple(problem["obj_of_interest"])

    def holds(self, atom: Atom) -> bool:
        """Whether the predicate is true now, by LIBERO's own function. False for names that the scene lacks."""
        states = self._env.object_states_dict
        if any(name not in states for name in atom.args):
            return False
        # LIBERO's turnon/turnoff also decide whether the burner is drawn; asking must not change the picture.
        marks = getattr(self._env.get_object(atom.args[0]), "object_properties", {}).get("vis_site_names")
        before = copy(marks)
        self._env.check_contact = self._check_contact  # the same answer; robosuite's compares names, 0.3 ms
        try:
            return bool(self._env._eval_predicate([atom.predicate, *atom.args]))
        finally:
            del self._env.check_contact
            if marks:
                marks.update(before)

    def _check_contact(self, one: Any, other: Any) -> bool:
        pairs = self.data.contact.geom
        a, b = self._contact_geoms(one)[pairs], self._contact_geoms(other)[pairs]
        return bool(((a[:, 0] & b[:, 1]) | (a[:, 1] & b[:, 0])).any())

    def _contact_geoms(self, thing: Any) -> np.ndarray:
        if thing.name not in self._contact_masks:
            mask = np.zeros(self.model.ngeom + 1, dtype=bool)
            mask[[_id(self.model, mujoco.mjtObj.mjOBJ_GEOM, g) for g in thing.contact_geoms]] = True
            mask[-1] = False
            self._contact_masks[thing.name] = mask
        return self._contact_masks[thing.name]


def goal_atoms(goal_state: list[list[str]]) -> tuple[Atom, ...]:
    """The atoms of a parsed BDDL goal (`parsed_problem["goal_state"]`)."""
    return tuple(Atom(predicate.lower(), tuple(args)) for predicate, *args in goal_state)


def _scene_object(model: Any, name: str, category: str, root_body: str) -> SceneObject:
    root = _id(model, mujoco.mjtObj.mjOBJ_BODY, root_body)
    bodies = subtree(model, root)
    joints = [j for j in range(model.njnt) if model.jnt_bodyid[j] in bodies]
    free = [j for j in joints if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE]
    return SceneObject(
        name=name,
        category=category,
        body=root,
        bodies=bodies,
        geoms=tuple(int(g) for g in np.flatnonzero(np.isin(model.geom_bodyid, bodies))),
        movable=bool(free),
        joints=tuple(j for j in joints if j not in free),
    )


def subtree(model: Any, root: int) -> tuple[int, ...]:
    """Ids of a body and everything attached below it (MuJoCo numbers a parent before its children)."""
    found = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.add(body)
    return tuple(sorted(found))


def _robot(model: Any, robot: Any) -> Robot:
    geom = mujoco.mjtObj.mjOBJ_GEOM
    parts = robot.gripper.important_geoms
    joints = [_id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in robot.gripper.joints]
    return Robot(
        grip_site=int(robot.eef_site_id),
        finger_geoms=(
            frozenset(_id(model, geom, g) for g in parts["left_finger"]),
            frozenset(_id(model, geom, g) for g in parts["right_finger"]),
        ),
        finger_qpos=tuple(int(model.jnt_qposadr[j]) for j in joints),
        max_opening=float(np.ptp(model.jnt_range[joints], axis=1).sum()),
        body_root=_id(model, mujoco.mjtObj.mjOBJ_BODY, robot.robot_model.root_body),
    )


def _id(model: Any, kind: Any, name: str) -> int:
    return int(mujoco.mj_name2id(model, kind, name))
