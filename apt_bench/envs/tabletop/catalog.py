"""What may stand on the table: items, containers, surroundings, and which of them training has seen.

An item is a shape in one or two colours with a few aliases. `look` is what a glance gives (colour and silhouette): two
items of one look, or of which an alias of one also fits the other (`also`), never share a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rgb = tuple[float, float, float]
Split = Literal["seen", "unseen"]

RED, GREEN, BLUE, YELLOW = (0.80, 0.08, 0.08), (0.12, 0.58, 0.20), (0.10, 0.28, 0.82), (0.96, 0.80, 0.10)
ORANGE, PURPLE, PINK, WHITE = (0.98, 0.48, 0.05), (0.48, 0.16, 0.66), (0.96, 0.50, 0.68), (0.94, 0.94, 0.92)
BLACK, GREY, SILVER, BROWN = (0.07, 0.07, 0.08), (0.45, 0.46, 0.50), (0.74, 0.76, 0.79), (0.55, 0.34, 0.16)
LIME, TEAL, SAND, SKY = (0.62, 0.82, 0.12), (0.05, 0.52, 0.52), (0.84, 0.66, 0.38), (0.42, 0.60, 0.80)


@dataclass(frozen=True)
class Item:
    """One movable thing. `shape` names a builder in shapes.py; `color2` is its trim."""

    name: str
    shape: str
    color: Rgb
    color2: Rgb
    aliases: tuple[str, ...]
    split: Split
    look: str
    target: bool = True  # False: stands there as a distractor, is never asked for
    also: tuple[str, ...] = ()  # aliases of other items that would fit this one too


@dataclass(frozen=True)
class Container:
    """Where things are put. `radius` (m) is its outer edge, `inside` (m) how far the item's centre may be from the
    container's to count as on or in it, `height` (m) its rim."""

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
        """`on` for flat things, `in` for hollow ones."""
        return "in" if self.shape in ("bowl", "mug") else "on"


def _item(name: str, shape: str, c1: Rgb, c2: Rgb, aliases: str, look: str = "", also: str = "") -> Item:
    split: Split = "seen"
    return Item(name, shape, c1, c2, tuple(aliases.split(", ")), split, look or name, True, _words(also))


def _words(text: str) -> tuple[str, ...]:
    return tuple(w for w in text.split(", ") if w)


def _with(items: list[Item], **change: object) -> list[Item]:
    from dataclasses import replace

    return [replace(i, **change) for i in items]  # type: ignore[arg-type]


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
    _item("lemon", "lemon", YELLOW, YELLOW, "lemon, yellow lemon, yellow citrus fruit", also="yellow fruit"),
    _item("white_cup", "cup", WHITE, SKY, "white cup, paper cup, white paper cup"),
    _item("zebra", "horse", WHITE, BLACK, "zebra, toy zebra, striped animal"),
    _item("rhino", "rhino", GREY, WHITE, "rhino, rhinoceros, grey rhino", "grey animal"),
    _item("yellow_bottle", "bottle", YELLOW, WHITE, "yellow bottle, yellow drink, lemonade bottle"),
    _item("green_bottle", "bottle", GREEN, YELLOW, "green bottle, green drink, green drink bottle"),
    _item("soap", "bar", PINK, WHITE, "soap, bar of soap, pink soap"),
    _item("toothpaste", "long_box", WHITE, RED, "toothpaste, toothpaste box, box of toothpaste"),
    _item("milk", "carton", WHITE, BLUE, "milk carton, carton of milk, white carton", also="white box"),
    _item("duck", "duck", YELLOW, ORANGE, "duck, rubber duck, yellow duck"),
    _item("purple_ball", "ball", PURPLE, PURPLE, "purple ball, purple sphere"),
]
_SEEN_DISTRACTORS = [
    _item("banana", "banana", YELLOW, BROWN, "banana", also="yellow citrus fruit"),
    _item("drill", "drill", TEAL, BLACK, "drill"),
    _item("hammer", "hammer", BROWN, SILVER, "hammer"),
    _item("airplane", "airplane", SKY, RED, "toy airplane"),
    _item("clamp", "clamp", BLACK, ORANGE, "clamp"),
    _item("tea_box", "carton_box", GREEN, YELLOW, "tea box", also="green block"),
]
_UNSEEN = [
    _item("orange_can", "can", ORANGE, WHITE, "orange can, orange soda can, orange soft drink"),
    _item("green_can", "can", GREEN, SILVER, "green can, green soda can, green soft drink"),
    _item("soup_can", "short_can", WHITE, RED, "soup can, tomato soup can, short can"),
    _item("blue_ball", "ball", BLUE, BLUE, "blue ball, blue sphere"),
    _item("elephant", "elephant", SKY, WHITE, "elephant, toy elephant, blue elephant"),
    _item("penguin", "penguin", BLACK, WHITE, "penguin, toy penguin, black and white bird"),
    _item("lime", "lemon", GREEN, GREEN, "lime, green lime, green citrus fruit", also="green fruit"),
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
        *_with(_SEEN_DISTRACTORS, target=False),
        *_with(_UNSEEN, split="unseen"),
        *_with(_UNSEEN_DISTRACTORS, split="unseen", target=False),
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
    )
}
"""`tray` is a distractor only: it stands in training scenes and is never asked for. The coloured plates belong to the
composite suite."""

STORED = ("red_cube", "yellow_cube", "lemon", "soap", "orange")
"""What composite training puts into the storage box."""
PLATED = ("green_cube", "blue_cube", "apple", "purple_ball", "wooden_block", "rhino")
"""What composite training puts on a plate. All of these and of `STORED` fit into the box under its lid."""


def conflict(a: Item, b: Item) -> bool:
    """Whether a sentence about one could mean the other, or a glance confuse them."""
    return bool(a.look == b.look or set(a.aliases) & {*b.aliases, *b.also} or set(b.aliases) & {*a.also})


def items(split: Split, target: bool) -> list[Item]:
    """Items of one split, in the order of the catalogue: those that are asked for, or the distractors."""
    return [i for i in ITEMS.values() if i.split == split and i.target == target]
