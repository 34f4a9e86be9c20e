"""Geoms that objects are made of: primitives and surfaces of revolution, as MJCF attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi, sin

from apt_bench.envs.tabletop.catalog import BLACK, Rgb

Vec = tuple[float, float, float]
SEGMENTS = 18
"""Number of sides of a surface of revolution."""


@dataclass(frozen=True)
class Geom:
    """A visual geom. `attributes`: its MJCF attributes except the colour; frame: the object's bottom centre, z up."""

    type: str
    color: Rgb
    attributes: dict[str, str]
    profile: tuple[
        tuple[float, float], ...
    ] = ()  # of a surface of revolution: (radius, z) from bottom to top


@dataclass(frozen=True)
class Shape:
    """The shape of an object.

    Attributes:
        half: Half sizes (m) of the collision box, whose bottom is at z = 0.
        geoms: Visual geoms.
        round: Whether it looks the same from every side, so that its yaw is not varied.
        mass: In kg.
    """

    half: Vec
    geoms: list[Geom] = field(default_factory=list)
    round: bool = False
    mass: float = 0.1

    @property
    def radius(self) -> float:
        """Radius (m) of the circle around the collision box, seen from above."""
        return (self.half[0] ** 2 + self.half[1] ** 2) ** 0.5


def numbers(*values: float) -> str:
    """Format numbers for MJCF."""
    return " ".join(f"{v:.5g}" for v in values)


def _geom(kind: str, color: Rgb, pos: Vec, size: tuple[float, ...], euler: Vec = (0, 0, 0)) -> Geom:
    return Geom(kind, color, {"pos": numbers(*pos), "size": numbers(*size), "euler": numbers(*euler)})


def box(color: Rgb, pos: Vec, half: Vec, euler: Vec = (0, 0, 0)) -> Geom:
    """A box with these half sizes."""
    return _geom("box", color, pos, half, euler)


def ball(color: Rgb, pos: Vec, r: float) -> Geom:
    """A sphere."""
    return _geom("sphere", color, pos, (r,))


def egg(color: Rgb, pos: Vec, half: Vec, euler: Vec = (0, 0, 0)) -> Geom:
    """An ellipsoid with these half sizes."""
    return _geom("ellipsoid", color, pos, half, euler)


def rod(color: Rgb, start: Vec, end: Vec, r: float, kind: str = "capsule") -> Geom:
    """A capsule or cylinder between two points."""
    return Geom(kind, color, {"fromto": numbers(*start, *end), "size": numbers(r)})


def disc(color: Rgb, z0: float, z1: float, r: float) -> Geom:
    """An upright cylinder."""
    return rod(color, (0, 0, z0), (0, 0, z1), r, "cylinder")


def lathe(color: Rgb, *profile: tuple[float, float], pos: Vec = (0, 0, 0), euler: Vec = (0, 0, 0)) -> Geom:
    """A surface of revolution about z through the (radius, z) points, closed by the axis at both ends."""
    return Geom("mesh", color, {"pos": numbers(*pos), "euler": numbers(*euler)}, tuple(profile))


def lathe_mesh(profile: tuple[tuple[float, float], ...]) -> tuple[str, str]:
    """Return the `vertex` and `face` attributes of the MJCF mesh of a profile."""
    ring = [
        (round(cos(2 * pi * k / SEGMENTS), 6), round(sin(2 * pi * k / SEGMENTS), 6)) for k in range(SEGMENTS)
    ]
    vertices = [(r * c, r * s, z) for r, z in profile for c, s in ring]
    faces = []
    rows = len(profile)
    for i in range(rows - 1):
        for k in range(SEGMENTS):
            a, b = i * SEGMENTS + k, i * SEGMENTS + (k + 1) % SEGMENTS
            faces += [(a, b, b + SEGMENTS), (a, b + SEGMENTS, a + SEGMENTS)]
    for row, flip in ((0, True), (rows - 1, False)):
        centre = len(vertices)
        vertices.append((0, 0, profile[row][1]))
        for k in range(SEGMENTS):
            a, b = row * SEGMENTS + k, row * SEGMENTS + (k + 1) % SEGMENTS
            faces.append((centre, b, a) if flip else (centre, a, b))
    return (
        " ".join(numbers(*v) for v in vertices),
        " ".join(f"{a} {b} {c}" for a, b, c in faces),
    )


def legs(color: Rgb, x: float, y: float, z: float, r: float) -> list[Geom]:
    """Four legs."""
    return [rod(color, (sx * x, sy * y, r), (sx * x, sy * y, z), r) for sx in (1, -1) for sy in (1, -1)]


def eyes(x: float, y: float, z: float, r: float = 0.003) -> list[Geom]:
    """Two eyes."""
    return [ball(BLACK, (x, s * y, z), r) for s in (1, -1)]
