"""The items and containers of the tabletop suites, and which of them occur in training ("seen").

An item is a shape in one or two colours with a few aliases. Two items never share a scene where they have the same
`appearance` (colour and silhouette), or where an alias of one also fits the other (`also_fits`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Rgb = tuple[float, float, float]
Split = Literal["seen", "unseen"]

RED, GREEN, BLUE, YELLOW = (0.80, 0.08, 0.08), (0.12, 0.58, 0.20), (0.10, 0.28, 0.82), (0.96, 0.80, 0.10)
ORANGE, PURPLE, PINK, WHITE = (0.98, 0.48, 0.05), (0.48, 0.16, 0.66), (0.96, 0.50, 0.68), (0.94, 0.94, 0.92)
BLACK, GREY, SILVER, BROWN = (0.07, 0.07, 0.08), (0.45, 0.46, 0.50), (0.74, 0.76, 0.79), (0.55, 0.34, 0.16)
LIME, TEAL, SAND, SKY = (0.62, 0.82, 0.12), (0.05, 0.52, 0.52), (0.84, 0.66, 0.38), (0.42, 0.60, 0.80)


@dataclass(frozen=True)
class Item:
    """A movable object. `shape` names a function in item_shapes.py; `color2` is the colour of its details."""

    name: str
    shape: str
    color: Rgb
    color2: Rgb
    aliases: tuple[str, ...]
    split: Split
    appearance: str
    target: bool = True  # False: only a distractor, which no instruction names
    also_fits: tuple[str, ...] = ()  # aliases of other items that fit this one too


@dataclass(frozen=True)
class Container:
    """A place for items.

    Attributes:
        radius: Outer radius (m).
        inside: Largest horizontal distance (m) between the centres of an item on or in it and of the container.
        height: Height of the rim (m).
        target: False where it is only a distractor, which no instruction names.
    """

    name: str
    shape: str
    color: Rgb
    split: Split
    radius: float
    inside: float
    height: float
    target: bool = True

    @property
    def predicate(self) -> str:
        """`in` for a bowl, pot or mug, `on` for others."""
        return "in" if self.shape in ("bowl", "small_bowl", "pot", "mug") else "on"


def _item(
    name: str, shape: str, color: Rgb, color2: Rgb, aliases: str, appearance: str = "", also_fits: str = ""
) -> Item:
    """An item of the seen split. `aliases` and `also_fits` are separated by ", "."""
    names, others = (tuple(w for w in text.split(", ") if w) for text in (aliases, also_fits))
    return Item(name, shape, color, color2, names, "seen", appearance or name, True, others)


_SEEN = [
    _item("red_can", "can", RED, WHITE, "red can, red soda can, cola can, red drink"),
    _item("blue_can", "can", BLUE, WHITE, "blue can, blue soda can, blue drink"),
    _item("silver_can", "can", SILVER, BLUE, "silver can, silver soda can, silver drink"),
    _item("black_can", "can", BLACK, RED, "black can, black soda can, black drink"),
    _item("red_cube", "cube", RED, RED, "red cube, red block, red toy block"),
    _item("green_cube", "cube", GREEN, GREEN, "green cube, green block, green toy block"),
    _item("blue_cube", "cube", BLUE, BLUE, "blue cube, blue block, blue toy block"),
    _item("yellow_cube", "cube", YELLOW, YELLOW, "yellow cube, yellow block, yellow toy block"),
    _item("wooden_block", "brick", SAND, BROWN, "wooden block, brown block, piece of wood"),
    _item("apple", "apple", RED, BROWN, "apple, red apple, red fruit", "red round"),
    _item("pear", "pear", LIME, BROWN, "pear, green pear, green fruit"),
    _item("orange", "apple", ORANGE, GREEN, "orange, orange fruit, round orange fruit", "orange round"),
    _item(
        "lemon", "lemon", YELLOW, YELLOW, "lemon, yellow lemon, yellow citrus fruit", also_fits="yellow fruit"
    ),
    _item("white_cup", "cup", WHITE, SKY, "white cup, paper cup, white paper cup"),
    _item("zebra", "horse", WHITE, BLACK, "zebra, toy zebra, striped animal"),
    _item("rhino", "rhino", GREY, WHITE, "rhino, rhinoceros, grey rhino", "grey animal"),
    _item("yellow_bottle", "bottle", YELLOW, WHITE, "yellow bottle, yellow drink, lemonade bottle"),
    _item("green_bottle", "bottle", GREEN, YELLOW, "green bottle, green drink, green drink bottle"),
    _item("soap", "bar", PINK, WHITE, "soap, bar of soap, pink soap"),
    _item("toothpaste", "long_box", WHITE, RED, "toothpaste, toothpaste box, box of toothpaste"),
    _item("milk", "carton", WHITE, BLUE, "milk carton, carton of milk, white carton", also_fits="white box"),
    _item("duck", "duck", YELLOW, ORANGE, "duck, rubber duck, yellow duck"),
    _item("purple_ball", "ball", PURPLE, PURPLE, "purple ball, purple sphere"),
]
_SEEN_DISTRACTORS = [
    _item("banana", "banana", YELLOW, BROWN, "banana", also_fits="yellow citrus fruit"),
    _item("drill", "drill", TEAL, BLACK, "drill"),
    _item("hammer", "hammer", BROWN, SILVER, "hammer"),
    _item("airplane", "airplane", SKY, RED, "toy airplane"),
    _item("clamp", "clamp", BLACK, ORANGE, "clamp"),
    _item("tea_box", "carton_box", GREEN, YELLOW, "tea box", also_fits="green block"),
]
_UNSEEN = [
    _item("orange_can", "can", ORANGE, WHITE, "orange can, orange soda can, orange soft drink"),
    _item("green_can", "can", GREEN, SILVER, "green can, green soda can, green soft drink"),
    _item("soup_can", "short_can", WHITE, RED, "soup can, tomato soup can, short can"),
    _item("blue_ball", "ball", BLUE, BLUE, "blue ball, blue sphere"),
    _item("elephant", "elephant", SKY, WHITE, "elephant, toy elephant, blue elephant"),
    _item("penguin", "penguin", BLACK, WHITE, "penguin, toy penguin, black and white bird"),
    _item("lime", "lemon", GREEN, GREEN, "lime, green lime, green citrus fruit", also_fits="green fruit"),
    _item("purple_bottle", "bottle", PURPLE, WHITE, "purple bottle, grape juice, purple drink"),
    _item("pink_cube", "cube", PINK, PINK, "pink cube, pink block, pink toy block"),
    _item("cone", "cone", ORANGE, WHITE, "cone, traffic cone, orange cone"),
]
_UNSEEN_DISTRACTORS = [
    _item("camel", "camel", SAND, SAND, "camel"),
    _item("car", "car", RED, BLACK, "toy car"),
    _item("mushroom", "mushroom", RED, WHITE, "mushroom"),
]

ITEMS: dict[str, Item] = {
    item.name: item
    for item in (
        *_SEEN,
        *(replace(i, target=False) for i in _SEEN_DISTRACTORS),
        *(replace(i, split="unseen") for i in _UNSEEN),
        *(replace(i, split="unseen", target=False) for i in _UNSEEN_DISTRACTORS),
    )
}

CONTAINERS: dict[str, Container] = {
    c.name: c
    for c in (
        Container("plate", "plate", (0.90, 0.87, 0.80), "seen", radius=0.095, inside=0.085, height=0.018),
        Container("bowl", "bowl", (0.16, 0.44, 0.62), "seen", radius=0.090, inside=0.070, height=0.050),
        Container("mug", "mug", (0.72, 0.20, 0.24), "unseen", radius=0.062, inside=0.045, height=0.070),
        Container("tray", "tray", (0.30, 0.30, 0.33), "seen", 0.085, 0.060, 0.020, target=False),
        Container("red plate", "small_plate", (0.80, 0.16, 0.14), "seen", 0.075, 0.065, 0.016),
        Container("blue plate", "small_plate", (0.16, 0.34, 0.80), "seen", 0.075, 0.065, 0.016),
        Container("white bowl", "small_bowl", (0.93, 0.92, 0.88), "seen", 0.063, 0.046, 0.035),
        Container("pot", "pot", (0.45, 0.55, 0.40), "seen", 0.082, 0.050, 0.058),
    )
}
"""`tray` occurs in training scenes as a distractor. The coloured plates belong to the composite suite."""

EXTRA_CONTAINERS = ("white bowl", "pot")
"""Containers with small openings, for training on more containers. No shipped suite has them."""

STORED = ("red_cube", "yellow_cube", "lemon", "soap", "orange")
"""Items that composite training puts into the storage box."""
PLATED = ("green_cube", "blue_cube", "apple", "purple_ball", "wooden_block", "rhino")
"""Items that composite training puts on a plate. These and those of `STORED` fit into the closed box."""


def conflict(a: Item, b: Item) -> bool:
    """Return whether two items look alike, or an alias of one fits the other."""
    names, others = set(a.aliases), set(b.aliases)
    return bool(a.appearance == b.appearance or names & {*others, *b.also_fits} or others & {*a.also_fits})


def items(split: Split, target: bool) -> list[Item]:
    """The targets of a split, or its distractors, in the order of the catalogue."""
    return [i for i in ITEMS.values() if i.split == split and i.target == target]
