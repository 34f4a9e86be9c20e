"""What a sentence asks for in a scene, and what happened in an episode, in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from apt_bench.core.wording import in_words as words
from apt_bench.envs.base import Scene
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS

_PLACED = re.compile(
    r"( and (\w+ ){1,2}it( down)?)? (in|into|inside|on|onto|to|on top of|onto the top of)( the| a| an)? "
)
_LIFTED = re.compile(r"(pick up|lift|grab|grasp|take|raise)( the| a| an)? ")
_TOUCHED = re.compile(r"(touch|tap)( the| a| an)? ")
_END = re.compile(r"[\s.!]*")


@dataclass(frozen=True)
class Asked:
    """What a sentence asks for: `act` is `place`, `lift` or `touch`; `place` has a destination."""

    act: str
    item: str
    destination: str = ""


@dataclass(frozen=True)
class Mention:
    """A part of a sentence that names an object. `object` is None where it could name several."""

    object: str | None
    start: int
    end: int


def in_words(name: str, names: Mapping[str, Any]) -> str:
    """The name of an object of a scene in words. `names`: the names of all objects of the scene."""
    if name in ITEMS:
        return ITEMS[name].aliases[0]
    alone = sum(_kind(other) == _kind(name) for other in names) == 1
    return _kind(name) if alone else words(name)


def _kind(name: str) -> str:
    return re.sub(r"_\d+$", "", name).replace("_", " ")


def _phrases(name: str) -> set[str]:
    """What a sentence may call an object: its aliases, its name, and the last words of its name."""
    words = _kind(name).split()
    aliases = ITEMS[name].aliases if name in ITEMS else ()
    return {*aliases, *(" ".join(words[k:]) for k in range(len(words)))}


def mentions(sentence: str, scene: Scene) -> list[Mention]:
    """The objects of a scene that a sentence names, in its order. The longest phrase counts."""
    found: dict[tuple[int, int], set[str]] = {}
    for name in scene.objects:
        for phrase in _phrases(name):
            for hit in re.finditer(rf"\b{re.escape(phrase)}\b", sentence.lower()):
                found.setdefault(hit.span(), set()).add(name)
    named: list[Mention] = []
    for (start, end), names in sorted(found.items(), key=lambda hit: hit[0][0] - hit[0][1]):
        if all(end <= m.start or m.end <= start for m in named):
            named.append(Mention(names.pop() if len(names) == 1 else None, start, end))
    return sorted(named, key=lambda m: m.start)


def asked(sentence: str, scene: Scene) -> Asked | None:
    """What a sentence asks for; None where it is not of the form "move X to Y", "pick up X and place it in Y", "pick up
    X" or "touch X", or does not name exactly one object of the scene for each."""
    named, text = mentions(sentence, scene), sentence.lower()
    names = [m.object for m in named]
    if None in names or not 1 <= len(named) <= 2 or not _END.fullmatch(text[named[-1].end :]):
        return None
    first, before = named[0], text[: named[0].start].lstrip()
    item = str(first.object)
    if len(named) == 1:
        act = "lift" if _LIFTED.fullmatch(before) else "touch" if _TOUCHED.fullmatch(before) else ""
        return Asked(act, item) if act else None
    plain = re.fullmatch(r"(please )?[a-z]+( up| down)?( the| a| an)? ", before)
    gap = _PLACED.fullmatch(text[first.end : named[1].start])
    if plain and gap and scene.objects[item].movable and names[0] != names[1]:
        return Asked("place", item, str(names[1]))
    return None


def another_sentence(sentence: str, scene: Scene) -> str:
    """The sentence with another movable object of the scene in place of the one that it asks to move; the same sentence
    where it asks for something else."""
    named = mentions(sentence, scene)
    used = {m.object for m in named}
    others = [n for n, o in scene.objects.items() if o.movable and n not in used]
    if not others or not asked(sentence, scene):
        return sentence
    return f"{sentence[: named[0].start]}{in_words(others[0], scene.objects)}{sentence[named[0].end :]}"


def unknown_words(sentence: str, own: str, vocabulary: Container[str]) -> list[str]:
    """The words of a sentence that are neither in a vocabulary nor in the task's own sentence, each once, in lower
    case. Symbols such as emoji count as letters."""
    known = _split(own)
    return [w for w in dict.fromkeys(_split(sentence)) if w not in vocabulary and w not in known]


def _split(sentence: str) -> list[str]:
    def of_word(c: str) -> bool:
        return c.isalnum() or c == "_" or (not c.isascii() and not unicodedata.category(c).startswith("P"))

    return "".join(c if of_word(c) else " " for c in sentence.lower()).split()


def goal_words(scene: Scene) -> str:
    """The goal of the current instruction in words, such as `red can on plate`."""
    parts = []
    for atom in scene.goal:
        first, *rest = (_place_words(name, scene) for name in atom.args)
        parts.append(
            f"{first} {atom.predicate} {' and '.join(rest)}" if rest else f"{atom.predicate} {first}"
        )
    return ", ".join(parts)


def _place_words(name: str, scene: Scene) -> str:
    """An object or a region in words; a region of an object is called after it."""
    region = scene.regions.get(name)
    parent = region.parent if region else name
    if parent in scene.objects:
        return in_words(parent, scene.objects)
    return name.replace("_", " ").removesuffix(" region")


def story(scene: Scene, events: Mapping[str, Any]) -> list[tuple[int, str]]:
    """What the robot did, in order: control step and words."""
    names = scene.objects
    found = [
        (step, f"{verb} the {in_words(name, names)}")
        for verb, event in (("touched", "touched"), ("grasped", "grasped"), ("lifted", "lifted"))
        for name, step in events[event].items()
    ]
    found += [(step, f"moved {joint.replace('_', ' ')}") for joint, step in events["operated"].items()]
    for placed in events["placements"]:
        verb = "dropped" if placed["dropped"] else "put down" if placed["held"] else "pushed"
        where = _where(placed, scene)
        found.append((placed["step"], f"{verb} the {in_words(placed['object'], names)}{where}"))
    return sorted(found, key=lambda event: event[0])


def _where(placed: Mapping[str, Any], scene: Scene) -> str:
    for place in (*_parents(placed, scene), *placed["on"]):
        if place in scene.objects and place != placed["object"]:
            return f" {_preposition(place, placed, scene)} the {in_words(place, scene.objects)}"
    return ""


def _preposition(place: str, placed: Mapping[str, Any], scene: Scene) -> str:
    if place in CONTAINERS:
        return CONTAINERS[place].predicate
    inside = any("contain" in r or r == place for r in placed["within"] if scene.regions[r].parent == place)
    return "in" if inside else "on"


def _parents(placed: Mapping[str, Any], scene: Scene) -> list[str]:
    """The objects whose regions the placed object is in or on."""
    return [scene.regions[region].parent for region in placed["within"]]


def verdict(wanted: Asked | None, scene: Scene, events: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the robot did what a sentence asks for (None: cannot tell), and one line about it."""
    if wanted is None:
        return None, "Cannot tell: the sentence does not clearly name one object and one place of this scene."
    item = in_words(wanted.item, scene.objects)
    if wanted.act == "place":
        place = in_words(wanted.destination, scene.objects)
        put = [
            p
            for p in events["placements"]
            if p["object"] == wanted.item and wanted.destination in (*_parents(p, scene), *p["on"])
        ]
        step = put[0]["step"] if put else None
        where = _preposition(wanted.destination, put[0], scene) if put else "on or in"
        done = f"the {item} came to rest {where} the {place}"
        missing = f"did not come to rest {where} the {place}"
    else:
        step = events["lifted" if wanted.act == "lift" else "touched"].get(wanted.item)
        done, missing = f"the {item} was {wanted.act}ed", f"was not {wanted.act}ed"
    if step is None:
        return False, f"No: the {item} {missing}."
    return True, f"Yes: {done}, at step {step}."
