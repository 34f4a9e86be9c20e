"""Shapes of the plates, bowls, pot, mug, tray and storage box: visual and collision geoms."""

from __future__ import annotations

from itertools import pairwise
from math import cos, pi, sin

from apt_bench.envs.tabletop.catalog import RED, Rgb
from apt_bench.envs.tabletop.primitives import Geom, Vec, box, disc, lathe, numbers, rod

BOX_INSIDE: Vec = (0.060, 0.066, 0.074)
"""Inner half sizes (x, y) and depth of the storage box in m. Its lid slides along y."""
BOX_WALL, LID_TRAVEL = 0.005, 0.130
BOX_COLOR: Rgb = (0.36, 0.26, 0.20)
LID_COLOR: Rgb = (0.86, 0.70, 0.46)


def container_parts(shape: str, color: Rgb) -> tuple[list[Geom], list[Geom]]:
    """Return the visual and the collision geoms of a container, in the frame of its bottom centre."""
    dark: Rgb = (color[0] * 0.7, color[1] * 0.7, color[2] * 0.7)
    if shape == "plate":
        seen = [
            lathe(
                color,
                (0.055, 0),
                (0.06, 0.004),
                (0.094, 0.015),
                (0.095, 0.018),
                (0.088, 0.0165),
                (0.062, 0.007),
            ),
            disc(dark, 0, 0.0075, 0.0605),
        ]
        return seen, [disc(color, 0, 0.006, 0.066), *_wall(0.080, 0.0045, 0.0065, 0.019, 0.38)]
    if shape == "small_plate":
        seen = [
            lathe(
                color,
                (0.045, 0),
                (0.05, 0.004),
                (0.074, 0.013),
                (0.075, 0.016),
                (0.069, 0.0145),
                (0.05, 0.007),
            ),
            disc(dark, 0, 0.0075, 0.0485),
        ]
        return seen, [disc(color, 0, 0.006, 0.053), *_wall(0.063, 0.0035, 0.0065, 0.013, 0.38)]
    if shape in ("bowl", "small_bowl"):
        scale = 1.0 if shape == "bowl" else 0.7
        profile = (
            (0.04, 0),
            (0.045, 0.003),
            (0.072, 0.022),
            (0.088, 0.048),
            (0.090, 0.051),
            (0.084, 0.049),
            (0.066, 0.024),
            (0.042, 0.008),
        )
        seen = [lathe(color, *((r * scale, z * scale) for r, z in profile))]
        wall = _wall(0.074 * scale, 0.026 * scale, 0.004, 0.026 * scale, 0.95)
        return seen, [disc(color, 0, 0.007 * scale, 0.055 * scale), *wall]
    if shape == "pot":
        seen = [
            lathe(
                color,
                (0.058, 0),
                (0.062, 0.003),
                (0.064, 0.056),
                (0.066, 0.058),
                (0.060, 0.056),
                (0.057, 0.007),
            )
        ]
        handles = [box(dark, (0, s * 0.072, 0.046), (0.018, 0.009, 0.004)) for s in (1, -1)]
        return [*seen, *handles], [
            disc(color, 0, 0.006, 0.061),
            *_wall(0.061, 0.029, 0.003, 0.029, pi / 2),
            *handles,
        ]
    if shape == "mug":
        seen = [
            lathe(
                color,
                (0.052, 0),
                (0.056, 0.003),
                (0.058, 0.07),
                (0.056, 0.072),
                (0.053, 0.07),
                (0.051, 0.008),
            )
        ]
        handle = [(0.056, 0.058), (0.078, 0.056), (0.086, 0.038), (0.078, 0.02), (0.056, 0.016)]
        seen += [rod(dark, (0, -a[0], a[1]), (0, -b[0], b[1]), 0.006) for a, b in pairwise(handle)]
        return seen, [
            disc(color, 0, 0.007, 0.055),
            *_wall(0.0555, 0.036, 0.0025, 0.036, pi / 2),
            box(color, (0, -0.072, 0.037), (0.006, 0.015, 0.025)),
        ]
    tray = [box(color, (0, 0, 0.004), (0.066, 0.052, 0.004))]
    tray += [box(dark, (s * 0.068, 0, 0.01), (0.003, 0.058, 0.01)) for s in (1, -1)]
    tray += [box(dark, (0, s * 0.055, 0.01), (0.066, 0.003, 0.01)) for s in (1, -1)]
    return tray, tray


def box_parts() -> tuple[list[Geom], list[Geom]]:
    """Return the geoms of the storage box and of its lid, which are both visual and collision geoms.

    The box's frame is its bottom centre. The lid's frame is its closed position on the rim; it has a bar across it, to
    push or pull it."""
    (x, y, depth), w = BOX_INSIDE, BOX_WALL
    height = (depth + w) / 2
    walls = [box(BOX_COLOR, (0, 0, w / 2), (x + 2 * w, y + 2 * w, w / 2))]
    walls += [box(BOX_COLOR, (s * (x + w), 0, height), (w, y + 2 * w, height)) for s in (1, -1)]
    walls += [box(BOX_COLOR, (0, s * (y + w), height), (x, w, height)) for s in (1, -1)]
    lid = [box(LID_COLOR, (0, 0, 0.005), (x + 2 * w, y + 2 * w, 0.004))]
    return walls, [*lid, box(BOX_COLOR, (0, 0, 0.026), (0.035, 0.007, 0.017))]


def _wall(
    radius: float, half_height: float, half_thick: float, z: float, slope: float, n: int = 12
) -> list[Geom]:
    """Return a ring of boxes. `slope`: angle (rad) of its wall to the table; pi / 2 is upright."""
    half_width = radius * 1.02 * sin(pi / n) + half_thick
    ring = []
    for k in range(n):
        a = 2 * pi * k / n
        geom = box(
            RED,
            (radius * cos(a), radius * sin(a), z),
            (half_thick, half_width, half_height),
            (0, pi / 2 - slope, 0),
        )
        quat = _yaw_then(a, pi / 2 - slope)
        ring.append(
            Geom("box", RED, {"pos": geom.attributes["pos"], "size": geom.attributes["size"], "quat": quat})
        )
    return ring


def _yaw_then(yaw: float, pitch: float) -> str:
    """Quaternion (w, x, y, z) of a pitch about y, then a yaw about z."""
    cy, sy, cp, sp = cos(yaw / 2), sin(yaw / 2), cos(pitch / 2), sin(pitch / 2)
    return numbers(cy * cp, -sy * sp, cy * sp, sy * cp)
