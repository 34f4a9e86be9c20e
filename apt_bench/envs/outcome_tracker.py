"""Track what happens in an episode, from contacts and poses alone.

The tracker records which objects were touched, grasped, lifted and placed, and when each goal atom became true. On a
failure it also gives a class of failure, the first of these that fits:

`memorised_task`  the unperturbed task of the same name was done instead of the instructed one
`no_contact`      the robot touched no object
`wrong_object`    an object was grasped, or a joint was moved, but none of those in the goal
`no_grasp`        no goal object was lifted (or pushed by 10 cm), and no goal joint was moved
`dropped`         a goal object slipped from the fingers, or was released 10 cm or more above where it came to rest
`wrong_place`     a goal object was put down in a place that the goal does not name
`timeout`         the task was in progress (object in hand, or some of several goals reached) when the episode ended
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from apt_bench.envs.base import Atom, Scene
from apt_bench.envs.mujoco_helpers import subtree
from apt_bench.envs.mujoco_no_gl import mujoco

Failure = Literal[
    "memorised_task", "no_contact", "wrong_object", "no_grasp", "dropped", "wrong_place", "timeout"
]

GRASP_STEPS = 3  # control steps with both fingers on an object that make a grasp
LIFT = 0.03  # m above the height at which it was grasped: lifted
MOVED = 0.02  # m from where it last rested: moved
PUSHED = 0.10  # m: moved so far without a lift, it was pushed on purpose
FALL = 0.10  # m of fall after a release: dropped
STILL = 1e-3  # m per axis between two samples: at rest
SLIPPED = 0.002  # m by which the fingers close further when an object slips out of them
OPERATED = 0.10  # fraction of a joint's range: operated
SAMPLE = 5  # control steps between two samples of poses, joints and predicates, which cost more than contacts

_ROBOT, _LEFT, _RIGHT = 1, 2, 4
_BOTH = _LEFT | _RIGHT


@dataclass(frozen=True)
class Placement:
    """A movable object came to rest in another place.

    Attributes:
        object: Its name.
        step: Control step.
        on: Names of what supports it.
        within: Regions that it is in or on, by the benchmark's own predicates.
        moved: Distance (m) from where it last rested.
        held: Whether it was in the hand before.
        dropped: Whether it slipped from the fingers or fell.
        at_rest: False where it still moved at the end of the episode.
    """

    object: str
    step: int
    on: tuple[str, ...]
    within: tuple[str, ...]
    moved: float
    held: bool
    dropped: bool
    at_rest: bool = True


class OutcomeTracker:
    """Tracks one episode. It reads the `Scene` and never writes to it.

    Call `start` after settling, `update` after every control step, and `finish` once.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def start(self) -> None:
        """Record the state before the policy's first action."""
        scene, model, data = self.scene, self.scene.model, self.scene.data
        self._names = list(scene.objects)
        self._movable = np.array([scene.objects[n].movable for n in self._names], dtype=bool)
        self._bodies = np.array([scene.objects[n].body for n in self._names], dtype=int)
        # Object of each geom. The last entry is for contacts without a geom (-1, flex contacts).
        self._owner = np.full(model.ngeom + 1, -1)
        for i, name in enumerate(self._names):
            self._owner[list(scene.objects[name].geoms)] = i
        self._robot_part = np.zeros(model.ngeom + 1, dtype=np.uint8)
        robot_bodies = subtree(model, scene.robot.body_root)
        self._robot_part[:-1][np.isin(model.geom_bodyid, robot_bodies)] = _ROBOT
        for bit, geoms in zip((_LEFT, _RIGHT), scene.robot.finger_geoms, strict=True):
            self._robot_part[list(geoms)] = _ROBOT | bit
        joints = [j for o in scene.objects.values() for j in o.joints]
        self._joints = {j: _name(model, mujoco.mjtObj.mjOBJ_JOINT, j) for j in joints}
        self._joint_qpos = model.jnt_qposadr[joints]
        self._joint_start = data.qpos[self._joint_qpos].copy()
        self._joint_reach = OPERATED * np.ptp(model.jnt_range[joints], axis=1)

        self._position = data.xpos[self._bodies].copy()
        self._rest = self._position.copy()  # where it last was at rest
        self._gripped: dict[int, int] = {}  # object -> control steps with both fingers on it
        self._grip_z: dict[int, float] = {}
        self._held: dict[int, _Hold] = {}  # objects in the hand
        self._released: dict[int, _Hold] = {}  # objects that left the hand and are not yet at rest
        self._touched: dict[str, int] = {}
        self._grasped: dict[str, int] = {}
        self._lifted: dict[str, int] = {}
        self._operated: dict[str, int] = {}
        self._placements: list[Placement] = []
        self._step = 0
        self._goal = {atom: _AtomTruth(scene.holds(atom)) for atom in scene.goal}
        differs = set(scene.base_goal) != set(scene.goal)
        self._base = {atom: _AtomTruth(scene.holds(atom)) for atom in scene.base_goal} if differs else {}
        self._base_at_start = all(t.start for t in self._base.values())
        self._shortcut: int | None = None

    def update(self, step: int) -> None:
        """Update after control step number `step`. The first one is 1."""
        self._step = step
        self._update_grasps(step, self._touching())
        if step % SAMPLE == 0:
            self._sample(step)

    @property
    def first_contact(self) -> str | None:
        """The object that the robot touched first, so far."""
        return next(iter(self._touched), None)

    def finish(self, success: bool) -> tuple[Failure | None, dict[str, Any]]:
        """End the episode.

        Returns:
            The class of failure (None on success), and the events, ready for JSON. All steps are control steps.

            - `targets`: the objects of interest.
            - `touched`, `grasped`, `lifted`, `operated` (joints): name -> first step, in order of time.
            - `placements`: a list of `Placement`.
            - `held`: the objects in the hand at the end.
            - `goal` and `base_goal`: atom -> whether it held at the `start`, the step at which it `first` became true
              (sampled every 5 steps), and whether it held at the end (`last`).
            - `shortcut`: the step at which the unperturbed task of the same name was done, or None.
        """
        self._sample(self._step)
        for i in np.flatnonzero(self._displaced() & self._movable).tolist():
            if i not in self._held:
                self._place(i, at_rest=False)
        events: dict[str, Any] = {
            "targets": list(self.scene.targets),
            "touched": self._touched,
            "grasped": self._grasped,
            "lifted": self._lifted,
            "operated": self._operated,
            "placements": [
                {**asdict(p), "on": list(p.on), "within": list(p.within)} for p in self._placements
            ],
            "held": [self._names[i] for i in self._held],
            "goal": {str(atom): asdict(truth) for atom, truth in self._goal.items()},
            "base_goal": {str(atom): asdict(truth) for atom, truth in self._base.items()},
            "shortcut": self._shortcut,
        }
        return (None if success else self._failure()), events

    def _touching(self) -> dict[int, int]:
        """The parts of the robot that touch each object, as a bit mask by object."""
        pairs = self.scene.data.contact.geom
        owner, part = self._owner[pairs], self._robot_part[pairs][:, ::-1]
        hit = (owner >= 0) & (part > 0)
        touching: dict[int, int] = {}
        if hit.any():
            for i, bits in zip(owner[hit].tolist(), part[hit].tolist(), strict=True):
                touching[i] = touching.get(i, 0) | bits
        return touching

    def _update_grasps(self, step: int, touching: dict[int, int]) -> None:
        """Update what is touched, grasped, lifted and released."""
        if not (touching or self._held or self._released):
            self._gripped = {}
            return
        data = self.scene.data
        opening = self.scene.robot.opening(data.qpos)
        gripped = {i: self._gripped.get(i, 0) + 1 for i, bits in touching.items() if bits & _BOTH == _BOTH}
        for i in touching:
            self._touched.setdefault(self._names[i], step)
        for i, steps in gripped.items():
            if not self._movable[i]:
                continue
            name, z = self._names[i], float(data.xpos[self._bodies[i], 2])
            if steps == 1 and i not in self._released:
                self._grip_z[i] = z
            if steps >= GRASP_STEPS:
                self._grasped.setdefault(name, step)
                self._released.pop(i, None)
                self._held[i] = _Hold(step, z, opening)
                if z - self._grip_z[i] >= LIFT:
                    self._lifted.setdefault(name, step)
        self._gripped = gripped
        for i in [i for i in self._held if i not in gripped]:
            self._released[i] = self._held.pop(i)
        for release in self._released.values():
            if release.slipped is None and abs(opening - release.opening) > SLIPPED:
                release.slipped = opening < release.opening

    def _sample(self, step: int) -> None:
        """Update what is sampled: objects that came to rest in another place, joints, predicates."""
        data = self.scene.data
        position = data.xpos[self._bodies]
        still = np.abs(position - self._position).max(axis=1) < STILL
        self._position = position
        displaced = self._displaced()
        for i in np.flatnonzero(still & self._movable).tolist():
            release = self._released.get(i)
            if i in self._held or (release and step - release.step < SAMPLE):
                continue  # in the hand, or released just now
            if displaced[i] or (release and release.z - position[i, 2] > MOVED):
                self._place(i)
            else:
                self._released.pop(i, None)
        moved = np.abs(data.qpos[self._joint_qpos] - self._joint_start) > self._joint_reach
        for name in itertools.compress(self._joints.values(), moved):
            self._operated.setdefault(name, step)
        self._update_atoms(step)

    def _displaced(self) -> np.ndarray:
        return np.linalg.norm(self._position - self._rest, axis=1) > MOVED

    def _place(self, i: int, at_rest: bool = True) -> None:
        name, here = self._names[i], self._position[i]
        released = self._released.pop(i, None)
        fall = released.z - here[2] if released else 0.0
        within = [
            r
            for r in self.scene.regions
            if any(self.scene.holds(Atom(predicate, (name, r))) for predicate in ("in", "on"))
        ]
        self._placements.append(
            Placement(
                object=name,
                step=self._step,
                on=tuple(self._supports(i)),
                within=tuple(within),
                moved=round(float(np.linalg.norm(here - self._rest[i])), 3),
                held=released is not None,
                dropped=released is not None and bool(released.slipped or fall >= FALL),
                at_rest=at_rest,
            )
        )
        self._rest[i] = here

    def _supports(self, i: int) -> list[str]:
        """Names of what supports object i: contacts whose normal points up into it."""
        contact = self.scene.data.contact
        names: dict[str, None] = {}
        for side, up in ((1, 1.0), (0, -1.0)):  # the normal points from geom 0 to geom 1
            mine = (self._owner[contact.geom[:, side]] == i) & (contact.frame[:, 2] * up > 0.3)
            for geom in contact.geom[mine, 1 - side]:
                if self._owner[geom] != i:
                    names[self._geom_name(int(geom))] = None
        return list(names)

    def _geom_name(self, geom: int) -> str:
        """Name of the object, robot, body or geom that a geom belongs to."""
        if self._owner[geom] >= 0:
            return self._names[self._owner[geom]]
        if self._robot_part[geom]:
            return "robot"
        model = self.scene.model
        body = int(model.geom_bodyid[geom])
        return (
            _name(model, mujoco.mjtObj.mjOBJ_BODY, body)
            if body
            else _name(model, mujoco.mjtObj.mjOBJ_GEOM, geom)
        )

    def _update_atoms(self, step: int) -> None:
        for truths in (self._goal, self._base):
            for atom, truth in truths.items():
                truth.last = self.scene.holds(atom)
                if truth.last and not truth.start and truth.first is None:
                    truth.first = step
        if (
            self._base
            and not self._base_at_start
            and self._shortcut is None
            and all(t.last for t in self._base.values())
        ):
            self._shortcut = step

    def _failure(self) -> Failure:
        if self._shortcut is not None:
            return "memorised_task"
        if not self._touched:
            return "no_contact"
        objects: set[str] = set()  # objects to be moved
        joints: set[str] = set()  # joints to be turned or pulled
        unmet: set[str] = set()  # objects that are not where the goal requires them
        for atom, truth in self._goal.items():
            names = self._joints_of(atom.args[0])
            if len(atom.args) == 1 and names:
                joints |= names
            else:
                objects.add(atom.args[0])
                unmet |= set() if truth.last else {atom.args[0]}
        placed = {p.object: p for p in self._placements}  # the latest of each
        if not objects & set(self._lifted) and not joints & set(self._operated):
            if set(self._grasped) - objects or set(self._operated) - joints:
                return "wrong_object"
            pushed = any(p.object in objects and p.moved >= PUSHED for p in self._placements)
            return "wrong_place" if pushed else "no_grasp"
        in_hand = {self._names[i] for i in self._held}
        put_down = [placed[n] for n in unmet & set(placed) & set(self._lifted) - in_hand]
        if any(p.dropped for p in put_down):
            return "dropped"
        return "wrong_place" if put_down else "timeout"

    def _joints_of(self, name: str) -> set[str]:
        """Names of the joints of an atom such as `open(drawer_region)` or `turnon(stove)`."""
        model, scene = self.scene.model, self.scene
        if name in scene.objects:
            return {self._joints[j] for j in scene.objects[name].joints}
        region = scene.regions.get(name)
        if region is None or region.site is None:
            return set()
        body = model.site_bodyid[region.site]
        return {n for j, n in self._joints.items() if model.jnt_bodyid[j] == body}


@dataclass
class _Hold:
    """The last state of an object in the hand."""

    step: int
    z: float  # m
    opening: float  # m, between the fingers
    slipped: bool | None = None  # once the fingers move again: True if they closed, False if they opened


@dataclass
class _AtomTruth:
    """Whether an atom held at the start, when it first became true, and whether it holds now."""

    start: bool
    first: int | None = None
    last: bool = False


def _name(model: Any, kind: Any, index: int) -> str:
    return mujoco.mj_id2name(model, kind, index) or f"#{index}"
