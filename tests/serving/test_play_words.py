"""Sentences about a scene, and what happened in it, in words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest

from apt_bench.envs.base import Atom, Region, Scene
from apt_bench.serving.play_words import (
    Asked,
    another_sentence,
    asked,
    goal_words,
    in_words,
    mentions,
    story,
    unknown_words,
    verdict,
)


def scene(
    *movable: str, fixed: tuple[str, ...] = (), regions: Mapping[str, str] = MappingProxyType({})
) -> Scene:
    objects = {name: SimpleNamespace(movable=name in movable) for name in (*movable, *fixed)}
    found = {name: Region(name, parent, None) for name, parent in regions.items()}
    return cast(Scene, SimpleNamespace(objects=objects, regions=found, goal=()))


TABLE = scene(
    "zebra", "red_can", "blue_can", fixed=("plate", "bowl"), regions={"plate": "plate", "bowl": "bowl"}
)
LIBERO = scene(
    "tomato_sauce_1", "bbq_sauce_1", "akita_black_bowl_1", "akita_black_bowl_2", "basket_1", "plate_1",
    fixed=("wooden_cabinet_1",),
    regions={"basket_1_contain_region": "basket_1", "wooden_cabinet_1_top_region": "wooden_cabinet_1"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Move the zebra to the plate.", Asked("place", "zebra", "plate")),
        ("move the STRIPED ANIMAL into the bowl", Asked("place", "zebra", "bowl")),
        ("Please put a red soda can on the plate!", Asked("place", "red_can", "plate")),
        ("pick up the zebra and place it in the bowl", Asked("place", "zebra", "bowl")),
        ("pick up the zebra and set it down on the plate", Asked("place", "zebra", "plate")),
        ("Pick up the zebra.", Asked("lift", "zebra")),
        ("touch the zebra", Asked("touch", "zebra")),
        # What is not clear is not judged.
        ("Do not move the zebra to the plate.", None),
        ("Move the zebra next to the plate.", None),
        ("Move the can to the plate.", None),
        ("Move the zebra to the plate and then to the bowl.", None),
        ("Move the zebra to the plate, then dance.", None),
        ("Move the plate to the bowl.", None),
        ("Move the zebra to the zebra.", None),
        ("zebra", None),
        ("Sing.", None),
        ("", None),
        ("Move the (zebra.* to the plate.", None),
    ],
)
def test_what_a_sentence_asks_for(sentence: str, expected: Asked | None) -> None:
    assert asked(sentence, TABLE) == expected


def test_the_longest_phrase_names_the_object() -> None:
    named = mentions("put the bbq sauce in the basket", LIBERO)
    assert [m.object for m in named] == ["bbq_sauce_1", "basket_1"]
    assert [m.object for m in mentions("the black bowl", LIBERO)] == [None]
    assert [m.object for m in mentions("the cabinet", LIBERO)] == ["wooden_cabinet_1"]


def test_names_in_words() -> None:
    assert in_words("zebra", TABLE.objects) == "zebra"
    assert in_words("tomato_sauce_1", LIBERO.objects) == "tomato sauce"
    assert in_words("akita_black_bowl_2", LIBERO.objects) == "akita black bowl (2)"
    LIBERO.goal = (
        Atom("in", ("bbq_sauce_1", "basket_1_contain_region")),
        Atom("close", ("wooden_cabinet_1",)),
    )
    assert goal_words(LIBERO) == "bbq sauce in basket, close wooden cabinet"


def test_another_sentence_names_another_object() -> None:
    assert (
        another_sentence("Move the striped animal to the plate.", TABLE) == "Move the red can to the plate."
    )
    assert another_sentence("Sing.", TABLE) == "Sing."
    missing = "pick up the ketchup and place it in the basket"
    assert another_sentence(missing, LIBERO) == missing


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Move the zebra to the plate.", []),
        ("Move the SKY to the sky, don't!", ["sky", "don", "t"]),
        ("Move the “plate” … red_can", ["red_can"]),
        ("ضع العلبة", ["ضع", "العلبة"]),
        ("हिन्दी 🥫🍽️", ["हिन्दी", "🥫🍽️"]),
        ("", []),
    ],
)
def test_words_that_a_vocabulary_lacks(sentence: str, expected: list[str]) -> None:
    assert unknown_words(sentence, "Move it to", {"the", "zebra", "plate"}) == expected


def events(**changed: Any) -> dict[str, Any]:
    none: dict[str, Any] = {"touched": {}, "grasped": {}, "lifted": {}, "operated": {}, "placements": []}
    return none | changed


def placement(name: str, step: int, within: tuple[str, ...], **changed: Any) -> dict[str, Any]:
    given = {"object": name, "step": step, "within": within, "on": (), "held": True, "dropped": False}
    return given | changed


MOVED = events(
    touched={"zebra": 20, "plate": 70},
    grasped={"zebra": 24},
    lifted={"zebra": 30},
    placements=[
        placement("zebra", 80, ("bowl",)),
        placement("red_can", 90, (), held=False),
        placement("zebra", 110, ("plate",), dropped=True),
    ],
)


def test_the_story_is_in_the_order_of_time() -> None:
    assert story(TABLE, MOVED) == [
        (20, "touched the zebra"), (24, "grasped the zebra"), (30, "lifted the zebra"), (70, "touched the plate"),
        (80, "put down the zebra in the bowl"), (90, "pushed the red can"), (110, "dropped the zebra on the plate"),
    ]  # fmt: skip
    put = events(placements=[placement("bbq_sauce_1", 50, ("basket_1_contain_region",), on=("basket_1",))])
    assert story(LIBERO, put) == [(50, "put down the bbq sauce in the basket")]
    put = events(placements=[placement("bbq_sauce_1", 50, ("wooden_cabinet_1_top_region",))])
    assert story(LIBERO, put) == [(50, "put down the bbq sauce on the wooden cabinet")]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Asked("place", "zebra", "plate"), (True, "Yes: the zebra came to rest on the plate, at step 110.")),
        (Asked("place", "zebra", "bowl"), (True, "Yes: the zebra came to rest in the bowl, at step 80.")),
        (
            Asked("place", "red_can", "bowl"),
            (False, "No: the red can did not come to rest on or in the bowl."),
        ),
        (Asked("lift", "zebra"), (True, "Yes: the zebra was lifted, at step 30.")),
        (Asked("touch", "blue_can"), (False, "No: the blue can was not touched.")),
    ],
)
def test_whether_it_was_done(wanted: Asked, expected: tuple[bool, str]) -> None:
    assert verdict(wanted, TABLE, MOVED) == expected


def test_an_unclear_sentence_is_not_judged() -> None:
    done, line = verdict(None, TABLE, MOVED)
    assert done is None
    assert line.startswith("Cannot tell")
