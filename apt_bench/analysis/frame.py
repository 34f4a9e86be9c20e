"""Episode records as a data frame: one row per episode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import pandas as pd

from apt_bench.core.text import one_line, plain
from apt_bench.runs.eval_info import IMPORTED
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey

DEFAULT_PROMPT = "default"
"""Prompt id of an episode that was sent its cell's own instruction."""

KEY = ["suite", "cell", "task", "init", "seed", "prompt"]
"""Columns that identify an episode."""

COLUMNS = [
    *KEY, "instruction", "policy", "outcome", "outcome_class", "success", "finished", "steps", "decisions",
    "first_contact", "first_contact_correct", "first_grasp_correct", "original_task_done",
    "goal_object_lifted", "goal_object_placed", "defects", "error", "video", "start_hash", "end_hash",
]  # fmt: skip
"""The stable columns that every frame has, in order. docs/api.md describes them."""

INTERNAL = "imported"
"""The one column that is not public: the episode comes from an eval_info.json and is never matched."""

_CATEGORIES = [
    "suite", "cell", "task", "prompt", "instruction", "policy", "outcome", "outcome_class", "first_contact",
    "goal_object_placed",
]  # fmt: skip
_THREE_VALUED = ["first_contact_correct", "first_grasp_correct", "original_task_done", "goal_object_lifted"]

_MAPPINGS, _NUMBERS = (dict, Mapping), (int, float)  # the check of a plain dict is several times faster

CLASS_LENGTH = 60
"""Longest outcome class in characters; a longer one is shortened."""


def episode_frame(records: Iterable[EpisodeRecord]) -> pd.DataFrame:
    """The records as a data frame with one row per episode key.

    If a key has several records, the same one counts as in `RunStore.episodes`. Text in the frame is one line of
    plain characters, so that tables, figures and joins use the same names.

    Args:
        records: Records of one run, in the order in which they were written.

    Returns:
        A frame with the columns `COLUMNS` and `imported`, then `seconds_*` (seconds per part of the episode) and
        `score_*` (scores of a composite task), one for each part that was recorded.
    """
    rows: dict[EpisodeKey, dict[str, Any]] = {}
    for r in records:
        if r.outcome == "error" and rows.get(r.key, {}).get("outcome", "error") != "error":
            continue
        rows[r.key] = _row(r)
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else [*COLUMNS, INTERNAL])
    kinds = {
        **dict.fromkeys(_CATEGORIES, "category"),
        **dict.fromkeys(_THREE_VALUED, "boolean"),
        **dict.fromkeys(("success", "finished", INTERNAL), bool),
    }
    return frame.astype(kinds)


def _row(r: EpisodeRecord) -> dict[str, Any]:
    key = r.key
    return {
        "suite": _name(key.suite),
        "cell": _name(key.cell),
        "task": _name(key.task),
        "init": key.init,
        "seed": key.seed,
        "prompt": _name(key.prompt),
        "instruction": _name(r.prompt),
        "policy": _name(r.policy),
        "outcome": r.outcome,
        "outcome_class": outcome_class(r.outcome, r.failure),
        "success": r.outcome == "success",
        "finished": r.outcome != "error",
        "steps": r.steps,
        "decisions": r.decisions,
        **follows_language(r.events),
        **delivery(r.events),
        "defects": ", ".join(r.flags),
        "error": r.error,
        "video": r.video,
        "start_hash": r.start_hash,
        "end_hash": r.end_hash,
        INTERNAL: r.prompt_source == IMPORTED,
        **{f"seconds_{_name(k)}": _number(v) for k, v in r.seconds.items()},
        **{f"score_{_name(k)}": _number(v) for k, v in _mapping(r.events.get("scores")).items()},
    }


@lru_cache(maxsize=4096)
def outcome_class(outcome: str, failure: str | None) -> str:
    """The outcome, or the class of failure of an episode that failed."""
    found = failure or outcome if outcome in ("failure", "timeout") else outcome
    if found in ("success", "error") and found != outcome:  # a failure class of that name
        found = f"{outcome}: {found}"
    return one_line(found, CLASS_LENGTH)


def follows_language(events: Mapping[str, Any]) -> dict[str, Any]:
    """Whether an episode did what its instruction says, from the recorded events.

    Args:
        events: `EpisodeRecord.events`.

    Returns:
        A value for each of these columns, None where the events do not contain it:
        `first_contact`: what the robot touched first.
        `first_contact_correct`: whether the instruction is about that object.
        `first_grasp_correct`: whether the goal requires moving the first grasped object.
        `original_task_done`: whether the goal of the unperturbed task was reached instead; None where both tasks
        have the same goal.
    """
    touched, grasped = _first(events.get("touched")), _first(events.get("grasped"))
    targets = events.get("targets")
    goal = events.get("goal")
    movable = {_argument(str(atom)) for atom in _mapping(goal)}
    return {
        "first_contact": None if touched is None else _name(touched),
        "first_contact_correct": (
            touched in targets if touched is not None and isinstance(targets, list) and targets else None
        ),
        "first_grasp_correct": grasped in movable if grasped is not None and movable else None,
        "original_task_done": events.get("shortcut") is not None if events.get("base_goal") else None,
    }


def delivery(events: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the object that the goal moves, from the recorded events.

    Args:
        events: `EpisodeRecord.events`.

    Returns:
        A value for each of these columns, None where the goal is not one object in or on one place:
        `goal_object_lifted`: whether the robot lifted the object.
        `goal_object_placed`: the regions in which the object was when it last came to rest, separated by commas; "" for
        none, also if it never moved.
    """
    goal, lifted, placements = (events.get(k) for k in ("goal", "lifted", "placements"))
    atoms = [str(a) for a in goal] if isinstance(goal, Mapping) else []
    if len(atoms) != 1 or "," not in atoms[0] or not isinstance(lifted, Mapping):
        return {"goal_object_lifted": None, "goal_object_placed": None}
    item = _argument(atoms[0])
    last: Any = None
    for placed in placements if isinstance(placements, list) else ():
        if _mapping(placed).get("object") == item:
            last = placed.get("within")
    regions = last if isinstance(last, list) else ()
    return {
        "goal_object_lifted": item in lifted,
        "goal_object_placed": ", ".join(_name(r) for r in regions if isinstance(r, str)),
    }


@lru_cache(maxsize=4096)
def _name(text: str) -> str:
    return plain(text, keep="")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, _MAPPINGS) else {}


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, _NUMBERS) else math.nan
    except OverflowError:  # an integer of 400 digits
        return math.nan
    return number if math.isfinite(number) else math.nan


def _first(steps: Any) -> str | None:
    """The name with the smallest step."""
    timed = [(s, name) for name, s in _mapping(steps).items() if isinstance(s, _NUMBERS)]
    return min(timed)[1] if timed else None


@lru_cache(maxsize=4096)
def _argument(atom: str) -> str:
    """First argument of `predicate(a, b)`."""
    return atom.partition("(")[2].rstrip(")").split(",")[0].strip()
