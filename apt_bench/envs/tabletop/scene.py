"""The ground truth of a compiled scene, which the outcome tracker and scripted experts read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apt_bench.envs.base import Atom, Region, Robot, SceneObject
from apt_bench.envs.mujoco_helpers import scene_object
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS
from apt_bench.envs.tabletop.container_shapes import LID_TRAVEL
from apt_bench.envs.tabletop.robots import RobotSpec
from apt_bench.envs.tabletop.scene_spec import BOX, SceneSpec

STILL = 0.05
"""An object that is slower (m/s) is at rest."""
LID_SHUT = 0.012
"""The lid is closed when its gap (m) is smaller."""


class TabletopScene:
    """The live `Scene` of a compiled `SceneSpec`. `goals` holds the goal of each subtask.

    The predicates `on` and `in` hold when the item's centre is over the container's inside, no part of the robot
    touches the item, and the item is at rest. Containers are fixed to the table. `close` and `open` are about the lid
    of the storage box.
    """

    def __init__(self, model: Any, data: Any, spec: SceneSpec, robot: RobotSpec) -> None:
        self.model, self.data, self.spec = model, data, spec
        self.objects: Mapping[str, SceneObject] = {
            p.name: _object(model, p.name)
            for p in (*spec.items, *spec.containers, *([spec.box] if spec.box else []))
        }
        self.regions: Mapping[str, Region] = {
            p.name: Region(p.name, p.name, model.site(f"{p.name}_inside").id)
            for p in (*spec.containers, *([spec.box] if spec.box else []))
        }
        self.robot = Robot(
            grip_site=model.site("grip_site").id,
            finger_geoms=(
                frozenset(model.geom(g).id for g in robot.left),
                frozenset(model.geom(g).id for g in robot.right),
            ),
            finger_qpos=tuple(int(model.joint(j).qposadr[0]) for j in robot.fingers),
            max_opening=robot.max_opening,
            body_root=model.body("robot").id,
            finger_m=robot.finger_m,
        )
        self.base_goal: tuple[Atom, ...] = ()
        self.goals = tuple(tuple(Atom(p, tuple(a)) for p, *a in s.goal) for s in spec.subtasks)
        self.all_goals = tuple(atom for goal in self.goals for atom in goal)
        self.goal: tuple[Atom, ...] = self.all_goals  # the environment sets that of the current instruction
        self.targets: tuple[str, ...] = tuple(dict.fromkeys(n for atom in self.goal for n in atom.args))
        root = self.robot.body_root
        self._robot_geom = np.isin(model.body_rootid[model.geom_bodyid], [root])
        self._geom_object = np.full(model.ngeom, -1)
        for found in self.objects.values():
            self._geom_object[list(found.geoms)] = found.body

    def holds(self, atom: Atom) -> bool:
        """Return whether the predicate is true now. False for names or predicates that the scene lacks."""
        if atom.predicate in ("close", "open") and atom.args == (BOX,) and BOX in self.objects:
            gap = float(self.data.joint(f"{BOX}_lid").qpos[0])
            return gap < LID_SHUT if atom.predicate == "close" else gap > LID_TRAVEL - LID_SHUT
        if atom.predicate in ("on", "in") and len(atom.args) == 2:
            item, place = atom.args
            return item in self.objects and place in self.regions and bool(self._inside(item, place))
        return False

    def offset(self, item: str, container: str) -> float:
        """Horizontal distance (m) between the centres of an item and a container."""
        a, b = (self.data.xpos[self.objects[n].body] for n in (item, container))
        return float(np.hypot(a[0] - b[0], a[1] - b[1]))

    def _inside(self, item: str, container: str) -> bool:
        if not self.objects[item].movable or not self._over(item, container):
            return False
        return self.at_rest(item) and not self.touched(item)

    def _over(self, item: str, container: str) -> bool:
        if container in CONTAINERS:
            return self.offset(item, container) <= CONTAINERS[container].inside
        site = self.regions[container].site
        away = self.data.xpos[self.objects[item].body] - self.data.site_xpos[site]
        local = self.data.site_xmat[site].reshape(3, 3).T @ away
        return bool((np.abs(local) <= self.model.site_size[site] + [0, 0, 0.01]).all())

    def at_rest(self, item: str) -> bool:
        """Return whether an item moves slower than `STILL`."""
        joint = self.model.body_dofadr[self.objects[item].body]
        return bool(np.linalg.norm(self.data.qvel[joint : joint + 3]) < STILL)

    def overlap(self) -> float:
        """Deepest penetration (m) of two geoms that are not both parts of the robot."""
        contact = self.data.contact
        ours = self._robot_geom[contact.geom].all(axis=1)
        return float(max(-contact.dist[~ours], default=0.0))

    def touched(self, item: str) -> bool:
        """Return whether any part of the robot touches an item."""
        pairs = self.data.contact.geom
        mine = self._geom_object[pairs] == self.objects[item].body
        return bool((mine & self._robot_geom[pairs][:, ::-1]).any())


def _object(model: Any, name: str) -> SceneObject:
    category = "container" if name in CONTAINERS else ITEMS[name].shape if name in ITEMS else name
    return scene_object(model, name, category, model.body(name).id)
