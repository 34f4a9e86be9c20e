"""The scene of an episode as data, drawn from a seed only.

`layouts.scene_spec(args, task, init, seed)` returns the same `SceneSpec` on every machine: all draws are
`random.Random.random()` (exact, IEEE) of a SHA-256 seed, and every number computed with the platform's math library is
rounded. Making, comparing and hashing a spec needs no simulator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import cos, radians, sin, sqrt
from random import Random
from typing import Any, TypeVar

from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS, Item, conflict
from apt_bench.envs.tabletop.container_shapes import LID_TRAVEL
from apt_bench.envs.tabletop.item_shapes import shape_of
from apt_bench.envs.tabletop.robots import BASE

T = TypeVar("T")

TABLE_Z = 0.90
AREA_X, AREA_Y = (-0.26, 0.10), (-0.30, 0.30)
"""Bounds of the objects' centres (m, world frame)."""
REACH = (0.38, 0.76)
"""Horizontal distances (m) from the arm's base at which the arm can reach straight down."""
FINGER_ROOM = 0.045
"""Free distance (m) between two objects that are not in a cluster: a finger fits in."""
TALL, TALL_ROOM = 0.09, 0.03
"""An object taller than `TALL` (m) gets `TALL_ROOM` (m) more, for the palm."""

LOOK_AT = (-0.12, 0.0, 0.97)
AZIMUTH, ELEVATION, DISTANCE, FOVY = (-45.0, 45.0), (32.0, 52.0), (0.92, 1.10), 42.0
"""Bounds of the third-person camera in degrees and m, and its field of view. At azimuth 0 it faces the robot."""
FRAME = 0.90
"""Every centre must be within this fraction of the half image."""


@dataclass(frozen=True)
class Placed:
    """A catalogue entry on the table: x, y (m, world frame) and yaw (rad)."""

    name: str
    x: float
    y: float
    yaw: float = 0.0


@dataclass(frozen=True)
class View:
    """The third-person camera: azimuth (degrees), elevation (degrees), distance (m) to `LOOK_AT`."""

    azimuth: float
    elevation: float
    distance: float

    @property
    def position(self) -> tuple[float, float, float]:
        """Position (m, world frame), rounded to 0.1 mm."""
        flat = self.distance * cos(radians(self.elevation))
        return (
            round(LOOK_AT[0] + flat * cos(radians(self.azimuth)), 4),
            round(LOOK_AT[1] + flat * sin(radians(self.azimuth)), 4),
            round(LOOK_AT[2] + self.distance * sin(radians(self.elevation)), 4),
        )


@dataclass(frozen=True)
class Subtask:
    """An instruction and its goal: the atoms (predicate, arguments...) that must hold."""

    instruction: str
    goal: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SceneSpec:
    """One scene.

    Attributes:
        items: Movable objects.
        containers: Containers other than the storage box.
        surroundings: Name in `surroundings.SURROUNDINGS`.
        view: The third-person camera.
        joints: Offsets (rad) of the arm's joints from home.
        subtasks: What is instructed and scored, in order.
        box: The storage box, if there is one.
        chained: Whether one instruction names all subtasks; otherwise each subtask has its own.
    """

    items: tuple[Placed, ...]
    containers: tuple[Placed, ...]
    surroundings: str
    view: View
    joints: tuple[float, ...]
    subtasks: tuple[Subtask, ...]
    box: Placed | None = None
    chained: bool = False

    @property
    def instructions(self) -> tuple[str, ...]:
        """The instructions in the order in which they are given."""
        sentences = tuple(s.instruction for s in self.subtasks)
        if not self.chained:
            return sentences
        first, *rest = (s.removesuffix(".") for s in sentences)
        return (", then ".join([first, *(s[0].lower() + s[1:] for s in rest)]) + ".",)

    @property
    def target(self) -> str:
        """The item that the first subtask moves."""
        return self.subtasks[0].goal[0][1]

    @property
    def destination(self) -> str:
        """The container in which the first subtask puts it."""
        return self.subtasks[0].goal[0][2]

    @property
    def hash(self) -> str:
        """SHA-256 of the scene's canonical JSON.

        Its keys `stages` (instructions) and `parts` (subtasks) are those of the recorded fingerprints.
        """
        content = asdict(self)
        content["stages"] = content.pop("subtasks")
        content["parts"] = [s["goal"] for s in content["stages"]]
        if content.pop("chained"):
            goal = [atom for part in content["parts"] for atom in part]
            content["stages"] = [{"instruction": self.instructions[0], "goal": goal}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Draw:
    """A random generator that is the same on every machine."""

    def __init__(self, *key: Any) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
        self._random = Random(int.from_bytes(digest[:8], "little"))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random.random() < probability

    def number(self, low: float, high: float, digits: int = 4) -> float:
        """Draw a uniform number and round it."""
        return round(low + (high - low) * self._random.random(), digits)

    def pick(self, choices: Sequence[T]) -> T:
        """Draw one of the choices."""
        return choices[int(self._random.random() * len(choices))]

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        """Return all choices in random order."""
        rest = list(choices)
        return [rest.pop(int(self._random.random() * len(rest))) for _ in range(len(rest))]


class NoRoom(Exception):
    """This attempt at a layout failed. The next one may succeed."""


@dataclass(frozen=True)
class SceneKey:
    """The seed of a scene. `scene`: JSON of those of the cell's arguments that change the scene."""

    scene: str
    task: str
    init: int
    seed: int

    def draw(self, *salt: Any) -> Draw:
        """A random generator for this scene; another `salt` gives another one."""
        return Draw(self.scene, self.task, self.init, self.seed, *salt)

    def cycle(self, choices: Sequence[T], *salt: Any) -> T:
        """Choose by initial state, so that every choice comes equally often. Each round has another random order."""
        turn, place = divmod(self.init, len(choices))
        return Draw("cycle", self.scene, self.task, self.seed, turn, *salt).shuffled(choices)[place]


_NOT_SCENE = ("disturbance", "robot", "chain", "stages")
"""Arguments of a cell that do not change the scene: coaching and chaining have the same scenes, disturbed or not."""


def scene_key(args: Mapping[str, Any], task: str, init: int, seed: int) -> SceneKey:
    """The seed of a scene, from those of the cell's arguments that change the scene."""
    scene = json.dumps({k: v for k, v in args.items() if k not in _NOT_SCENE}, sort_keys=True)
    return SceneKey(scene, task, init, seed)


def draw_others(draw: Draw, chosen: Sequence[Item], pool: Sequence[Item], count: int) -> list[Item]:
    """Draw `count` more items that cannot be confused with each other or with the chosen ones."""
    found: list[Item] = []
    for item in draw.shuffled(pool):
        if len(found) < count and not any(
            item.name == o.name or conflict(item, o) for o in (*chosen, *found)
        ):
            found.append(item)
    if len(found) < count:
        raise NoRoom
    return found


BOX, OPEN_LID = "storage_box", "open_lid"
_FOOTPRINTS = {BOX: (0.098, 0.08), OPEN_LID: (0.098, 0.12)}


def footprint(name: str) -> tuple[float, float]:
    """Radius and height (m) of a catalogue entry, or of the storage box and its open lid."""
    if name in _FOOTPRINTS:
        return _FOOTPRINTS[name]
    if name in CONTAINERS:
        return CONTAINERS[name].radius, CONTAINERS[name].height
    shape = shape_of(ITEMS[name])
    return shape.radius, 2 * shape.half[2]


def open_lid(box: Placed) -> Placed:
    """The position of the lid of an open storage box."""
    return Placed(OPEN_LID, box.x, round(box.y + (LID_TRAVEL if box.yaw == 0 else -LID_TRAVEL), 4))


def within_reach(x: float, y: float) -> bool:
    """Return whether the hand can be lowered at x, y (m, world frame)."""
    away = sqrt((x - BASE[0]) ** 2 + (y - BASE[1]) ** 2)
    return REACH[0] <= away <= REACH[1]


def distance(a: Placed, b: Placed) -> float:
    """Distance (m) between two centres on the table."""
    return sqrt((a.x - b.x) ** 2 + (a.y - b.y) ** 2)


def room_between(a: str, b: str) -> float:
    """Smallest distance (m) between the centres of two objects that are not in a cluster."""
    (ra, ha), (rb, hb) = footprint(a), footprint(b)
    if a not in ITEMS and b not in ITEMS:
        return ra + rb + 0.01
    return ra + rb + FINGER_ROOM + (TALL_ROOM if max(ha, hb) > TALL else 0.0)


def place(draw: Draw, name: str, others: Sequence[Placed], yaw: float = 0.6, tries: int = 60) -> Placed:
    """Draw a free position within reach, and a yaw within ± `yaw` rad unless the object is round."""
    turn = 0.0 if name not in ITEMS or shape_of(ITEMS[name]).round else draw.number(-yaw, yaw)
    for _ in range(tries):
        spot = Placed(name, draw.number(*AREA_X), draw.number(*AREA_Y), turn)
        if within_reach(spot.x, spot.y) and all(
            distance(spot, o) >= room_between(name, o.name) for o in others
        ):
            return spot
    raise NoRoom


def draw_view(draw: Draw) -> View:
    """Draw a third-person camera within its bounds."""
    return View(draw.number(*AZIMUTH, 2), draw.number(*ELEVATION, 2), draw.number(*DISTANCE, 3))


def check_view(spec: SceneSpec) -> None:
    """Raise NoRoom where a centre is outside the image, or something hides an item or a container from the camera."""
    eye = spec.view.position
    forward = _unit(tuple(t - e for t, e in zip(LOOK_AT, eye, strict=True)))
    right = _unit((forward[1], -forward[0], 0.0))
    up = _cross(right, forward)
    half = 0.3838  # tan(FOVY / 2)
    placed = [*spec.items, *spec.containers]
    if spec.box:
        placed += [spec.box, open_lid(spec.box)]
    for one in placed:
        _, height = footprint(one.name)
        centre = (one.x, one.y, TABLE_Z + height / 2)
        ray = tuple(c - e for c, e in zip(centre, eye, strict=True))
        depth = _dot(ray, forward)
        if max(abs(_dot(ray, right)), abs(_dot(ray, up))) > FRAME * half * depth:
            raise NoRoom
        for other in placed:
            if other is not one and _hides(other, one, eye, centre):
                raise NoRoom


def _hides(other: Placed, one: Placed, eye: Sequence[float], centre: Sequence[float]) -> bool:
    """Return whether the line of sight to the centre of `one` passes through the upright cylinder around `other`."""
    dx, dy = centre[0] - eye[0], centre[1] - eye[1]
    length2 = dx * dx + dy * dy
    along = ((other.x - eye[0]) * dx + (other.y - eye[1]) * dy) / length2
    if not 0 < along < 1:
        return False
    off_x, off_y = eye[0] + along * dx - other.x, eye[1] + along * dy - other.y
    radius, height = footprint(other.name)
    sight = eye[2] + along * (centre[2] - eye[2])
    return sqrt(off_x**2 + off_y**2) < radius + 0.01 and sight < TABLE_Z + height


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _cross(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def _unit(a: Sequence[float]) -> tuple[float, ...]:
    length = sqrt(_dot(a, a))
    return tuple(x / length for x in a)
