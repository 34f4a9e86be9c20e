"""What happened in an episode, told from contacts and poses alone: who was touched, grasped, lifted and placed where,
when each goal atom became true, and, on a failure, its class.

Classes of failure (the first that fits):

`memorised_task`  the unperturbed task of the same name was done instead of the asked one
`no_contact`      the robot touched nothing
`wrong_object`    something was grasped, or a joint was moved, but nothing that the goal is about
`no_grasp`        no goal object was ever lifted (or pushed 10 cm), no goal joint moved
`dropped`         a goal object slipped from the fingers, or was let go 10 cm or more above where it came to rest
`wrong_place`     a goal object was put down, and not where the goal wants it
`timeout`         the work was under way (in the hand, or some of several goals done) when the episode ended
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from apt_bench.envs.base import Atom, Scene
from apt_bench.envs.mujoco_no_gl import mujoco

Failure = Literal[
    "memorised_task", "no_contact", "wrong_object", "no_grasp", "dropped", "wrong_place", "timeout"
]

GRASP_STEPS = 3  # both fingers on it for so many control steps
LIFT = 0.03  # m above where it was gripped
MOVED = 0.02  # m from where it last rested
PUSHED = 0.10  # m: a push that was meant
FALL = 0.10  # m of free fall that nobody means
STILL = 1e-3  # m in any direction between two samples: at rest
SLIPPED = 0.002  # m that the fingers close further when a held thing slips out
OPERATED = 0.10  # share of a joint's range
SAMPLE = 5  # control steps between two looks at what costs more: poses, joints, predicates

_ROBOT, _LEFT, _RIGHT = 1, 2, 4
_BOTH = _LEFT | _RIGHT


@dataclass(frozen=True)
class Placement:
    """A movable thing came to rest elsewhere. `on`: what supports it; `within`: regions it is in or on by the
    benchmark's own predicates; `held`: it was in the hand before; `at_rest`: False for what still moved at the end."""

    object: str
    step: int
    on: tuple[str, ...]
    within: tuple[str, ...]
    moved: float  # m
    held: bool
    dropped: bool
    at_rest: bool = True


class OutcomeTracker:
    """Follows one episode. `start()` after settling, `update(step)` after every control step, `finish(success)` once.

    It reads the `Scene` and writes nothing to it.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def start(self) -> None:
        """Begin: what is so now was not done by the policy."""
        scene, model, data = self.scene, self.scene.model, self.scene.data
        self._names = list(scene.objects)
        self._movable = np.array([scene.objects[n].movable for n in self._names], dtype=bool)
        self._bodies = np.array([scene.objects[n].body for n in self._names], dtype=int)
        self._owner = np.full(
            model.ngeom + 1, -1
        )  # the last entry stands for "no geom" (-1 in flex contacts)
        for i, name in enumerate(self._names):
            self._owner[list(scene.objects[name].geoms)] = i
        self._part = np.zeros(model.ngeom + 1, dtype=np.uint8)
        robot_bodies = _descendants(model, scene.robot.body_root)
        self._part[:-1][np.isin(model.geom_bodyid, robot_bodies)] = _ROBOT
        for bit, geoms in zip((_LEFT, _RIGHT), scene.robot.finger_geoms, strict=True):
            self._part[list(geoms)] = _ROBOT | bit
        joints = [j for o in scene.objects.values() for j in o.joints]
        self._joints = {j: _name(model, mujoco.mjtObj.mjOBJ_JOINT, j) for j in joints}
        self._joint_qpos = model.jnt_qposadr[joints]
        self._joint_start = data.qpos[self._joint_qpos].copy()
        self._joint_reach = OPERATED * np.ptp(model.jnt_range[joints], axis=1)

        self._position = data.xpos[self._bodies].copy()
        self._rest = self._position.copy()  # where it last lay still
        self._gripped: dict[int, int] = {}  # control steps with both fingers on it
        self._grip_z: dict[int, float] = {}
        self._held: dict[int, _Hold] = {}  # in the hand
        self._released: dict[int, _Hold] = {}  # left the hand, not yet at rest
        self._touched: dict[str, int] = {}
        self._grasped: dict[str, int] = {}
        self._lifted: dict[str, int] = {}
        self._operated: dict[str, int] = {}
        self._placements: list[Placement] = []
        self._step = 0
        self._goal = {atom: _Truth(scene.holds(atom)) for atom in scene.goal}
        differs = set(scene.base_goal) != set(scene.goal)
        self._base = {atom: _Truth(scene.holds(atom)) for atom in scene.base_goal} if differs else {}
        self._base_at_start = all(t.start for t in self._base.values())
        self._shortcut: int | None = None

    def update(self, step: int) -> None:
        """After control step number `step` (1 is the first one)."""
        self._step = step
        self._hands(step, self._touch())
        if step % SAMPLE == 0:
            self._look(step)

    def finish(self, success: bool) -> tuple[Failure | None, dict[str, Any]]:
        """The class of failure (None on success) and the events, ready for JSON. All steps are control steps.

        `touched`, `grasped`, `lifted`, `operated` (joints): name -> first step, in order of time; `placements`: see
        `Placement`; `goal` and `base_goal`: atom -> whether it held at the `start`, the step it `first` became true
        (looked at every 5 steps), whether it held at the end (`last`); `shortcut`: step at which the unperturbed task
        of the same name was done, if it was; `held`: what was in the hand at the end; `targets`: objects of interest.
        """
        self._look(self._step)
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

    def _touch(self) -> dict[int, int]:
        """Which parts of the robot are on which object."""
        pairs = self.scene.data.contact.geom
        owner, part = self._owner[pairs], self._part[pairs][:, ::-1]
        hit = (owner >= 0) & (part > 0)
        touch: dict[int, int] = {}
        if hit.any():
            for i, bits in zip(owner[hit].tolist(), part[hit].tolist(), strict=True):
                touch[i] = touch.get(i, 0) | bits
        return touch

    def _hands(self, step: int, touch: dict[int, int]) -> None:
        """Touched, grasped, lifted, let go."""
        if not (touch or self._held or self._released):
            self._gripped = {}
            return
        data = self.scene.data
        opening = self.scene.robot.opening(data.qpos)
        gripped = {i: self._gripped.get(i, 0) + 1 for i, bits in touch.items() if bits & _BOTH == _BOTH}
        for i in touch:
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

    def _look(self, step: int) -> None:
        """What need not be seen at every step: what has come to rest elsewhere, joints, predicates."""
        data = self.scene.data
        position = data.xpos[self._bodies]
        still = np.abs(position - self._position).max(axis=1) < STILL
        self._position = position
        displaced = self._displaced()
        for i in np.flatnonzero(still & self._movable).tolist():
            release = self._released.get(i)
            if i in self._held or (release and step - release.step < SAMPLE):
                continue  # in the hand, or only just out of it
            if displaced[i] or (release and release.z - position[i, 2] > MOVED):
                self._place(i)
            else:
                self._released.pop(i, None)
        moved = np.abs(data.qpos[self._joint_qpos] - self._joint_start) > self._joint_reach
        for name in itertools.compress(self._joints.values(), moved):
            self._operated.setdefault(name, step)
        self._predicates(step)

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
        """What carries object i: partners of contacts whose normal points up into it."""
        contact = self.scene.data.contact
        names: dict[str, None] = {}
        for side, up in ((1, 1.0), (0, -1.0)):  # the normal points from geom 0 to geom 1
            mine = (self._owner[contact.geom[:, side]] == i) & (contact.frame[:, 2] * up > 0.3)
            for geom in contact.geom[mine, 1 - side]:
                if self._owner[geom] != i:
                    names[self._thing(int(geom))] = None
        return list(names)

    def _thing(self, geom: int) -> str:
        if self._owner[geom] >= 0:
            return self._names[self._owner[geom]]
        if self._part[geom]:
            return "robot"
        model = self.scene.model
        body = int(model.geom_bodyid[geom])
        return (
            _name(model, mujoco.mjtObj.mjOBJ_BODY, body)
            if body
            else _name(model, mujoco.mjtObj.mjOBJ_GEOM, geom)
        )

    def _predicates(self, step: int) -> None:
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
        objects: set[str] = set()  # that the goal wants elsewhere
        joints: set[str] = set()  # that the goal wants turned or pulled
        unmet: set[str] = set()
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
        """Names of the joints that an atom like `open(drawer_region)` or `turnon(stove)` is about."""
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
    """How something was last seen in the hand."""

    step: int
    z: float  # m
    opening: float  # m, of the fingers
    slipped: bool | None = (
        None  # known once the fingers move on: closing = it slipped, opening = it was let go
    )


@dataclass
class _Truth:
    """The life of one atom."""

    start: bool
    first: int | None = None
    last: bool = False


def _descendants(model: Any, root: int) -> list[int]:
    found = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.add(body)
    return sorted(found)


def _name(model: Any, kind: Any, index: int) -> str:
    return mujoco.mj_id2name(model, kind, index) or f"#{index}"
