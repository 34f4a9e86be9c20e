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

KEY = ["suite", "cell", "task", "init", "seed", "prompt"]

CLASS_LENGTH = 60
"""Characters of an outcome class, at most."""


def episode_frame(records: Iterable[EpisodeRecord]) -> pd.DataFrame:
    """One row per key; of several records of a key the one that counts (`RunStore.episodes`).

    `klass` is the outcome's class: `success`, `error`, the class of failure, or the outcome where none was recorded.
    `told`, `grasped_told`, `memorised`, `first`: see `follows_language`. `sec_*` and `score_*`: one column per part.
    Names are plain text of one line: what is printed, drawn and joined is the same.
    """
    rows: dict[EpisodeKey, dict[str, Any]] = {}
    for r in records:
        if r.key in rows and r.outcome == "error" and rows[r.key]["outcome"] != "error":
            continue
        told, grasped_told, memorised, first = follows_language(r.events)
        scores = r.events.get("scores")
        klass = r.failure or r.outcome if r.outcome in ("failure", "timeout") else r.outcome
        if klass in ("success", "error") and klass != r.outcome:  # a class of failure may be called anything
            klass = f"{r.outcome}: {klass}"
        rows[r.key] = {
            **{k: _name(v) if isinstance(v := getattr(r.key, k), str) else v for k in KEY},
            "policy": _name(r.policy),
            "prompt_text": _name(r.prompt),
            "imported": r.prompt_source == IMPORTED,
            "outcome": r.outcome,
            "klass": one_line(klass, CLASS_LENGTH),
            "steps": r.steps,
            "decisions": r.decisions,
            "defects": ", ".join(r.flags),
            "start_hash": r.start_hash,
            "end_hash": r.end_hash,
            "error": r.error,
            "video": r.video,
            "first": first if first is None else _name(first),
            "told": told,
            "grasped_told": grasped_told,
            "memorised": memorised,
            **{f"sec_{_name(k)}": _number(v) for k, v in r.seconds.items()},
            **{f"score_{_name(k)}": _number(v) for k, v in _mapping(scores).items()},
        }
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else _COLUMNS)
    for column in (
        "suite",
        "cell",
        "task",
        "prompt",
        "policy",
        "prompt_text",
        "imported",
        "outcome",
        "klass",
        "first",
    ):
        frame[column] = frame[column].astype("category")
    frame["success"] = frame.outcome == "success"
    frame["done"] = frame.outcome != "error"
    frame["imported"] = frame.imported.astype(bool)  # never matched with another run's, see runs.eval_info
    return frame


_COLUMNS = [
    *KEY, "policy", "prompt_text", "imported", "outcome", "klass", "steps", "decisions", "defects",
    "start_hash", "end_hash", "error", "video", "first", "told", "grasped_told", "memorised",
]  # fmt: skip


@lru_cache(maxsize=4096)
def _name(text: str) -> str:
    return plain(text, keep="")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number of 400 digits
        return math.nan
    return number if math.isfinite(number) else math.nan


def follows_language(events: Mapping[str, Any]) -> tuple[bool | None, bool | None, bool | None, str | None]:
    """From an episode's events: was the first thing touched one that the instruction is about; was the first thing
    grasped one that the goal wants moved; was the unperturbed task done instead (None where it is the same task); name
    of the first thing touched."""
    touched, grasped = _first(events.get("touched")), _first(events.get("grasped"))
    targets = events.get("targets")
    told = touched in targets if touched is not None and isinstance(targets, list) and targets else None
    goal = events.get("goal")
    movable = {_argument(atom) for atom in goal} if isinstance(goal, Mapping) else set()
    grasped_told = grasped in movable if grasped is not None and movable else None
    memorised = events.get("shortcut") is not None if events.get("base_goal") else None
    return told, grasped_told, memorised, touched


def _first(steps: Any) -> str | None:
    timed = [(s, name) for name, s in _mapping(steps).items() if isinstance(s, int | float)]
    return min(timed)[1] if timed else None


def _argument(atom: Any) -> str:
    """First argument of `predicate(a, b)`."""
    return str(atom).partition("(")[2].rstrip(")").split(",")[0].strip()
