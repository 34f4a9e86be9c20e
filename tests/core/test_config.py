"""YAML and options become typed values, or give one message that names the place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.core import config
from apt_bench.core.config import Count, Name, Natural, Positive, Range, Share, build
from apt_bench.core.errors import UserError


def refusal(call: Callable[[], object]) -> str:
    """The message of the UserError that the call raises, `here` where it raises none."""
    try:
        call()
    except UserError as error:
        return str(error)
    return "here"


@dataclass(frozen=True)
class Part:
    size: Count
    rate: Positive = 1.0


@dataclass(frozen=True)
class Whole:
    name: Name
    kind: Literal["a", "b"] = "a"
    parts: tuple[Part, ...] = ()
    seed: Natural | None = None
    share: Share = 0.0
    args: Mapping[str, Any] = None  # type: ignore[assignment]


def test_a_mapping_becomes_the_dataclass():
    made = build(
        Whole, {"name": "x", "parts": [{"size": 2, "rate": "1e-4"}], "seed": 0, "args": {"a": [1]}}, "f.yaml"
    )
    assert made == Whole("x", parts=(Part(2, 1e-4),), seed=0, args={"a": [1]})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "x", "kidn": "a"}, "f.yaml: unknown key 'kidn'. Did you mean 'kind'?"),
        ({"kind": "a"}, "f.yaml: key 'name' is missing"),
        ({"name": "x", "kind": "c"}, "f.yaml: kind is 'c'; it must be one of a, b"),
        ({"name": 3}, "f.yaml: name is 3; it must be of type str"),
        ({"name": "x", "seed": -1}, "f.yaml: seed is -1; it must be at least 0"),
        ({"name": "x", "seed": True}, "f.yaml: seed is True; it must be a whole number"),
        ({"name": "x", "seed": 2**80}, "too large"),
        ({"name": "x", "seed": 1.0}, "f.yaml: seed is 1.0; it must be a whole number"),
        ({"name": "x", "share": 1}, "f.yaml: share is 1.0; it must be at least 0 and below 1"),
        ({"name": "x", "share": float("nan")}, "f.yaml: share is nan; it must be finite"),
        ({"name": "x", "share": "nan"}, "it must be finite"),
        ({"name": "x", "parts": [{"size": 0}]}, "f.yaml: parts: size is 0; it must be at least 1"),
        ({"name": "x", "parts": [{"size": 1, "rate": 0}]}, "rate is 0.0; it must be above 0"),
        ({"name": "x", "parts": [{"size": 1, "rate": "fast"}]}, "rate is 'fast'; it must be a number"),
        ({"name": "x", "parts": [3]}, "f.yaml: parts: expected a mapping, found int"),
        ({"name": "x", "args": [1]}, "f.yaml: args is [1]; it must be of type Mapping"),
        ({"name": "x", "args": {1: 2}}, "f.yaml: args: the key 1 is 1; it must be of type str"),
        ([1], "f.yaml: expected a mapping, found list"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(raw, message):
    with pytest.raises(UserError) as error:
        build(Whole, raw, "f.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", ".", "..", ".x", "", " x", "x ", "a\nb", "a\x00", "\ud800", "x" * 181, "\u202ex"],
)
def test_a_name_that_is_no_single_path_component_is_refused(name):
    with pytest.raises(UserError, match="a name has 1 to 180 bytes"):
        build(Name, name, "cell")


@pytest.mark.parametrize("name", ["so", "spatial_task@stale", "Tür öffnen", "a b", "x.y-z+1", "日本"])
def test_other_names_stay(name):
    assert build(Name, name, "cell") == name


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)
KINDS = [Whole, Count, Natural, Positive, Share, Name, tuple[int, ...], Mapping[str, Count], int | None, bool, str, Any,
         Annotated[int, Range(below=3)]]  # fmt: skip


@given(anything, st.sampled_from(KINDS))
def test_build_gives_a_value_or_a_user_error(raw, kind):
    assert refusal(lambda: build(kind, raw, "here")).startswith("here")


TENS = [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
BOMB = "\n".join(["a0: &a0 [1,1,1,1,1,1,1,1,1,1]", *TENS])


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "{",
        "a: &x [1]\nb: *y",
        "!!python/object:os.system {}",
        "a: " + "[" * 2000,
        "a: 9999-99-99",
        "&a [*a]",
        BOMB,
        "a: 1" + "0" * 5000,
    ],
    ids=["repeated", "torn", "alias", "object", "deep", "date", "loop", "bomb", "digits"],
)  # fmt: skip
def test_yaml_that_cannot_be_meant_is_a_user_error(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        build(Whole, config.read_yaml(tmp_path / "x.yaml"), "x.yaml")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_any_text_is_yaml_or_a_user_error(text):
    assert refusal(lambda: config.parse_yaml(text, "here")).startswith("here")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(0)", "exit code 0"),
        ("import argparse; argparse.ArgumentParser().parse_args(['--no'])", "exit code 2"),
        ("raise KeyError('x')", "it raised KeyError"),
        ("def f(:", "SyntaxError"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("x = 1", "has no 'y'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_message(tmp_path, monkeypatch, code, message):
    name = f"toy_module_{abs(hash(code))}"
    Path(tmp_path, f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message):
        config.load_object(f"{name}:y")
    sys.modules.pop(name, None)
