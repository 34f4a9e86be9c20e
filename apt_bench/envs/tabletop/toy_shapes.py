"""The shapes of the items that are toy animals, tools and vehicles."""

from __future__ import annotations

from apt_bench.envs.tabletop.catalog import BLACK, ORANGE, SILVER, WHITE, Rgb
from apt_bench.envs.tabletop.primitives import Shape, ball, box, egg, eyes, lathe, legs, rod


def duck(c: Rgb, t: Rgb) -> Shape:
    """A rubber duck."""
    geoms = [egg(c, (-0.004, 0, 0.022), (0.038, 0.027, 0.022)), ball(c, (0.018, 0, 0.052), 0.0195)]
    geoms += [
        egg(t, (0.041, 0, 0.05), (0.011, 0.009, 0.004)),
        egg(c, (-0.037, 0, 0.035), (0.014, 0.012, 0.007), (0, 0.6, 0)),
    ]
    return Shape((0.036, 0.022, 0.034), geoms + eyes(0.033, 0.009, 0.058))


def horse(c: Rgb, t: Rgb) -> Shape:
    """A striped horse: a zebra."""
    torso = [
        rod((c, t)[k % 2], (-0.034 + 0.0097 * k, 0, 0.05), (-0.0243 + 0.0097 * k, 0, 0.05), 0.018, "cylinder")
        for k in range(7)
    ]
    legs = [
        rod(
            (c, t)[i],
            (sx * 0.026, sy * 0.011, 0.002 + i * 0.019),
            (sx * 0.026, sy * 0.011, 0.021 + i * 0.022),
            0.006,
            "cylinder",
        )
        for sx in (1, -1)
        for sy in (1, -1)
        for i in (0, 1)
    ]
    neck = [
        rod(
            (t, c)[k % 2],
            (0.030 + 0.004 * k, 0, 0.058 + 0.009 * k),
            (0.034 + 0.004 * k, 0, 0.067 + 0.009 * k),
            0.011 - 0.0005 * k,
            "cylinder",
        )
        for k in range(4)
    ]
    head = [
        egg(c, (0.056, 0, 0.092), (0.017, 0.009, 0.010), (0, 0.5, 0)),
        ball(t, (0.069, 0, 0.085), 0.0075),
    ]
    tail = [rod(t, (-0.035, 0, 0.058), (-0.047, 0, 0.036), 0.003)]
    return Shape((0.042, 0.0175, 0.034), torso + legs + neck + head + tail)


def rhino(c: Rgb, t: Rgb) -> Shape:
    """A rhinoceros with two horns."""
    geoms = [egg(c, (-0.008, 0, 0.042), (0.042, 0.0225, 0.025)), *legs(c, 0.024, 0.011, 0.03, 0.009)]
    geoms += [egg(c, (0.042, 0, 0.04), (0.024, 0.014, 0.015), (0, 0.35, 0))]
    geoms += [
        lathe(t, (0.006, 0), (0.0005, 0.026), pos=(0.058, 0, 0.044), euler=(0, 0.3, 0)),
        lathe(t, (0.005, 0), (0.0005, 0.014), pos=(0.044, 0, 0.052)),
    ]
    geoms += [egg(c, (0.028, s * 0.013, 0.06), (0.004, 0.004, 0.008)) for s in (1, -1)]
    return Shape((0.046, 0.021, 0.033), geoms)


def elephant(c: Rgb, t: Rgb) -> Shape:
    """An elephant."""
    geoms = [egg(c, (-0.01, 0, 0.048), (0.036, 0.024, 0.026)), *legs(c, 0.02, 0.012, 0.034, 0.0095)]
    geoms += [ball(c, (0.03, 0, 0.062), 0.02), *eyes(0.046, 0.009, 0.068)]
    geoms += [egg(c, (0.022, s * 0.025, 0.062), (0.016, 0.003, 0.02), (0, 0, s * 0.35)) for s in (1, -1)]
    geoms += [
        rod(c, (0.046, 0, 0.058), (0.056, 0, 0.034), 0.0065),
        rod(c, (0.056, 0, 0.034), (0.066, 0, 0.022), 0.005),
    ]
    geoms += [rod(t, (0.044, s * 0.009, 0.05), (0.06, s * 0.01, 0.043), 0.0025) for s in (1, -1)]
    return Shape((0.042, 0.022, 0.038), geoms)


def camel(c: Rgb, t: Rgb) -> Shape:
    """A camel with two humps."""
    geoms = [egg(c, (-0.006, 0, 0.05), (0.038, 0.018, 0.017)), *legs(c, 0.024, 0.010, 0.044, 0.0055)]
    geoms += [ball(c, (x, 0, 0.064), 0.0135) for x in (-0.024, 0.008)]
    geoms += [
        rod(c, (0.03, 0, 0.05), (0.05, 0, 0.086), 0.0075),
        egg(c, (0.058, 0, 0.09), (0.015, 0.008, 0.008), (0, 0.2, 0)),
    ]
    return Shape((0.042, 0.0175, 0.036), geoms)


def penguin(c: Rgb, t: Rgb) -> Shape:
    """A penguin, upright."""
    geoms = [egg(c, (0, 0, 0.042), (0.026, 0.027, 0.04)), egg(t, (0.008, 0, 0.038), (0.0215, 0.021, 0.032))]
    geoms += [ball(c, (0, 0, 0.083), 0.019), egg(ORANGE, (0.022, 0, 0.081), (0.01, 0.005, 0.004))]
    geoms += [ball(WHITE, (0.0135, s * 0.009, 0.088), 0.005) for s in (1, -1)]
    geoms += [egg(ORANGE, (0.012, s * 0.012, 0.004), (0.017, 0.009, 0.004)) for s in (1, -1)]
    geoms += [egg(c, (-0.002, s * 0.029, 0.045), (0.008, 0.005, 0.024), (s * 0.25, 0, 0)) for s in (1, -1)]
    return Shape((0.0235, 0.024, 0.048), geoms)


def banana(c: Rgb, t: Rgb) -> Shape:
    """A banana, lying."""
    points = [
        (-0.066, 0.022),
        (-0.046, 0.004),
        (-0.016, -0.008),
        (0.016, -0.008),
        (0.046, 0.004),
        (0.066, 0.022),
    ]
    radii = [0.011, 0.0145, 0.0155, 0.0145, 0.011]
    geoms = [rod(c, (*points[k], 0.0155), (*points[k + 1], 0.0155), radii[k]) for k in range(5)]
    return Shape((0.06, 0.02, 0.015), [*geoms, rod(t, (0.07, 0.026, 0.0155), (0.078, 0.034, 0.0155), 0.005)])


def drill(c: Rgb, t: Rgb) -> Shape:
    """A power drill, lying."""
    geoms = [
        rod(c, (-0.035, 0, 0.02), (0.03, 0, 0.02), 0.019, "cylinder"),
        rod(t, (0.03, 0, 0.02), (0.05, 0, 0.02), 0.012, "cylinder"),
    ]
    geoms += [
        rod(SILVER, (0.05, 0, 0.02), (0.08, 0, 0.02), 0.003),
        box(c, (-0.022, -0.035, 0.018), (0.014, 0.03, 0.013)),
        box(t, (-0.02, -0.07, 0.018), (0.024, 0.012, 0.016)),
    ]
    return Shape((0.05, 0.04, 0.019), geoms)


def hammer(c: Rgb, t: Rgb) -> Shape:
    """A hammer, lying."""
    geoms = [
        rod(c, (-0.075, 0, 0.014), (0.05, 0, 0.014), 0.0095),
        box(t, (0.058, 0, 0.014), (0.012, 0.034, 0.012)),
    ]
    return Shape(
        (0.07, 0.024, 0.013),
        [*geoms, rod(t, (0.058, 0.03, 0.014), (0.058, 0.046, 0.014), 0.0135, "cylinder")],
    )


def airplane(c: Rgb, t: Rgb) -> Shape:
    """A toy aeroplane."""
    geoms = [
        egg(c, (0, 0, 0.024), (0.062, 0.0135, 0.0145)),
        box(t, (0.006, 0, 0.024), (0.014, 0.062, 0.003)),
    ]
    geoms += [
        box(t, (-0.05, 0, 0.03), (0.008, 0.024, 0.002)),
        box(t, (-0.053, 0, 0.044), (0.008, 0.002, 0.015)),
        egg(BLACK, (0.028, 0, 0.034), (0.012, 0.007, 0.006)),
    ]
    return Shape(
        (0.05, 0.03, 0.018),
        [
            *geoms,
            *(ball(BLACK, (x, y, 0.006), 0.006) for x, y in ((0.012, 0.02), (0.012, -0.02), (-0.045, 0))),
        ],
    )


def clamp(c: Rgb, t: Rgb) -> Shape:
    """A spring clamp, lying."""
    geoms = [rod(c, (0.005, s * 0.006, 0.013), (-0.06, s * 0.03, 0.013), 0.009) for s in (1, -1)]
    geoms += [rod(t, (0.005, s * 0.006, 0.013), (0.055, s * 0.02, 0.013), 0.009) for s in (1, -1)]
    return Shape(
        (0.052, 0.026, 0.013), [*geoms, rod(SILVER, (0.005, 0, 0), (0.005, 0, 0.026), 0.009, "cylinder")]
    )


def car(c: Rgb, t: Rgb) -> Shape:
    """A toy car."""
    geoms = [
        box(c, (0, 0, 0.021), (0.046, 0.022, 0.011)),
        box(c, (-0.006, 0, 0.04), (0.024, 0.019, 0.01)),
        box(WHITE, (-0.006, 0, 0.04), (0.0245, 0.016, 0.007)),
    ]
    wheels = [
        rod(t, (x, s * 0.018, 0.012), (x, s * 0.026, 0.012), 0.012, "cylinder")
        for x in (0.028, -0.028)
        for s in (1, -1)
    ]
    return Shape((0.044, 0.022, 0.024), geoms + wheels)
