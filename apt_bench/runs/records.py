"""Episode records and run directories: one JSON line per episode, written so that a run can resume.

    run/episodes.jsonl   append only, flushed after each episode; an incomplete last line (a crash) is ignored
    run/protocol.json    everything that may change a score, and its hash
    run/run.json         what was requested and what ran it: policy, versions, git revision, command, machine
    run/videos/          run/actions/          run/report/

This module imports no simulator and no torch. `metadata` checks the two JSON files when they are read.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, open_regular, parse_json, reason, try_remove, write_json, write_whole
from apt_bench.core.jsonable import INTEGERS, jsonable
from apt_bench.runs.metadata import read_protocol, read_run
from apt_bench.runs.protocol import policy_differences, protocol_differences, protocol_hash
from apt_bench.suites import EpisodeKey

OutcomeName = Literal["success", "failure", "timeout", "error"]
OUTCOMES: tuple[OutcomeName, ...] = ("success", "failure", "timeout", "error")


@dataclass(frozen=True)
class EpisodeRecord:
    """The record of one episode.

    Outcomes: `success`; `failure` of the policy (it raised an exception, returned NaN, or ended the episode in a state
    that the suite defines as final); `timeout`, when the step budget is used up; `error` of a worker, the GL context
    or a server. Errors are missing data and never count as policy failures.
    """

    key: EpisodeKey
    policy: str
    prompt: str
    prompt_source: str
    prompts: Mapping[str, str]
    outcome: OutcomeName
    steps: int
    decisions: int
    seconds: Mapping[str, float]  # by part: reset, physics, render, policy, wait (for a batch or an actor)
    start_hash: str  # hash of qpos after settling
    end_hash: str  # hash of qpos at the end
    failure: str | None = None  # class of the failure, see envs/outcome_tracker.py
    events: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # known defects of this task and initial state
    error: str | None = None
    video: str | None = None
    attempt: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)  # of the policy: server latency, tokens, turns

    def to_json(self) -> str:
        """The record as one line of JSON, without the newline. Values that JSON cannot hold are converted
        (`jsonable`)."""
        if line := self.__dict__.get("_line"):
            return str(line)
        raw = {name: _fitted(name, jsonable(getattr(self, name), bounded=True)) for name in _TYPES}
        if not raw["notes"]:
            del raw["notes"]
        return json.dumps(raw, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> EpisodeRecord:
        """Inverse of `to_json`. Unknown entries, which a newer version wrote, are ignored.

        Raises:
            ValueError: The line is no record; the message gives the reason.
        """
        raw = parse_json(line, constants=True)
        if not isinstance(raw, dict):
            raise ValueError(f"expected an object, found {type(raw).__name__}")
        if raw.keys() - _TYPES.keys():
            raw = {k: v for k, v in raw.items() if k in _TYPES}
        for name, value in raw.items():
            if type(value) not in _TYPES[name]:
                raise ValueError(f"'{name}' is of type {type(value).__name__}")
        try:
            for name, value in raw["key"].items():
                if type(value) is not _KEY.get(name, str):
                    raise ValueError(f"'key.{name}' is of type {type(value).__name__}")
            raw["key"] = EpisodeKey(**raw["key"])
            raw["flags"] = tuple(map(str, raw.get("flags", ())))
            record = EpisodeRecord(**raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not an episode record: {error}") from None
        if record.outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {record.outcome!r}")
        if record.steps < 0 or record.decisions < 0 or record.key.init < 0:
            raise ValueError("one of its numbers is negative")
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the record as its JSON line, so that an event that cannot be pickled does not lose the record."""
        return _received, (self.to_json(),)


def _received(line: str) -> EpisodeRecord:
    """A record that another process sent. It keeps its line, which need not be made again to be written."""
    record = EpisodeRecord.from_json(line)
    record.__dict__["_line"] = line
    return record


_KINDS: dict[str, Any] = {"int": int, "tuple": list, "EpisodeKey": dict, "Mapping": dict, "OutcomeName": str}
_TYPES: dict[str, tuple[type, ...]] = {
    f.name: (
        _KINDS.get(str(f.type).split("[")[0], str),
        *([type(None)] if str(f.type).endswith("| None") else []),
    )
    for f in dataclasses.fields(EpisodeRecord)
}
"""Field -> its types in JSON."""

_KEY: dict[str, Any] = {f.name: int if f.type == "int" else str for f in dataclasses.fields(EpisodeKey)}


def _fitted(name: str, value: Any) -> Any:
    """A JSON value of the field's type, made from what an environment gave (steps as 3.0, an error as a list)."""
    kind, *rest = _TYPES[name]
    if value is None and rest:
        return None
    if name == "key":
        return {k: _number(value[k], k == "seed") if _KEY[k] is int else _word(value[k]) for k in _KEY}
    if kind is int:
        return _number(value)
    if kind is list:
        return [_word(v) for v in (value if isinstance(value, list) else [] if value is None else [value])]
    if kind is dict:
        return value if isinstance(value, dict) else {} if value is None else {"value": value}
    return _word(value)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any, signed: bool = False) -> int:
    number = int(value) if isinstance(value, (int, float)) else 0
    return max(1 - INTEGERS if signed else 0, min(number, INTEGERS - 1))


@dataclass(frozen=True)
class RunStore:
    """A run directory. One process writes to it, under the lock `core.files.exclusive`."""

    path: Path

    @property
    def episodes_path(self) -> Path:
        """`episodes.jsonl`."""
        return self.path / "episodes.jsonl"

    @staticmethod
    def create(path: Path, protocol: Mapping[str, Any], run: Mapping[str, Any]) -> RunStore:
        """Open a new or an existing run directory for writing.

        `protocol.json` is written first: it marks a run directory. After an interruption at any point, the next call
        completes the directory.

        Raises:
            UserError: As `earlier` does, or the directory cannot be written.
        """
        store = RunStore(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not store.earlier(protocol, run.get("policy", {})):
                write_json(path / "protocol.json", {"hash": protocol_hash(protocol), **protocol})
            write_json(path / "run.json", run)
        except OSError as error:
            raise UserError(f"Cannot write the run directory {path}: {reason(error)}.") from None
        return store

    def earlier(self, protocol: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
        """`run.json` of the run that a command with this protocol and policy resumes; empty where a new run begins.

        Raises:
            UserError: The directory holds episodes of another protocol or policy (the message names what differs), or
                other files.
        """
        try:
            begun = (self.path / "protocol.json").is_file()
            recorded = self.episodes_path.is_file() and self.episodes_path.stat().st_size > 0
            names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        except OSError as error:
            raise UserError(f"Cannot read the run directory {self.path}: {reason(error)}.") from None
        if not begun and any(not n.endswith(PART) and n != "run.json" for n in names):
            raise UserError(
                f"{self.path} is not empty and holds no run. Give --out an empty or new directory."
            )
        if not begun:
            return {}
        try:
            run, card = self.run(), self.protocol()
        except UserError:
            if recorded:
                raise
            return {}  # the earlier command was killed, or its disk was full, before the first episode
        others = {
            "protocol": protocol_differences(card, jsonable(dict(protocol))),
            "policy": policy_differences(run.get("policy", {}), jsonable(dict(policy))),
        }
        for what, differing in others.items():
            if differing and recorded:
                raise UserError(
                    f"{self.path} holds a run of another {what} ({'; '.join(differing)}). "
                    "Give --out another directory, or repeat the settings of that run."
                )
        return {} if any(others.values()) else run

    @staticmethod
    def open(path: Path) -> RunStore:
        """Open a run directory for reading. Raises UserError where it holds no run."""
        try:
            if (path / "protocol.json").is_file():
                return RunStore(path)
        except (OSError, ValueError) as error:  # no permission; a null byte in the name
            raise UserError(f"Cannot read {path}: {reason(error)}.") from None
        raise UserError(f"{path} holds no run (no protocol.json).")

    def update_run(self, run: Mapping[str, Any]) -> None:
        """Replace `run.json`. Raises OSError."""
        self._check_there()
        write_json(self.path / "run.json", run)

    def protocol(self) -> dict[str, Any]:
        """The protocol card, with its `hash`. Raises UserError if it is damaged."""
        return read_protocol(self.path / "protocol.json")

    def run(self) -> dict[str, Any]:
        """What was requested, and what ran it. Raises UserError if it is damaged."""
        return read_run(self.path / "run.json")

    def put(self, name: str, content: bytes) -> None:
        """Write a file of the run, such as `videos/CELL/x.mp4`: completely or not at all.

        Args:
            name: Path inside the run directory, made from names that the suite has checked.
            content: The file's bytes.

        Raises:
            OSError: It cannot be written, or a link takes the place of a folder.
        """
        self._check_there()
        path = self.path / name
        for folder in (self.path / f for f in reversed(path.relative_to(self.path).parents[:-1])):
            folder.mkdir(exist_ok=True)  # the run directory itself must exist
            if folder.is_symlink():
                raise OSError(errno.ELOOP, LINKED, str(folder))
        write_whole(path, content)

    def flush(self) -> None:
        """Flush `episodes.jsonl` to the disk. Raises OSError."""
        with open(self.episodes_path, "rb") as file:
            os.fsync(file.fileno())

    def append(self, record: EpisodeRecord, flush: bool = True) -> None:
        """Append one line and flush the file to the disk, unless another line follows at once. An incomplete last line
        of an earlier crash is removed first.

        Raises:
            OSError: The line cannot be written; no part of it stays in the file.
        """
        line = record.to_json().encode() + b"\n"
        self._check_there()
        # Unbuffered, because closing a buffered file would write the line again after it was removed.
        with open(self.episodes_path, "ab", buffering=0, opener=_no_link) as file:
            end = file.tell()
            if end and not self._ends_with_newline():
                end = self.episodes_path.read_bytes().rfind(b"\n") + 1
                file.truncate(end)
            try:
                while line:
                    line = line[file.write(line) :]
                if flush:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # else the next call removes the incomplete line
                    os.truncate(self.episodes_path, end)
                raise

    def _check_there(self) -> None:
        """Raise FileNotFoundError if the directory vanished, or is an empty one in its place (an unmounted disk)."""
        if not (self.path / "protocol.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "The run directory has vanished", str(self.path))

    def _ends_with_newline(self) -> bool:
        with open(self.episodes_path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def sweep(self) -> None:
        """Remove half-written files of commands that were killed. Call it under the lock only."""
        folders = [f for f in (self.path / "actions", self.path / "videos") if not f.is_symlink()]
        found = [self.path.glob(f"*{PART}"), *(f.rglob(f"*{PART}") for f in folders)]
        for path in [path for paths in found for path in paths]:
            try_remove(path)

    def episodes(self) -> list[EpisodeRecord]:
        """One record per key: the latest one, but an error never replaces a success, failure or timeout."""
        best: dict[EpisodeKey, EpisodeRecord] = {}
        for record in self.lines():
            old = best.get(record.key)
            if old is None or old.outcome == "error" or record.outcome != "error":
                best[record.key] = record
        return list(best.values())

    def lines(self) -> Iterator[EpisodeRecord]:
        """Every record in the order of writing, including several records of one key. Raises UserError as `lines_from`
        does."""
        for record, _ in self.lines_from(0):
            yield record

    def lines_from(self, begin: int) -> Iterator[tuple[EpisodeRecord, int]]:
        """Records that begin at the byte `begin` or later, each with the byte after its line.

        Raises:
            UserError: A line other than an incomplete last one cannot be read. Such a file was edited or damaged, and
                skipping the line would lose an episode.
        """
        try:
            if not os.path.lexists(self.episodes_path):
                return
            with open_regular(self.episodes_path) as file:
                file.seek(begin)
                number, start = 0, begin
                while line := file.readline(LINE_LIMIT):
                    number += 1
                    if not line.endswith(b"\n") and len(line) < LINE_LIMIT:
                        return  # incomplete: a crash while writing
                    try:
                        begin += len(line)
                        yield EpisodeRecord.from_json(line.decode()), begin
                    except ValueError as error:
                        place = f", line {number}," if not start else f": the line that ends at byte {begin}"
                        raise UserError(
                            f"{self.episodes_path}{place} is damaged: {error}. Delete that line, and "
                            "rerun the same `apt-bench run` command to run the missing episode again."
                        ) from None
        except OSError as error:
            raise UserError(f"Cannot read {self.episodes_path}: {reason(error)}.") from None


LINKED = "apt-bench does not write through a link in a run directory; replace it by a folder or a file"


def _no_link(path: str, flags: int) -> int:
    """Opener that refuses a link: anyone may have made the run directory."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, LINKED, path)
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


LINE_LIMIT = 16 * 2**20
"""Longest line in bytes: several times the size of the largest record (`core.jsonable`)."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause the garbage collector while many records are read, or figures are drawn: it would search all objects again
    and again, and find a few megabytes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def finished_keys(records: Iterable[EpisodeRecord]) -> set[EpisodeKey]:
    """Keys of the episodes that have a result and need not run again: all but errors."""
    return {r.key for r in records if r.outcome != "error"}
