"""LIBERO's ground truth as an `apt_bench.envs.base.Scene`: names, ids and predicates."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np

from apt_bench.envs.base import Atom, Region, Robot, SceneObject
from apt_bench.envs.mujoco_helpers import scene_object
from apt_bench.envs.mujoco_no_gl import mujoco


class LiberoScene:
    """The live `Scene` of a LIBERO environment (LIBERO's `ControlEnv`, or the robosuite environment inside it).

    Ids are valid until the environment is built or hard-reset again. Create a new scene then. Reading a scene changes
    neither the physics, nor the random state, nor the next image.
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
            name: scene_object(
                model, name, categories[name], _id(model, mujoco.mjtObj.mjOBJ_BODY, obj.root_body)
            )
            for name, obj in bodies.items()
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
        """Return whether the predicate is true now, by LIBERO's own function. False for names that the scene lacks."""
        states = self._env.object_states_dict
        if any(name not in states for name in atom.args):
            return False
        # LIBERO's turnon/turnoff also switch the burner's mark on and off. A query must not change the image.
        marks = getattr(self._env.get_object(atom.args[0]), "object_properties", {}).get("vis_site_names")
        before = copy(marks)
        self._env.check_contact = (
            self._check_contact
        )  # the same result; robosuite's own compares names, 0.3 ms
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

    def _contact_geoms(self, obj: Any) -> np.ndarray:
        if obj.name not in self._contact_masks:
            mask = np.zeros(self.model.ngeom + 1, dtype=bool)
            mask[[_id(self.model, mujoco.mjtObj.mjOBJ_GEOM, g) for g in obj.contact_geoms]] = True
            mask[-1] = False
            self._contact_masks[obj.name] = mask
        return self._contact_masks[obj.name]


def goal_atoms(goal_state: list[list[str]]) -> tuple[Atom, ...]:
    """Convert a parsed BDDL goal (`parsed_problem["goal_state"]`) to atoms."""
    return tuple(Atom(predicate.lower(), tuple(args)) for predicate, *args in goal_state)


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
