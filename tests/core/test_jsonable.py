"""Any value of an environment or a policy is stored as JSON, and is the same when it is read again."""

from __future__ import annotations

import json
from collections import deque
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.core.files import parse_json
from apt_bench.core.jsonable import DEPTH, LEFT_OUT, TEXT, VALUES, jsonable

texts = st.text(st.characters(), max_size=20)  # surrogates too
keys = st.one_of(texts, st.integers(), st.booleans(), st.none(), st.binary(max_size=4), st.floats())
leaves = st.one_of(
    texts, keys, st.integers(-(10**30), 10**30), st.sets(texts, max_size=4), st.just(np.float32("nan"))
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4), st.tuples(inner)
    ),
    max_leaves=20,
)


@given(anything)
def test_any_value_is_written_and_read_back_as_it_was_written(value):
    plain = jsonable(value)
    text = json.dumps(plain, ensure_ascii=False)
    text.encode()
    assert parse_json(text) == plain
    assert jsonable(plain) == plain
    assert json.dumps(jsonable(value, bounded=True)) == json.dumps(plain)  # small values are not cut


plain_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
)


@given(plain_values)
def test_what_json_holds_already_stays_as_it_is(value):
    assert json.dumps(jsonable(value)) == json.dumps(value)


class Colour(Enum):
    RED = "red"


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Shapeless:
    shape = (2,)

    def tolist(self) -> list[int]:
        raise MemoryError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1.5), 1.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]], np.uint8), [[1, 2], [3, 4]]),
        (np.array(3.0), 3.0),
        (np.array([np.nan, np.inf]), ["nan", "inf"]),
        (np.array([{"a": 1}], object), [{"a": 1}]),
        (torch.ones(2, requires_grad=True) * 2, [2.0, 2.0]),
        (torch.ones(2, dtype=torch.bfloat16), [1.0, 1.0]),
        (torch.ones(2, device="meta"), "<torch.Tensor: NotImplementedError>"),
        (float("-inf"), "-inf"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (b"abc\xff", "abc\\xff"),
        (Path("a/b"), "a/b"),
        ({1: "a", "1": "b"}, {"1": "a", "1'": "b"}),
        ({(1, 2): 3}, {"[1, 2]": 3}),
        ("half \ud83d", "half \\ud83d"),
        (10**30, hex(10**30)),
        (deque([1]), [1]),
        (Colour.RED, "red"),
        (Odd(), f"<{__name__}.Odd: RuntimeError>"),
        (Shapeless(), f"<{__name__}.Shapeless: MemoryError>"),
        (1 + 2j, "(1+2j)"),
    ],
)  # fmt: skip
def test_values_that_json_has_no_word_for(value, expected):
    assert jsonable(value) == expected


def test_an_objects_address_is_left_out():
    assert jsonable(object()) == jsonable(object()) == "<object object>"


def test_enormous_values_are_bounded():
    assert len(jsonable("x" * 10 * TEXT, bounded=True)) <= TEXT
    assert "..." in jsonable(np.zeros((10**4, 10**4)), bounded=True) or "shape" in jsonable(
        np.broadcast_to(0.0, (10**9,)), bounded=True
    )
    assert len(jsonable(list(range(3 * VALUES)), bounded=True)) <= VALUES + 1
    assert len(json.dumps(jsonable({str(i): "y" * 1000 for i in range(10**4)}, bounded=True))) < 5e6
    assert len(jsonable([0] * 3 * VALUES)) == 3 * VALUES  # only where it is asked for


def test_a_value_that_contains_itself_ends():
    loop: list[object] = [1]
    loop.append(loop)
    deep = jsonable(loop)
    for _ in range(DEPTH):
        deep = deep[1]
    assert deep[1] == LEFT_OUT
