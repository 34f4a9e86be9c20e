"""The episodes of runs as compact data for the episode browser (`browser.js`), read again as a run grows.

A row is one record of an episode. Its columns hold numbers; a text is the index into that column's names. When an
episode is opened, the browser needs its whole record. So it loads rows in chunks of `ROWS` at first, and records in
chunks of `RECORDS` later. A chunk is a script that contains one JSON string, because a page that was opened from a
folder can load scripts but no JSON. All text comes from outside: it is never markup and never code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

from apt_bench.analysis.frame import follows_language, outcome_class
from apt_bench.analysis.run import Run, suite_names
from apt_bench.analysis.suite_labels import cell_label, suite_title
from apt_bench.core.files import open_regular, reason
from apt_bench.core.jsonable import jsonable
from apt_bench.core.text import one_line
from apt_bench.runs.records import LINE_LIMIT, RunStore, no_collection
from apt_bench.suites import STALE, EpisodeKey

ROWS = 20_000
"""Rows in one chunk."""

RECORDS = 200
"""Records in one chunk."""

NAMED = ("cell", "task", "probe", "outcome", "failure", "sentence", "source", "contact")
"""Columns of texts. A name is a text, or [the recorded name, the text to show, ...]."""

NUMBERS = ("run", "scene", "init", "seed", "steps", "tenths", "heeded", "film", "flagged", "replaces")
"""Columns of numbers. `scene`: equal for episodes with the same initial state. `tenths`: tenths of a second that the
episode took. `heeded`: 1 if the first contact was as instructed, 0 if not, -1 if unknown. `replaces`: the row of an
earlier record of the same episode, or -1."""


class EpisodeData:
    """Rows and records of the episodes of some runs.

    Args:
        runs: The runs, in the order in which the browser lists them.
        film: Gives the address of a film in the browser, "" for none, from the run's number and the film's name in
            the record.
    """

    def __init__(self, runs: Sequence[Run], film: Callable[[int, str], str]) -> None:
        self._logs = [_Log(run) for run in runs]
        self._film = film
        self._one_suite = len(suite_names(runs)) < 2
        self._codes: dict[str, dict[Any, int]] = {name: {} for name in NAMED}
        self._names: dict[str, list[Any]] = {name: [] for name in NAMED}
        self._columns: dict[str, list[int]] = {name: [] for name in (*NUMBERS, *NAMED)}
        self._scenes: dict[tuple[Any, ...], int] = {}
        self._row_of: dict[tuple[Any, ...], int] = {}
        self._places: list[
            tuple[int, int]
        ] = []  # of each row: the run's number, the offset in its episodes.jsonl
        self._films: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def read(self) -> None:
        """Read what the runs have recorded since the last call."""
        with no_collection():
            for number, log in enumerate(self._logs):
                for offset, raw in log.lines():
                    try:
                        self._add(number, offset, raw)
                    except (KeyError, TypeError, ValueError, AttributeError) as error:
                        log.problem = f"A record of {log.run.path} is damaged: {one_line(error, 200)}."
                        break

    def rows(self, start: int, live: bool = False) -> str:
        """The chunk of rows from `start` on, with the names that earlier rows do not have.

        Args:
            start: Number of the first row.
            live: Whether the browser asks for more rows later.
        """
        end = min(start + ROWS, len(self))
        columns = {name: column[start:end] for name, column in self._columns.items()}
        names = {}
        for name in NAMED:
            known = max(self._columns[name][:start], default=-1) + 1
            names[name] = self._names[name][known : max(columns[name], default=-1) + 1]
        runs = [{"name": r.run.label, "asked": r.asked, "hz": r.hz, "problem": r.problem} for r in self._logs]
        chunk = {
            "start": start, "runs": runs, "names": names, "columns": columns, "more": end < len(self), "live": live,
            "records": RECORDS,
        }  # fmt: skip
        return _script("rows", json.dumps(chunk, separators=(",", ":")))

    def records(self, chunk: int) -> str:
        """The chunk of the records of the rows from `chunk * RECORDS` on."""
        start = chunk * RECORDS
        rows = range(start, min(start + RECORDS, len(self)))
        with ExitStack() as stack:
            numbers = {self._places[row][0] for row in rows}
            files = {n: stack.enter_context(open_regular(self._logs[n].path)) for n in numbers}
            lines = [_line(files[number], offset) for number, offset in map(self._places.__getitem__, rows)]
        films = json.dumps({row: self._films[row] for row in rows if row in self._films})
        return _script("records", f'{{"start":{start},"films":{films},"records":[{",".join(lines)}]}}')

    def _add(self, number: int, offset: int, raw: Mapping[str, Any]) -> None:
        key, events = raw["key"], raw.get("events") or {}
        suite, cell, task, init, seed = (
            key["suite"],
            key["cell"],
            key["task"],
            int(key["init"]),
            int(key["seed"]),
        )
        prompt, outcome, video = key.get("prompt", EpisodeKey.prompt), raw["outcome"], raw.get("video")
        episode = (number, suite, cell, task, init, seed, prompt)
        before = self._row_of.get(episode, -1)
        if before >= 0 and outcome == "error":
            replaced = self._columns["outcome"][before]
            if replaced != self._codes["outcome"].get("error"):
                return  # an error never replaces a result
        row = self._row_of[episode] = len(self)
        base = cell.removesuffix(STALE)
        follows = follows_language(events)
        heeded = follows["first_contact_correct"]
        seconds = sum([s for s in raw["seconds"].values() if isinstance(s, (int, float)) and 0 <= s < 1e9])
        film = self._film(number, video) if video else ""
        if film:
            self._films[row] = film
        scene = (suite, base, task, init, seed)
        values = (
            number, self._scenes.setdefault(scene, len(self._scenes)), init, seed, int(raw["steps"]),
            round(10 * seconds), -1 if heeded is None else int(heeded), int(film != ""), int(bool(raw.get("flags"))),
            before,
            self._code("cell", (suite, cell), self._cell),
            self._code("task", task),
            self._code("probe", (prompt, cell != base), _probe),
            self._code("outcome", outcome),
            self._code("failure", outcome_class(outcome, raw.get("failure"))),
            self._code("sentence", raw["prompt"]),
            self._code("source", raw["prompt_source"]),
            self._code("contact", follows["first_contact"] or ""),
        )  # fmt: skip
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._places.append((number, offset))

    def _cell(self, key: tuple[str, str]) -> list[str]:
        label = cell_label(*key)
        return ["/".join(key), label if self._one_suite else f"{suite_title(key[0])}: {label}"]

    def _code(self, column: str, value: Any, name: Callable[[Any], Any] = str) -> int:
        codes = self._codes[column]
        if (code := codes.get(value)) is None:
            self._names[column].append(name(value))
            code = codes[value] = len(codes)
        return code


class _Log:
    """The episodes.jsonl of a run."""

    def __init__(self, run: Run) -> None:
        self.run, self.problem = run, ""
        hz = run.protocol.get("control_hz")
        self.hz = hz if isinstance(hz, int | float) and not isinstance(hz, bool) and 0 < hz < math.inf else 0
        self.asked = sum(run.requested.values()) + sum(run.requested_probes.values())
        self.path, self._end = RunStore(run.path).episodes_path, 0

    def lines(self) -> Iterator[tuple[int, Any]]:
        """Offset and content of the records that were completed since the last call; nothing after a problem."""
        if self.problem or not self.path.exists():
            return
        try:
            with open_regular(self.path) as file:
                if file.seek(0, 2) < self._end:
                    self.problem = f"{self.path} was replaced while it was read."
                    return
                file.seek(self._end)
                while (line := file.readline(LINE_LIMIT)).endswith(b"\n"):
                    raw = json.loads(line)
                    yield self._end, raw
                    self._end += len(line)
        except (OSError, ValueError) as error:
            self.problem = f"Cannot read {self.path}: {reason(error)}."


def _line(file: BinaryIO, offset: int) -> str:
    """The record at this offset as strict JSON."""
    file.seek(offset)
    line = file.readline(LINE_LIMIT).decode().strip()
    if "NaN" in line or "Infinity" in line:  # older versions wrote them
        return json.dumps(jsonable(json.loads(line), bounded=True))
    return line


def _script(function: str, text: str) -> str:
    """A script that passes a JSON text to `episodes.FUNCTION`, as a string: whatever it contains, it is not code."""
    for character in _ESCAPED:  # much faster than str.translate
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"episodes.{function}('{text}');\n"


_ESCAPED = "\\'\n\r\u2028\u2029"
"""Characters of a script's string that are escaped: the backslash first, because the others become one."""


def _probe(key: tuple[str, bool]) -> list[str]:
    prompt, stale = key
    own = "stale control" if stale else "own instruction"
    label = own if prompt == EpisodeKey.prompt else f"{prompt}, stale control" if stale else prompt
    return [label, label, prompt]
