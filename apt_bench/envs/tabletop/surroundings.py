"""Tables, floors, backgrounds and lights: two sets that occur in training (`seen`) and eight that do not."""

from __future__ import annotations

from dataclasses import dataclass

from apt_bench.envs.tabletop.catalog import Rgb, Split


@dataclass(frozen=True)
class Surroundings:
    """Table, floor, background and light.

    Attributes:
        table: Pattern and its two colours (see `textures`).
        floor: Pattern and its two colours.
        sky: Two colours of the background's gradient.
        light: Scale of the brightness.
        warmth: Shift of the light towards red (> 0) or blue (< 0).
        azimuth: Direction from which the light comes, in degrees.
    """

    name: str
    split: Split
    table: tuple[str, Rgb, Rgb]
    floor: tuple[str, Rgb, Rgb]
    sky: tuple[Rgb, Rgb]
    light: float
    warmth: float
    azimuth: int


_OAK, _OAK2 = (0.80, 0.62, 0.42), (0.70, 0.51, 0.32)
SURROUNDINGS: dict[str, Surroundings] = {
    s.name: s
    for s in (
        Surroundings(
            "oak",
            "seen",
            ("wood", _OAK, _OAK2),
            ("tiles", (0.55, 0.56, 0.58), (0.47, 0.48, 0.50)),
            ((0.82, 0.87, 0.92), (0.62, 0.68, 0.74)),
            1.0,
            0.0,
            40,
        ),
        Surroundings(
            "maple",
            "seen",
            ("wood", (0.88, 0.76, 0.58), (0.80, 0.66, 0.47)),
            ("flat", (0.42, 0.38, 0.35), (0.42, 0.38, 0.35)),
            ((0.90, 0.88, 0.84), (0.72, 0.70, 0.66)),
            1.05,
            0.05,
            -50,
        ),
        Surroundings(
            "marble",
            "unseen",
            ("noise", (0.90, 0.90, 0.91), (0.74, 0.75, 0.79)),
            ("tiles", (0.20, 0.22, 0.26), (0.26, 0.28, 0.33)),
            ((0.35, 0.42, 0.55), (0.20, 0.24, 0.33)),
            0.95,
            -0.06,
            80,
        ),
        Surroundings(
            "slate",
            "unseen",
            ("flat", (0.26, 0.29, 0.34), (0.26, 0.29, 0.34)),
            ("wood", (0.62, 0.46, 0.32), (0.54, 0.38, 0.25)),
            ((0.93, 0.78, 0.60), (0.80, 0.56, 0.42)),
            1.15,
            0.12,
            -85,
        ),
        Surroundings(
            "checkers",
            "unseen",
            ("tiles", (0.93, 0.91, 0.86), (0.66, 0.76, 0.72)),
            ("flat", (0.33, 0.45, 0.36), (0.33, 0.45, 0.36)),
            ((0.60, 0.80, 0.64), (0.34, 0.56, 0.42)),
            0.95,
            0.0,
            130,
        ),
        Surroundings(
            "walnut",
            "unseen",
            ("wood", (0.42, 0.27, 0.17), (0.33, 0.20, 0.12)),
            ("noise", (0.76, 0.72, 0.62), (0.64, 0.60, 0.50)),
            ((0.62, 0.60, 0.70), (0.40, 0.38, 0.50)),
            1.2,
            0.06,
            -130,
        ),
        Surroundings(
            "sage_cloth",
            "unseen",
            ("stripes", (0.62, 0.70, 0.58), (0.54, 0.63, 0.51)),
            ("tiles", (0.70, 0.62, 0.52), (0.58, 0.50, 0.41)),
            ((0.98, 0.94, 0.82), (0.90, 0.80, 0.62)),
            1.0,
            0.10,
            165,
        ),
        Surroundings(
            "rose_cloth",
            "unseen",
            ("flat", (0.80, 0.62, 0.62), (0.80, 0.62, 0.62)),
            ("stripes", (0.36, 0.36, 0.44), (0.30, 0.30, 0.38)),
            ((0.44, 0.46, 0.52), (0.26, 0.27, 0.32)),
            0.8,
            0.04,
            10,
        ),
        Surroundings(
            "night",
            "unseen",
            ("noise", (0.50, 0.53, 0.60), (0.42, 0.45, 0.53)),
            ("flat", (0.10, 0.11, 0.16), (0.10, 0.11, 0.16)),
            ((0.08, 0.09, 0.18), (0.03, 0.03, 0.08)),
            0.62,
            -0.12,
            -20,
        ),
        Surroundings(
            "beach",
            "unseen",
            ("noise", (0.93, 0.85, 0.66), (0.86, 0.76, 0.55)),
            ("noise", (0.80, 0.72, 0.52), (0.72, 0.64, 0.45)),
            ((0.45, 0.72, 0.95), (0.70, 0.86, 0.98)),
            0.98,
            0.06,
            65,
        ),
    )
}


def surroundings(split: Split) -> list[Surroundings]:
    """Return the surroundings of a split."""
    return [s for s in SURROUNDINGS.values() if s.split == split]
