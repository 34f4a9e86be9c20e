"""A user's own sentences, which are run as the language probe `custom`: same initial states, goals and seeds."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.files import read_text
from apt_bench.core.text import csv_text, plain
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite

LENGTH = 500
"""Maximum number of characters of a sentence."""

COLUMNS = ("cell", "task", "init", "sentence")
"""Columns of a file of sentences. `sentence` and one of `cell` and `task` are required."""


def check_sentence(sentence: str, subject: str) -> None:
    """Raise UserError for a sentence that is too long or has a control character. subject: begins the message."""
    if len(sentence) > LENGTH:
        raise UserError(f"{subject} has {len(sentence)} characters. Shorten it to {LENGTH} or fewer.")
    if plain(sentence, keep="") != sentence:
        raise UserError(f"{subject} has a line break or a control character. Remove it.")


@dataclass(frozen=True)
class Row:
    """A sentence and the episodes that get it. place: where it was given, for messages."""

    place: str
    sentence: str
    cell: str = ""  # empty = every cell
    task: str = ""  # name, or index in the cell; empty = every task
    init: int | None = None  # None = every initial state

    def __post_init__(self) -> None:
        if not self.sentence:
            raise UserError(f"{self.place}: the sentence is empty. Use --probe null to send an empty prompt.")
        check_sentence(self.sentence, f"{self.place}: the sentence")


@dataclass(frozen=True)
class CustomInstructions:
    """Sentences for episodes of a suite."""

    rows: tuple[Row, ...]

    @property
    def digest(self) -> str:
        """Hash of the sentences and of the episodes that get them, for the protocol."""
        rows = sorted([r.cell, r.task, str(r.init), r.sentence] for r in self.rows)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def sentences(self, suite: Suite, specs: Sequence[EpisodeSpec]) -> dict[EpisodeKey, str]:
        """The sentence of each of these episodes that gets one.

        Args:
            suite: The suite.
            specs: The selected episodes, under the cells' own prompts.

        Raises:
            UserError: A row names an unknown cell, task or initial state; two rows are about one episode; or no row is
                about any of the episodes.
        """
        rows: dict[tuple[str, str, int | None], Row] = {}
        for row in self.rows:
            for group in _episodes(row, suite, list(dict.fromkeys(s.key.cell for s in specs))):
                if group in rows:
                    raise _twice(rows[group], row)
                rows[group] = row
        found = {}
        for key in (spec.key for spec in specs):
            keys = [(key.cell, task, init) for task in (key.task, "") for init in (key.init, None)]
            hits = [rows[k] for k in keys if k in rows]
            if len(hits) > 1:
                raise _twice(*hits[:2])
            if hits:
                found[key] = hits[0].sentence
        if not found:
            raise UserError(
                f"{self.rows[0].place}: no selected episode gets a sentence. Select the cells and tasks that the file "
                "names, with --cells and --tasks."
            )
        return found


def custom_instructions(sentence: str | None, path: Path | None) -> CustomInstructions | None:
    """The sentences that `--instruction` and `--instructions` give; None where neither is given.

    Args:
        sentence: One sentence for every episode.
        path: A CSV file with the columns `COLUMNS`.

    Raises:
        UserError: Both are given, the file cannot be read, or a row is invalid. The message names file and line.
    """
    if sentence is not None and path is not None:
        raise UserError("Give --instruction or --instructions, not both.")
    if sentence is not None:
        return CustomInstructions((Row("--instruction", sentence.strip()),))
    return None if path is None else CustomInstructions(tuple(_read(path)))


def _read(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        _check_header(path, reader.fieldnames or ())
        empty = True
        for raw in reader:
            place = f"{path}, line {reader.line_num}"
            if None in raw:
                raise UserError(
                    f"{place}: there are more cells than columns. Put a sentence with a comma in quotes."
                )
            values = {k: csv_text((v or "").strip()) for k, v in raw.items()}
            if any(values.values()):
                empty = False
                yield _row(place, **values)
        if empty:
            raise UserError(f"{path} has no sentence. Add a row below the header.")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: this is not CSV: {error}.") from None


def _check_header(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            problem = "a second column" if name in COLUMNS else "an unknown column"
            raise UserError(f"{path}, line 1: {problem} '{name}'. {did_you_mean(name, COLUMNS)}")
    if "sentence" not in names or not {"cell", "task"} & set(names):
        raise UserError(
            f"{path}, line 1: a column is missing. The header needs 'sentence' and 'cell' or 'task'; it may have all "
            f"of {', '.join(COLUMNS)}."
        )


def _row(place: str, sentence: str, cell: str = "", task: str = "", init: str = "") -> Row:
    if not cell and not task:
        raise UserError(f"{place}: cell and task are empty. Fill in one of them.")
    if init and not (init.isascii() and init.isdecimal() and len(init) < 10):
        raise UserError(
            f"{place}: init is '{init}'. Write a number from 0, or nothing for every initial state."
        )
    return Row(place, sentence, cell, task, int(init) if init else None)


def _episodes(row: Row, suite: Suite, selected: Sequence[str]) -> Iterator[tuple[str, str, int | None]]:
    """The row's episodes as (cell, name of the task or "", initial state or None)."""
    names: list[str] = []
    found = False
    for cell in [row.cell] if row.cell else selected:
        try:
            tasks = suite.cell_tasks(suite.cell(cell))
        except UserError as error:
            raise UserError(f"{row.place}: {error}") from None
        names += [t.name for t in tasks]
        for index, task in enumerate(tasks):
            if row.task in ("", task.name, str(index)):
                found = True
                if row.init is not None and row.init >= task.inits:
                    raise UserError(
                        f"{row.place}: init is {row.init}, but task '{task.name}' of cell '{cell}' has {task.inits} "
                        "initial states, counted from 0."
                    )
                if row.task:
                    yield cell, task.name, row.init
        if not row.task:
            yield cell, "", row.init
    if not found:
        where = row.cell or ", ".join(selected)
        raise UserError(f"{row.place}: no task '{row.task}' in {where}. {did_you_mean(row.task, names)}")


def _twice(first: Row, second: Row) -> UserError:
    return UserError(
        f"{second.place} and {first.place} give one episode two sentences. Remove one of the rows."
    )
