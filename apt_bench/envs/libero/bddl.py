"""Read the sentence, objects, initial state and goal from a BDDL file, without LIBERO.

Like LIBERO's own reader, this drops comments and converts everything to lower case, including the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.files import read_text
from apt_bench.envs.base import Atom


@dataclass(frozen=True)
class Problem:
    """A BDDL problem. `objects` (movable) and `fixtures` map names to categories. All atoms of `goal` must hold."""

    language: str
    objects: Mapping[str, str]
    fixtures: Mapping[str, str]
    init: tuple[Atom, ...]
    goal: tuple[Atom, ...]
    objects_of_interest: tuple[str, ...]


def read_bddl(path: Path) -> Problem:
    """Read the problem from a file. Raises UserError where the file is missing or malformed."""
    text = read_text(path)
    try:
        return parse_bddl(text)
    except (ValueError, LookupError) as error:
        raise UserError(f"{path} is not a BDDL problem: {error}.") from None


def parse_bddl(text: str) -> Problem:
    """Read the problem from text. Raises ValueError or LookupError where it is malformed."""
    groups = [group for group in _tree(text)[1:] if isinstance(group, list) and group]
    sections: dict[str, list[Any]] = {g[0]: g[1:] for g in groups if isinstance(g[0], str)}
    goal = sections[":goal"][0]
    return Problem(
        language=" ".join(_words(sections[":language"])),
        objects=_typed(sections.get(":objects", [])),
        fixtures=_typed(sections.get(":fixtures", [])),
        init=tuple(_atom(a) for a in sections[":init"]),
        goal=tuple(_atom(a) for a in (goal[1:] if goal[0] == "and" else [goal])),
        objects_of_interest=tuple(_words(sections.get(":obj_of_interest", []))),
    )


def _tree(text: str) -> list[Any]:
    """Parse text into nested lists of words."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*$", "", text, flags=re.MULTILINE).lower()):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise ValueError("an unmatched closing parenthesis")
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("unbalanced parentheses")
    tree: list[Any] = stack[0][0]
    return tree


def _typed(words: list[str]) -> dict[str, str]:
    """Parse `a b - kind c - other` into {a: kind, b: kind, c: other}."""
    found: dict[str, str] = {}
    names: list[str] = []
    rest = iter(_words(words))
    for word in rest:
        if word == "-":
            kind = next(rest, None)
            if kind is None:
                raise ValueError("a dash without a category after it")
            found.update(dict.fromkeys(names, kind))
            names = []
        else:
            names.append(word)
    return found


def _atom(group: list[str]) -> Atom:
    if not isinstance(group, list) or not group:
        raise ValueError(f"not an atom: {group}")
    name, *args = _words(group)
    return Atom(name, tuple(args))


def _words(group: list[Any]) -> list[str]:
    if not all(isinstance(word, str) for word in group):
        raise ValueError("parentheses where words are expected")
    return group
