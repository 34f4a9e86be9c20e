"""The shapes of the items, made of primitives and small surfaces of revolution. Toys are in toy_shapes.py.

Visual and collision geoms differ on purpose. An item is rendered as about ten low-polygon geoms. It collides as one
box that is slightly narrower. Round objects therefore neither roll nor slip out of the gripper's 16 mm wide pads when
the grasp is off by a centimetre.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import pi

from apt_bench.envs.tabletop import toy_shapes as toys
from apt_bench.envs.tabletop.catalog import BROWN, SILVER, Item, Rgb
from apt_bench.envs.tabletop.primitives import Shape, ball, box, disc, egg, lathe, rod


def can(c: Rgb, t: Rgb) -> Shape:
    """A drink can."""
    return Shape(
        (0.0235, 0.0235, 0.05),
        [disc(c, 0.004, 0.094, 0.0295), disc(t, 0.038, 0.062, 0.0299), disc(SILVER, 0, 0.1, 0.026)],
        round=True,
    )


def short_can(c: Rgb, t: Rgb) -> Shape:
    """A soup can."""
    return Shape(
        (0.0245, 0.0245, 0.034),
        [disc(c, 0.004, 0.036, 0.0315), disc(t, 0.036, 0.063, 0.0315), disc(SILVER, 0, 0.068, 0.029)],
        round=True,
    )


def bottle(c: Rgb, t: Rgb) -> Shape:
    """A bottle with a label, neck and cap."""
    body = ((0.026, 0), (0.029, 0.004), (0.029, 0.066), (0.024, 0.082), (0.012, 0.096), (0.0105, 0.108))
    return Shape(
        (0.022, 0.022, 0.06),
        [lathe(c, *body), disc(t, 0.022, 0.05, 0.0296), disc(t, 0.108, 0.12, 0.013)],
        round=True,
    )


def cup(c: Rgb, t: Rgb) -> Shape:
    """A paper cup, empty."""
    body = ((0.021, 0), (0.030, 0.078), (0.032, 0.080), (0.028, 0.079), (0.020, 0.006))
    return Shape(
        (0.0225, 0.0225, 0.04), [lathe(c, *body), lathe(t, (0.0248, 0.03), (0.0278, 0.055))], round=True
    )


def cube(c: Rgb, t: Rgb) -> Shape:
    """A toy block."""
    return Shape((0.022, 0.022, 0.022), [box(c, (0, 0, 0.022), (0.022, 0.022, 0.022))])


def brick(c: Rgb, t: Rgb) -> Shape:
    """A longish block with dark end grain."""
    ends = [box(t, (s * 0.0455, 0, 0.02), (0.0015, 0.0185, 0.0185)) for s in (1, -1)]
    return Shape((0.047, 0.02, 0.02), [box(c, (0, 0, 0.02), (0.045, 0.02, 0.02)), *ends])


def apple(c: Rgb, t: Rgb) -> Shape:
    """A round fruit with a stem and a leaf."""
    body = (
        (0.006, 0.003),
        (0.019, 0.001),
        (0.029, 0.012),
        (0.033, 0.03),
        (0.030, 0.046),
        (0.020, 0.057),
        (0.008, 0.056),
        (0.002, 0.051),
    )
    return Shape(
        (0.0235, 0.0235, 0.029),
        [
            lathe(c, *body),
            rod(BROWN, (0, 0, 0.05), (0.004, 0.002, 0.07), 0.0022),
            egg((0.2, 0.5, 0.15), (0.014, 0.004, 0.066), (0.012, 0.006, 0.002), (0, -0.4, 0)),
        ],
        round=True,
    )


def pear(c: Rgb, t: Rgb) -> Shape:
    """A pear."""
    body = (
        (0.008, 0),
        (0.022, 0.003),
        (0.031, 0.018),
        (0.031, 0.032),
        (0.022, 0.052),
        (0.015, 0.068),
        (0.009, 0.076),
    )
    return Shape(
        (0.0225, 0.0225, 0.038),
        [lathe(c, *body), rod(t, (0, 0, 0.07), (0.006, 0, 0.092), 0.0025)],
        round=True,
    )


def lemon(c: Rgb, t: Rgb) -> Shape:
    """A lemon or a lime, lying."""
    body = (
        (0.003, -0.045),
        (0.008, -0.038),
        (0.019, -0.028),
        (0.026, -0.01),
        (0.026, 0.01),
        (0.019, 0.028),
        (0.008, 0.038),
        (0.003, 0.045),
    )
    return Shape((0.034, 0.021, 0.025), [lathe(c, *body, pos=(0, 0, 0.026), euler=(0, pi / 2, 0))])


def ball_(c: Rgb, t: Rgb) -> Shape:
    """A ball."""
    return Shape((0.0235, 0.0235, 0.031), [ball(c, (0, 0, 0.031), 0.031)], round=True)


def bar(c: Rgb, t: Rgb) -> Shape:
    """A bar of soap with a pale stamp."""
    geoms = [box(c, (0, 0, 0.015), (0.036, 0.025, 0.015)), egg(t, (0, 0, 0.0295), (0.026, 0.016, 0.003))]
    geoms += [rod(c, (s * 0.036, -0.012, 0.015), (s * 0.036, 0.012, 0.015), 0.013) for s in (1, -1)]
    return Shape((0.042, 0.025, 0.015), geoms)


def long_box(c: Rgb, t: Rgb) -> Shape:
    """A toothpaste box."""
    bands = [box(t, (x, 0, 0.02), (w, 0.0205, 0.0205)) for x, w in ((-0.05, 0.012), (0.02, 0.005))]
    return Shape((0.062, 0.02, 0.02), [box(c, (0, 0, 0.02), (0.062, 0.02, 0.02)), *bands])


def carton(c: Rgb, t: Rgb) -> Shape:
    """A milk carton with a gable."""
    slope = [box(c, (s * 0.0125, 0, 0.093), (0.0175, 0.025, 0.0015), (0, s * 0.82, 0)) for s in (1, -1)]
    return Shape(
        (0.025, 0.025, 0.055),
        [
            box(c, (0, 0, 0.04), (0.025, 0.025, 0.04)),
            box(t, (0, 0, 0.028), (0.0255, 0.0255, 0.013)),
            box(c, (0, 0, 0.087), (0.011, 0.0245, 0.008)),
            box(t, (0, 0, 0.11), (0.002, 0.025, 0.007)),
            *slope,
        ],
    )


def carton_box(c: Rgb, t: Rgb) -> Shape:
    """A tea box."""
    label = box(t, (0, 0, 0.035), (0.0405, 0.0265, 0.012))
    return Shape((0.04, 0.026, 0.03), [box(c, (0, 0, 0.03), (0.04, 0.026, 0.03)), label])


def cone(c: Rgb, t: Rgb) -> Shape:
    """A traffic cone."""
    geoms = [
        box(c, (0, 0, 0.004), (0.034, 0.034, 0.004)),
        lathe(c, (0.027, 0.008), (0.0055, 0.098), (0.003, 0.1)),
    ]
    geoms += [lathe(t, (0.0226, 0.03), (0.0179, 0.05)), lathe(t, (0.0145, 0.064), (0.0117, 0.076))]
    return Shape((0.022, 0.022, 0.05), geoms, round=True)


def mushroom(c: Rgb, t: Rgb) -> Shape:
    """A toadstool."""
    cap = ((0.012, 0.036), (0.036, 0.038), (0.034, 0.05), (0.024, 0.064), (0.01, 0.071))
    dots = [
        ball(t, (x, y, z), 0.006)
        for x, y, z in (
            (0.026, 0.004, 0.056),
            (0.005, 0.027, 0.055),
            (-0.02, -0.018, 0.056),
            (0.008, -0.014, 0.067),
            (-0.016, 0.016, 0.06),
        )
    ]
    return Shape(
        (0.026, 0.026, 0.034), [lathe(t, (0.017, 0), (0.013, 0.04)), lathe(c, *cap), *dots], round=True
    )


_BUILDERS: dict[str, Callable[[Rgb, Rgb], Shape]] = {
    f.__name__.rstrip("_"): f
    for f in (
        *(
            can,
            short_can,
            bottle,
            cup,
            cube,
            brick,
            apple,
            pear,
            lemon,
            ball_,
            bar,
            long_box,
            carton,
            carton_box,
        ),
        *(
            cone,
            mushroom,
            toys.duck,
            toys.horse,
            toys.rhino,
            toys.elephant,
            toys.camel,
            toys.penguin,
            toys.banana,
        ),
        *(toys.drill, toys.hammer, toys.airplane, toys.clamp, toys.car),
    )
}


@cache
def shape_of(item: Item) -> Shape:
    """Return the shape of an item in its colours."""
    return _BUILDERS[item.shape](item.color, item.color2)
