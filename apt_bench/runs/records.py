"""What a run leaves behind: one JSON line per episode, in a directory that resumes.

    run/episodes.jsonl   append only, flushed per episode; a torn last line (a crash while writing) is ignored
    run/protocol.json    everything that may change a score, and its hash
    run/run.json         what was asked and what ran it: policy, versions, git revision, command, machine, GL renderer
    run/videos/          run/actions/          run/report/

Readers of results need this module alone: no simulator, no torch. What they read was checked (`run_files.py`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, open_regular, parse_json, reason, try_remove, write_json, write_whole
from apt_bench.core.jsonable import INTEGERS, jsonable
from apt_bench.runs.metadata import policy_differences, read_protocol, read_run
from apt_bench.suites import EpisodeKey

OutcomeName = Literal["success", "failure", "timeout", "error"]
OUTCOMES: tuple[OutcomeName, ...] = ("success", "failure", "timeout", "error")


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode. `error` (worker, GL, server) is missing data, never a failure of the policy; `failure` is
    the policy's (it raised, sent NaN, or ended in a state that the suite calls final), `timeout` a spent budget."""

    key: EpisodeKey
    policy: str
    prompt: str
    prompt_source: str
    prompts: Mapping[str, str]
    outcome: OutcomeName
    steps: int
    decisions: int
    seconds: Mapping[str, float]  # reset, physics, render, policy, wait (for a batch or an actor)
    start_hash: str  # of qpos after settling
    end_hash: str  # of qpos at the end
    failure: str | None = None  # its class, see envs/outcome.py
    events: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # known defects of this task and initial state
    error: str | None = None
    video: str | None = None
    attempt: int = 1

    def to_json(self) -> str:
        """One line, without the newline: whatever an environment or a policy brought, as JSON can hold it
        (`jsonable`)."""
        raw = {name: _fitted(name, jsonable(getattr(self, name), bounded=True)) for name in _TYPES}
        return json.dumps(raw, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> EpisodeRecord:
        """Inverse of `to_json`. Raises ValueError with what is wrong."""
        raw = parse_json(line, constants=True)
        if not isinstance(raw, dict):
            raise ValueError(f"expected an object, found {type(raw).__name__}")
        raw = {k: v for k, v in raw.items() if k in _TYPES}  # a newer version may have written more
        for name, value in raw.items():
            _check(name, value, _TYPES[name])
        try:
            for name, value in raw["key"].items():
                _check(f"key.{name}", value, _KEY.get(name, str))
            raw["key"] = EpisodeKey(**raw["key"])
            raw["flags"] = tuple(map(str, raw.get("flags", ())))
            record = EpisodeRecord(**raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not an episode record: {error}") from None
        if record.outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {record.outcome!r}")
        if min(record.steps, record.decisions, record.key.init) < 0:
            raise ValueError("a number of it is negative")
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes a record travels as its line: an event that cannot be pickled must not lose it."""
        return EpisodeRecord.from_json, (self.to_json(),)


_KINDS: dict[str, Any] = {"int": int, "tuple": list, "EpisodeKey": dict, "Mapping": dict, "OutcomeName": str}
_TYPES: dict[str, Any] = {
    f.name: (_KINDS.get(str(f.type).split("[")[0], str), type(None))
    if str(f.type).endswith("| None")
    else _KINDS.get(str(f.type).split("[")[0], str)
    for f in dataclasses.fields(EpisodeRecord)
}
"""What each field is in JSON."""

_KEY: dict[str, Any] = {f.name: int if f.type == "int" else str for f in dataclasses.fields(EpisodeKey)}


def _check(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"'{name}' is of type {type(value).__name__}")


def _fitted(name: str, value: Any) -> Any:
    """A JSON value of the type that the field has, whatever an environment gave: steps as 3.0, an error as a list."""
    kind = _TYPES[name]
    if isinstance(kind, tuple):
        if value is None:
            return None
        kind = kind[0]
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


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of the canonical JSON; a `hash` that is already in it does not count."""
    bare = {k: v for k, v in protocol.items() if k != "hash"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


POLICYS_OWN = {"cameras": "looks at", "execute": "executes"}
"""Parts of a protocol card that say how a policy looks and acts, not what it is asked: they may differ. In words."""


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The settings in which two protocol cards differ and that matter, each as `name: a's / b's`."""
    own = ("hash", *POLICYS_OWN)
    first, second = (_flat({k: v for k, v in card.items() if k not in own}) for card in (a, b))
    names = sorted({*first, *second})
    return [
        f"{k}: {_shortened(first.get(k))} / {_shortened(second.get(k))}"
        for k in names
        if first.get(k) != second.get(k)
    ]


def policy_settings(a: Mapping[str, Any], b: Mapping[str, Any], name_a: str, name_b: str) -> list[str]:
    """The policies' own settings in which two protocol cards differ, as `A executes 10 actions per decision, B 5`."""
    found = []
    for key, verb in POLICYS_OWN.items():
        if None not in (a.get(key), b.get(key)) and a[key] != b[key]:
            first, second = (_setting(card[key]) for card in (a, b))
            unit = " actions per decision" if key == "execute" else ""
            found.append(f"{name_a} {verb} {first}{unit}, {name_b} {second}")
    return found


def _setting(value: Any) -> str:
    return " and ".join(map(str, value)) or "no camera" if isinstance(value, list) else str(value)


def _shortened(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class RunStore:
    """A run directory. The driver is its only writer, under the lock `core.files.exclusive`."""

    path: Path

    @property
    def episodes_path(self) -> Path:
        """`episodes.jsonl`."""
        return self.path / "episodes.jsonl"

    @staticmethod
    def create(path: Path, protocol: Mapping[str, Any], run: Mapping[str, Any]) -> RunStore:
        """Open a new or an existing run directory for writing: `protocol.json` first, for it marks a run. Wherever this
        is interrupted, the next call goes on. Raises UserError as `earlier` does, or where it cannot be written."""
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
        """`run.json` of the run here that a command of this protocol and policy goes on with; empty where a new one
        begins. Raises UserError where another protocol or policy has recorded episodes here, naming what differs, and
        where other files lie here."""
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
            return {}  # nothing is lost: a kill or a full disk before the first episode
        others = {
            "protocol": _differences(card, jsonable(dict(protocol))),
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
        """Open a run directory for reading."""
        try:
            if (path / "protocol.json").is_file():
                return RunStore(path)
        except (OSError, ValueError) as error:  # not ours to read; a null byte in the name
            raise UserError(f"Cannot read {path}: {reason(error)}.") from None
        raise UserError(f"{path} holds no run (no protocol.json).")

    def update_run(self, run: Mapping[str, Any]) -> None:
        """Replace `run.json`. Raises OSError."""
        self._check_there()
        write_json(self.path / "run.json", run)

    def protocol(self) -> dict[str, Any]:
        """The protocol card, with its `hash`. Raises UserError where it is damaged."""
        return read_protocol(self.path / "protocol.json")

    def run(self) -> dict[str, Any]:
        """What was asked, and what ran it. Raises UserError where it is damaged."""
        return read_run(self.path / "run.json")

    def put(self, name: str, content: bytes) -> None:
        """Write a file of the run, `videos/CELL/x.mp4`, whole or not at all. The name is the program's own, made of
        names that the suite has checked. Raises OSError."""
        self._check_there()
        path = self.path / name
        for folder in (self.path / f for f in reversed(path.relative_to(self.path).parents[:-1])):
            folder.mkdir(exist_ok=True)  # never the run directory itself
            if folder.is_symlink():
                raise OSError(errno.ELOOP, LINKED, str(folder))
        write_whole(path, content)

    def append(self, record: EpisodeRecord) -> None:
        """Append one line and flush it to the disk. A torn last line of an earlier crash is cut off first. Raises
        OSError; then nothing of the line stays."""
        line = record.to_json().encode() + b"\n"
        self._check_there()
        # Unbuffered: a buffer would be written once more on closing, after the line was taken back.
        with open(self.episodes_path, "ab", buffering=0, opener=_no_link) as file:
            end = file.tell()
            if end and not self._ends_with_newline():
                end = self.episodes_path.read_bytes().rfind(b"\n") + 1
                file.truncate(end)
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # what cannot be cut off now is a torn line, cut off next time
                    os.truncate(self.episodes_path, end)
                raise

    def _check_there(self) -> None:
        """A directory that vanished, or an empty one in its place (a disk that was unmounted), is not written to."""
        if not (self.path / "protocol.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "The run directory has vanished", str(self.path))

    def _ends_with_newline(self) -> bool:
        with open(self.episodes_path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def sweep(self) -> None:
        """Remove half-written files of commands that were killed. Only under the lock."""
        folders = [f for f in (self.path / "actions", self.path / "videos") if not f.is_symlink()]
        found = [self.path.glob(f"*{PART}"), *(f.rglob(f"*{PART}") for f in folders)]
        for path in [path for paths in found for path in paths]:
            try_remove(path)

    def episodes(self) -> list[EpisodeRecord]:
        """One record per key: a success, failure or timeout beats an error, otherwise the latest line counts."""
        best: dict[EpisodeKey, EpisodeRecord] = {}
        for record in self.lines():
            old = best.get(record.key)
            if old is None or old.outcome == "error" or record.outcome != "error":
                best[record.key] = record
        return list(best.values())

    def lines(self) -> Iterator[EpisodeRecord]:
        """Every record as it was written, one at a time, repeats of a key included.

        Raises UserError where a line that is not the last cannot be read: such a file was edited or damaged, and
        skipping it silently would lose an episode.
        """
        try:
            if not os.path.lexists(self.episodes_path):
                return
            with open_regular(self.episodes_path) as file:
                number = 0
                while line := file.readline(LINE_LIMIT):
                    number += 1
                    if not line.endswith(b"\n") and len(line) < LINE_LIMIT:
                        return  # torn: a crash while writing
                    try:
                        yield EpisodeRecord.from_json(line.decode())
                    except ValueError as error:
                        raise UserError(
                            f"{self.episodes_path}, line {number}, is damaged: {error}. Delete that line; the same "
                            "`apt-bench run` command then runs the missing episode again."
                        ) from None
        except OSError as error:
            raise UserError(f"Cannot read {self.episodes_path}: {reason(error)}.") from None


LINKED = "a link in a run directory is not written through; put a folder or a file in its place"


def _no_link(path: str, flags: int) -> int:
    """Opens a file of a run directory for writing, never what a link leads to: the directory may be somebody else's."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, LINKED, path)
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


LINE_LIMIT = 16 * 2**20
"""Bytes of one line, at most: several times what a record can have (`core.jsonable`)."""


def sequential_words(card: Mapping[str, Any]) -> str:
    """What a run's `sequential` entry (`Sequential.card`) says, in a sentence; whatever is not there is left out."""
    looks = card.get("looks")
    last = looks[-1] if isinstance(looks, list) and looks and isinstance(looks[-1], dict) else {}
    verdict, p, margin = card.get("verdict"), card.get("p"), card.get("margin")
    if not card.get("over"):
        found = "not over yet"
    elif verdict == "undecided":
        found = "no decision at the declared maximum"
    elif verdict == "equivalent" and isinstance(margin, float):
        found = f"equivalent within {100 * margin:g} points"
    else:
        found = str(verdict)
    chance = f", p = {p:.2g} with all looks counted" if isinstance(p, float) else ""
    return (
        f"Sequential test against {card.get('against')}, on the initial states of its tasks: {found} after "
        f"{last.get('pairs', 0)} of at most {card.get('maximum')} pairs (only this run succeeded in "
        f"{last.get('only_run', 0)}, only that one in {last.get('only_against', 0)}){chance}."
    )


def finished_keys(records: Iterable[EpisodeRecord]) -> set[EpisodeKey]:
    """Keys that need no further run: everything but errors."""
    return {r.key for r in records if r.outcome != "error"}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    first, second = _flat(old), _flat(new)
    return [
        f"{k}: {_shortened(first.get(k))} there, {_shortened(second.get(k))} now"
        for k in sorted({*first, *second} - {"hash"})
        if first.get(k) != second.get(k)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
