"""The shapes of the catalogue, from primitives and small surfaces of revolution.

What is seen and what is touched differ on purpose. Seen: some ten low-polygon geoms. Touched: one box, a little
narrower than what is seen, so that round things neither roll nor slip out of the gripper's 16 mm wide pads when the
grasp is a centimetre off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import cos, pi, sin

from apt_bench.envs.tabletop.catalog import BLACK, BROWN, ORANGE, RED, SILVER, WHITE, Item, Rgb

Vec = tuple[float, float, float]
SEGMENTS = 18


@dataclass(frozen=True)
class Geom:
    """A visual geom: MJCF attributes in the frame of the thing's bottom centre (z up), without its colour."""

    type: str
    color: Rgb
    attributes: dict[str, str]
    profile: tuple[tuple[float, float], ...] = ()  # of a surface of revolution about z: (radius, z), bottom to top


@dataclass(frozen=True)
class Shape:
    """`half`: half sizes (m) of the collision box, which stands on z = 0. Round shapes look alike from every side, so
    their yaw is not varied."""

    half: Vec
    geoms: list[Geom] = field(default_factory=list)
    round: bool = False
    mass: float = 0.1

    @property
    def radius(self) -> float:
        """Of the circle about the collision box, seen from above."""
        return (self.half[0] ** 2 + self.half[1] ** 2) ** 0.5


def numbers(*values: float) -> str:
    """As MJCF wants them."""
    return " ".join(f"{v:.5g}" for v in values)


def _geom(kind: str, color: Rgb, pos: Vec, size: tuple[float, ...], euler: Vec = (0, 0, 0)) -> Geom:
    return Geom(kind, color, {"pos": numbers(*pos), "size": numbers(*size), "euler": numbers(*euler)})


def _box(color: Rgb, pos: Vec, half: Vec, euler: Vec = (0, 0, 0)) -> Geom:
    return _geom("box", color, pos, half, euler)


def _ball(color: Rgb, pos: Vec, r: float) -> Geom:
    return _geom("sphere", color, pos, (r,))


def _egg(color: Rgb, pos: Vec, half: Vec, euler: Vec = (0, 0, 0)) -> Geom:
    return _geom("ellipsoid", color, pos, half, euler)


def _rod(color: Rgb, start: Vec, end: Vec, r: float, kind: str = "capsule") -> Geom:
    return Geom(kind, color, {"fromto": numbers(*start, *end), "size": numbers(r)})


def _disc(color: Rgb, z0: float, z1: float, r: float) -> Geom:
    return _rod(color, (0, 0, z0), (0, 0, z1), r, "cylinder")


def lathe(color: Rgb, *profile: tuple[float, float], pos: Vec = (0, 0, 0), euler: Vec = (0, 0, 0)) -> Geom:
    """A surface of revolution about z through the (radius, z) points, closed by the axis at both ends."""
    return Geom("mesh", color, {"pos": numbers(*pos), "euler": numbers(*euler)}, tuple(profile))


def lathe_mesh(profile: tuple[tuple[float, float], ...]) -> tuple[str, str]:
    """`vertex` and `face` attributes of an MJCF mesh."""
    ring = [(round(cos(2 * pi * k / SEGMENTS), 6), round(sin(2 * pi * k / SEGMENTS), 6)) for k in range(SEGMENTS)]
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


def _legs(color: Rgb, x: float, y: float, z: float, r: float) -> list[Geom]:
    return [_rod(color, (sx * x, sy * y, r), (sx * x, sy * y, z), r) for sx in (1, -1) for sy in (1, -1)]


def _eyes(x: float, y: float, z: float, r: float = 0.003) -> list[Geom]:
    return [_ball(BLACK, (x, s * y, z), r) for s in (1, -1)]


def can(c: Rgb, t: Rgb) -> Shape:
    """A drink can."""
    return Shape(
        (0.0235, 0.0235, 0.05),
        [_disc(c, 0.004, 0.094, 0.0295), _disc(t, 0.038, 0.062, 0.0299), _disc(SILVER, 0, 0.1, 0.026)],
        round=True,
    )


def short_can(c: Rgb, t: Rgb) -> Shape:
    """A soup can."""
    return Shape(
        (0.0245, 0.0245, 0.034),
        [_disc(c, 0.004, 0.036, 0.0315), _disc(t, 0.036, 0.063, 0.0315), _disc(SILVER, 0, 0.068, 0.029)],
        round=True,
    )


def bottle(c: Rgb, t: Rgb) -> Shape:
    """A bottle with a label, neck and cap."""
    body = ((0.026, 0), (0.029, 0.004), (0.029, 0.066), (0.024, 0.082), (0.012, 0.096), (0.0105, 0.108))
    return Shape(
        (0.022, 0.022, 0.06), [lathe(c, *body), _disc(t, 0.022, 0.05, 0.0296), _disc(t, 0.108, 0.12, 0.013)], round=True
    )


def cup(c: Rgb, t: Rgb) -> Shape:
    """A paper cup, empty."""
    body = ((0.021, 0), (0.030, 0.078), (0.032, 0.080), (0.028, 0.079), (0.020, 0.006))
    return Shape((0.0225, 0.0225, 0.04), [lathe(c, *body), lathe(t, (0.0248, 0.03), (0.0278, 0.055))], round=True)


def cube(c: Rgb, t: Rgb) -> Shape:
    """A toy block."""
    return Shape((0.022, 0.022, 0.022), [_box(c, (0, 0, 0.022), (0.022, 0.022, 0.022))])


def brick(c: Rgb, t: Rgb) -> Shape:
    """A longish block with dark end grain."""
    ends = [_box(t, (s * 0.0455, 0, 0.02), (0.0015, 0.0185, 0.0185)) for s in (1, -1)]
    return Shape((0.047, 0.02, 0.02), [_box(c, (0, 0, 0.02), (0.045, 0.02, 0.02)), *ends])


def apple(c: Rgb, t: Rgb) -> Shape:
    """A round fruit with a stem and a leaf."""
    body = ((0.006, 0.003), (0.019, 0.001), (0.029, 0.012), (0.033, 0.03), (0.030, 0.046), (0.020, 0.057), (0.008, 0.056), (0.002, 0.051))
    return Shape(
        (0.0235, 0.0235, 0.029),
        [lathe(c, *body), _rod(BROWN, (0, 0, 0.05), (0.004, 0.002, 0.07), 0.0022), _egg((0.2, 0.5, 0.15), (0.014, 0.004, 0.066), (0.012, 0.006, 0.002), (0, -0.4, 0))],
        round=True,
    )


def pear(c: Rgb, t: Rgb) -> Shape:
    """A pear."""
    body = ((0.008, 0), (0.022, 0.003), (0.031, 0.018), (0.031, 0.032), (0.022, 0.052), (0.015, 0.068), (0.009, 0.076))
    return Shape(
        (0.0225, 0.0225, 0.038), [lathe(c, *body), _rod(t, (0, 0, 0.07), (0.006, 0, 0.092), 0.0025)], round=True
    )


def lemon(c: Rgb, t: Rgb) -> Shape:
    """A lemon or a lime, lying."""
    body = ((0.003, -0.045), (0.008, -0.038), (0.019, -0.028), (0.026, -0.01), (0.026, 0.01), (0.019, 0.028), (0.008, 0.038), (0.003, 0.045))
    return Shape((0.034, 0.021, 0.025), [lathe(c, *body, pos=(0, 0, 0.026), euler=(0, pi / 2, 0))])


def ball(c: Rgb, t: Rgb) -> Shape:
    """A ball."""
    return Shape((0.0235, 0.0235, 0.031), [_ball(c, (0, 0, 0.031), 0.031)], round=True)


def bar(c: Rgb, t: Rgb) -> Shape:
    """A bar of soap with a pale stamp."""
    geoms = [_box(c, (0, 0, 0.015), (0.036, 0.025, 0.015)), _egg(t, (0, 0, 0.0295), (0.026, 0.016, 0.003))]
    geoms += [_rod(c, (s * 0.036, -0.012, 0.015), (s * 0.036, 0.012, 0.015), 0.013) for s in (1, -1)]
    return Shape((0.042, 0.025, 0.015), geoms)


def long_box(c: Rgb, t: Rgb) -> Shape:
    """A toothpaste box."""
    bands = [_box(t, (x, 0, 0.02), (w, 0.0205, 0.0205)) for x, w in ((-0.05, 0.012), (0.02, 0.005))]
    return Shape((0.062, 0.02, 0.02), [_box(c, (0, 0, 0.02), (0.062, 0.02, 0.02)), *bands])


def carton(c: Rgb, t: Rgb) -> Shape:
    """A milk carton with a gable."""
    slope = [_box(c, (s * 0.0125, 0, 0.093), (0.0175, 0.025, 0.0015), (0, s * 0.82, 0)) for s in (1, -1)]
    return Shape(
        (0.025, 0.025, 0.055),
        [_box(c, (0, 0, 0.04), (0.025, 0.025, 0.04)), _box(t, (0, 0, 0.028), (0.0255, 0.0255, 0.013)), _box(c, (0, 0, 0.087), (0.011, 0.0245, 0.008)), _box(t, (0, 0, 0.11), (0.002, 0.025, 0.007)), *slope],
    )


def carton_box(c: Rgb, t: Rgb) -> Shape:
    """A tea box."""
    label = _box(t, (0, 0, 0.035), (0.0405, 0.0265, 0.012))
    return Shape((0.04, 0.026, 0.03), [_box(c, (0, 0, 0.03), (0.04, 0.026, 0.03)), label])


def duck(c: Rgb, t: Rgb) -> Shape:
    """A rubber duck."""
    geoms = [_egg(c, (-0.004, 0, 0.022), (0.038, 0.027, 0.022)), _ball(c, (0.018, 0, 0.052), 0.0195)]
    geoms += [_egg(t, (0.041, 0, 0.05), (0.011, 0.009, 0.004)), _egg(c, (-0.037, 0, 0.035), (0.014, 0.012, 0.007), (0, 0.6, 0))]
    return Shape((0.036, 0.022, 0.034), geoms + _eyes(0.033, 0.009, 0.058))


def horse(c: Rgb, t: Rgb) -> Shape:
    """A striped horse: a zebra."""
    torso = [_rod((c, t)[k % 2], (-0.034 + 0.0097 * k, 0, 0.05), (-0.0243 + 0.0097 * k, 0, 0.05), 0.018, "cylinder") for k in range(7)]
    legs = [_rod((c, t)[i], (sx * 0.026, sy * 0.011, 0.002 + i * 0.019), (sx * 0.026, sy * 0.011, 0.021 + i * 0.022), 0.006, "cylinder") for sx in (1, -1) for sy in (1, -1) for i in (0, 1)]
    neck = [_rod((t, c)[k % 2], (0.030 + 0.004 * k, 0, 0.058 + 0.009 * k), (0.034 + 0.004 * k, 0, 0.067 + 0.009 * k), 0.011 - 0.0005 * k, "cylinder") for k in range(4)]
    head = [_egg(c, (0.056, 0, 0.092), (0.017, 0.009, 0.010), (0, 0.5, 0)), _ball(t, (0.069, 0, 0.085), 0.0075)]
    tail = [_rod(t, (-0.035, 0, 0.058), (-0.047, 0, 0.036), 0.003)]
    return Shape((0.042, 0.0175, 0.034), torso + legs + neck + head + tail)


def rhino(c: Rgb, t: Rgb) -> Shape:
    """A rhinoceros with two horns."""
    geoms = [_egg(c, (-0.008, 0, 0.042), (0.042, 0.0225, 0.025)), *_legs(c, 0.024, 0.011, 0.03, 0.009)]
    geoms += [_egg(c, (0.042, 0, 0.04), (0.024, 0.014, 0.015), (0, 0.35, 0))]
    geoms += [lathe(t, (0.006, 0), (0.0005, 0.026), pos=(0.058, 0, 0.044), euler=(0, 0.3, 0)), lathe(t, (0.005, 0), (0.0005, 0.014), pos=(0.044, 0, 0.052))]
    geoms += [_egg(c, (0.028, s * 0.013, 0.06), (0.004, 0.004, 0.008)) for s in (1, -1)]
    return Shape((0.046, 0.021, 0.033), geoms)


def elephant(c: Rgb, t: Rgb) -> Shape:
    """An elephant."""
    geoms = [_egg(c, (-0.01, 0, 0.048), (0.036, 0.024, 0.026)), *_legs(c, 0.02, 0.012, 0.034, 0.0095)]
    geoms += [_ball(c, (0.03, 0, 0.062), 0.02), *_eyes(0.046, 0.009, 0.068)]
    geoms += [_egg(c, (0.022, s * 0.025, 0.062), (0.016, 0.003, 0.02), (0, 0, s * 0.35)) for s in (1, -1)]
    geoms += [_rod(c, (0.046, 0, 0.058), (0.056, 0, 0.034), 0.0065), _rod(c, (0.056, 0, 0.034), (0.066, 0, 0.022), 0.005)]
    geoms += [_rod(t, (0.044, s * 0.009, 0.05), (0.06, s * 0.01, 0.043), 0.0025) for s in (1, -1)]
    return Shape((0.042, 0.022, 0.038), geoms)


def camel(c: Rgb, t: Rgb) -> Shape:
    """A camel with two humps."""
    geoms = [_egg(c, (-0.006, 0, 0.05), (0.038, 0.018, 0.017)), *_legs(c, 0.024, 0.010, 0.044, 0.0055)]
    geoms += [_ball(c, (x, 0, 0.064), 0.0135) for x in (-0.024, 0.008)]
    geoms += [_rod(c, (0.03, 0, 0.05), (0.05, 0, 0.086), 0.0075), _egg(c, (0.058, 0, 0.09), (0.015, 0.008, 0.008), (0, 0.2, 0))]
    return Shape((0.042, 0.0175, 0.036), geoms)


def penguin(c: Rgb, t: Rgb) -> Shape:
    """A penguin, upright."""
    geoms = [_egg(c, (0, 0, 0.042), (0.026, 0.027, 0.04)), _egg(t, (0.008, 0, 0.038), (0.0215, 0.021, 0.032))]
    geoms += [_ball(c, (0, 0, 0.083), 0.019), _egg(ORANGE, (0.022, 0, 0.081), (0.01, 0.005, 0.004))]
    geoms += [_ball(WHITE, (0.0135, s * 0.009, 0.088), 0.005) for s in (1, -1)]
    geoms += [_egg(ORANGE, (0.012, s * 0.012, 0.004), (0.017, 0.009, 0.004)) for s in (1, -1)]
    geoms += [_egg(c, (-0.002, s * 0.029, 0.045), (0.008, 0.005, 0.024), (s * 0.25, 0, 0)) for s in (1, -1)]
    return Shape((0.0235, 0.024, 0.048), geoms)


def cone(c: Rgb, t: Rgb) -> Shape:
    """A traffic cone."""
    geoms = [_box(c, (0, 0, 0.004), (0.034, 0.034, 0.004)), lathe(c, (0.027, 0.008), (0.0055, 0.098), (0.003, 0.1))]
    geoms += [lathe(t, (0.0226, 0.03), (0.0179, 0.05)), lathe(t, (0.0145, 0.064), (0.0117, 0.076))]
    return Shape((0.022, 0.022, 0.05), geoms, round=True)


def banana(c: Rgb, t: Rgb) -> Shape:
    """A banana, lying."""
    points = [(-0.066, 0.022), (-0.046, 0.004), (-0.016, -0.008), (0.016, -0.008), (0.046, 0.004), (0.066, 0.022)]
    radii = [0.011, 0.0145, 0.0155, 0.0145, 0.011]
    geoms = [_rod(c, (*points[k], 0.0155), (*points[k + 1], 0.0155), radii[k]) for k in range(5)]
    return Shape((0.06, 0.02, 0.015), [*geoms, _rod(t, (0.07, 0.026, 0.0155), (0.078, 0.034, 0.0155), 0.005)])


def drill(c: Rgb, t: Rgb) -> Shape:
    """A power drill, lying."""
    geoms = [_rod(c, (-0.035, 0, 0.02), (0.03, 0, 0.02), 0.019, "cylinder"), _rod(t, (0.03, 0, 0.02), (0.05, 0, 0.02), 0.012, "cylinder")]
    geoms += [_rod(SILVER, (0.05, 0, 0.02), (0.08, 0, 0.02), 0.003), _box(c, (-0.022, -0.035, 0.018), (0.014, 0.03, 0.013)), _box(t, (-0.02, -0.07, 0.018), (0.024, 0.012, 0.016))]
    return Shape((0.05, 0.04, 0.019), geoms)


def hammer(c: Rgb, t: Rgb) -> Shape:
    """A hammer, lying."""
    geoms = [_rod(c, (-0.075, 0, 0.014), (0.05, 0, 0.014), 0.0095), _box(t, (0.058, 0, 0.014), (0.012, 0.034, 0.012))]
    return Shape((0.07, 0.024, 0.013), [*geoms, _rod(t, (0.058, 0.03, 0.014), (0.058, 0.046, 0.014), 0.0135, "cylinder")])


def airplane(c: Rgb, t: Rgb) -> Shape:
    """A toy aeroplane."""
    geoms = [_egg(c, (0, 0, 0.024), (0.062, 0.0135, 0.0145)), _box(t, (0.006, 0, 0.024), (0.014, 0.062, 0.003))]
    geoms += [_box(t, (-0.05, 0, 0.03), (0.008, 0.024, 0.002)), _box(t, (-0.053, 0, 0.044), (0.008, 0.002, 0.015)), _egg(BLACK, (0.028, 0, 0.034), (0.012, 0.007, 0.006))]
    return Shape((0.05, 0.03, 0.018), [*geoms, *(_ball(BLACK, (x, y, 0.006), 0.006) for x, y in ((0.012, 0.02), (0.012, -0.02), (-0.045, 0)))])


def clamp(c: Rgb, t: Rgb) -> Shape:
    """A spring clamp, lying."""
    geoms = [_rod(c, (0.005, s * 0.006, 0.013), (-0.06, s * 0.03, 0.013), 0.009) for s in (1, -1)]
    geoms += [_rod(t, (0.005, s * 0.006, 0.013), (0.055, s * 0.02, 0.013), 0.009) for s in (1, -1)]
    return Shape((0.052, 0.026, 0.013), [*geoms, _rod(SILVER, (0.005, 0, 0), (0.005, 0, 0.026), 0.009, "cylinder")])


def car(c: Rgb, t: Rgb) -> Shape:
    """A toy car."""
    geoms = [_box(c, (0, 0, 0.021), (0.046, 0.022, 0.011)), _box(c, (-0.006, 0, 0.04), (0.024, 0.019, 0.01)), _box(WHITE, (-0.006, 0, 0.04), (0.0245, 0.016, 0.007))]
    wheels = [_rod(t, (x, s * 0.018, 0.012), (x, s * 0.026, 0.012), 0.012, "cylinder") for x in (0.028, -0.028) for s in (1, -1)]
    return Shape((0.044, 0.022, 0.024), geoms + wheels)


def mushroom(c: Rgb, t: Rgb) -> Shape:
    """A toadstool."""
    cap = ((0.012, 0.036), (0.036, 0.038), (0.034, 0.05), (0.024, 0.064), (0.01, 0.071))
    dots = [_ball(t, (x, y, z), 0.006) for x, y, z in ((0.026, 0.004, 0.056), (0.005, 0.027, 0.055), (-0.02, -0.018, 0.056), (0.008, -0.014, 0.067), (-0.016, 0.016, 0.06))]
    return Shape((0.026, 0.026, 0.034), [lathe(t, (0.017, 0), (0.013, 0.04)), lathe(c, *cap), *dots], round=True)


_BUILDERS: dict[str, Callable[[Rgb, Rgb], Shape]] = {
    f.__name__: f
    for f in (
        can, short_can, bottle, cup, cube, brick, apple, pear, lemon, ball, bar, long_box, carton, carton_box, duck,
        horse, rhino, elephant, camel, penguin, cone, banana, drill, hammer, airplane, clamp, car, mushroom,
    )
}  # fmt: skip


@cache
def shape_of(item: Item) -> Shape:
    """The shape of an item in its colours."""
    return _BUILDERS[item.shape](item.color, item.color2)


def container_parts(shape: str, color: Rgb) -> tuple[list[Geom], list[Geom]]:
    """Visual and collision geoms of a container, in the frame of its bottom centre."""
    dark: Rgb = (color[0] * 0.7, color[1] * 0.7, color[2] * 0.7)
    if shape == "plate":
        seen = [lathe(color, (0.055, 0), (0.06, 0.004), (0.094, 0.015), (0.095, 0.018), (0.088, 0.0165), (0.062, 0.007)), _disc(dark, 0, 0.0075, 0.0605)]
        return seen, [_disc(color, 0, 0.006, 0.066), *_wall(0.080, 0.0045, 0.0065, 0.019, 0.38)]
    if shape == "small_plate":
        seen = [lathe(color, (0.045, 0), (0.05, 0.004), (0.074, 0.013), (0.075, 0.016), (0.069, 0.0145), (0.05, 0.007)), _disc(dark, 0, 0.0075, 0.0485)]
        return seen, [_disc(color, 0, 0.006, 0.053), *_wall(0.063, 0.0035, 0.0065, 0.013, 0.38)]
    if shape == "bowl":
        seen = [lathe(color, (0.04, 0), (0.045, 0.003), (0.072, 0.022), (0.088, 0.048), (0.090, 0.051), (0.084, 0.049), (0.066, 0.024), (0.042, 0.008))]
        return seen, [_disc(color, 0, 0.007, 0.055), *_wall(0.074, 0.026, 0.004, 0.026, 0.95)]
    if shape == "mug":
        seen = [lathe(color, (0.052, 0), (0.056, 0.003), (0.058, 0.07), (0.056, 0.072), (0.053, 0.07), (0.051, 0.008))]
        handle = [(0.056, 0.058), (0.078, 0.056), (0.086, 0.038), (0.078, 0.02), (0.056, 0.016)]
        seen += [_rod(dark, (0, -a[0], a[1]), (0, -b[0], b[1]), 0.006) for a, b in zip(handle, handle[1:], strict=False)]
        return seen, [_disc(color, 0, 0.007, 0.055), *_wall(0.0555, 0.036, 0.0025, 0.036, pi / 2), _box(color, (0, -0.072, 0.037), (0.006, 0.015, 0.025))]
    tray = [_box(color, (0, 0, 0.004), (0.066, 0.052, 0.004))]
    tray += [_box(dark, (s * 0.068, 0, 0.01), (0.003, 0.058, 0.01)) for s in (1, -1)]
    tray += [_box(dark, (0, s * 0.055, 0.01), (0.066, 0.003, 0.01)) for s in (1, -1)]
    return tray, tray


BOX_INSIDE: Vec = (0.060, 0.066, 0.074)
"""Half sizes (x, y) and depth of the storage box, m. Its lid slides along y."""
BOX_WALL, LID_TRAVEL = 0.005, 0.130
BOX_COLOR: Rgb = (0.36, 0.26, 0.20)
LID_COLOR: Rgb = (0.86, 0.70, 0.46)


def box_parts() -> tuple[list[Geom], list[Geom]]:
    """The storage box and its lid, all of it seen and touched. The box in the frame of its bottom centre; the lid in
    that of its closed place on the rim, with a bar across it to push or pull."""
    (x, y, depth), w = BOX_INSIDE, BOX_WALL
    height = (depth + w) / 2
    box = [_box(BOX_COLOR, (0, 0, w / 2), (x + 2 * w, y + 2 * w, w / 2))]
    box += [_box(BOX_COLOR, (s * (x + w), 0, height), (w, y + 2 * w, height)) for s in (1, -1)]
    box += [_box(BOX_COLOR, (0, s * (y + w), height), (x, w, height)) for s in (1, -1)]
    lid = [_box(LID_COLOR, (0, 0, 0.005), (x + 2 * w, y + 2 * w, 0.004))]
    return box, [*lid, _box(BOX_COLOR, (0, 0, 0.026), (0.035, 0.007, 0.017))]


def _wall(radius: float, half_height: float, half_thick: float, z: float, slope: float, n: int = 12) -> list[Geom]:
    """A ring of boxes: `slope` is its angle (rad) to the table, pi / 2 = upright."""
    half_width = radius * 1.02 * sin(pi / n) + half_thick
    ring = []
    for k in range(n):
        a = 2 * pi * k / n
        geom = _box(RED, (radius * cos(a), radius * sin(a), z), (half_thick, half_width, half_height), (0, pi / 2 - slope, 0))
        quat = _yaw_then(a, pi / 2 - slope)
        ring.append(Geom("box", RED, {"pos": geom.attributes["pos"], "size": geom.attributes["size"], "quat": quat}))
    return ring


def _yaw_then(yaw: float, pitch: float) -> str:
    """Quaternion (w, x, y, z) of a pitch about y, then a yaw about z."""
    cy, sy, cp, sp = cos(yaw / 2), sin(yaw / 2), cos(pitch / 2), sin(pitch / 2)
    return numbers(cy * cp, -sy * sp, cy * sp, sy * cp)
