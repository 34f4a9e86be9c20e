"""What a run leaves behind: one JSON line per episode, in a directory that resumes.

    run/episodes.jsonl   append only, flushed per episode; a torn last line (a crash while writing) is ignored
    run/protocol.json    everything that may change a score, and its hash
    run/run.json         what was asked and what ran it: policy, versions, git revision, command, machine, GL renderer
    run/videos/          run/report/

Readers of results need this module alone: no simulator, no torch.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apt_bench.core.errors import UserError
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
        """One line, without the newline."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> EpisodeRecord:
        """Inverse of `to_json`. Raises ValueError with what is wrong."""
        try:
            raw = json.loads(line)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if "\\ud" in line.lower():  # half of a surrogate pair cannot be written again
            json.dumps(raw, ensure_ascii=False).encode()
        if not isinstance(raw, dict):
            raise ValueError(f"expected an object, found {type(raw).__name__}")
        raw = {k: v for k, v in raw.items() if k in _TYPES}  # a newer version may have written more
        for name, kind in _TYPES.items():
            if name in raw and not isinstance(raw[name], kind):
                raise ValueError(f"'{name}' is of type {type(raw[name]).__name__}")
        try:
            for name, value in raw["key"].items():
                if not isinstance(value, int if name in ("init", "seed") else str):
                    raise ValueError(f"'key.{name}' is of type {type(value).__name__}")
            raw["key"] = EpisodeKey(**raw["key"])
            raw["flags"] = tuple(map(str, raw.get("flags", ())))
            record = EpisodeRecord(**raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not an episode record: {error}") from None
        if record.outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {record.outcome!r}")
        return record


_KINDS: dict[str, Any] = {"int": int, "tuple": list, "EpisodeKey": dict, "Mapping": dict, "OutcomeName": str}
_TYPES = {
    f.name: (_KINDS.get(str(f.type).split("[")[0], str), type(None))
    if str(f.type).endswith("| None")
    else _KINDS.get(str(f.type).split("[")[0], str)
    for f in dataclasses.fields(EpisodeRecord)
}
"""What each field is in JSON."""


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of the canonical JSON; a `hash` that is already in it does not count."""
    bare = {k: v for k, v in protocol.items() if k != "hash"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


POLICYS_OWN = ("hash", "cameras")
"""Parts of a protocol card that say what a policy looks at, not what it is asked: they may differ."""


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The settings in which two protocol cards differ and that matter, each as `name: a's / b's`."""
    first, second = (_flat({k: v for k, v in card.items() if k not in POLICYS_OWN}) for card in (a, b))
    names = sorted({*first, *second})
    return [
        f"{k}: {_shortened(first.get(k))} / {_shortened(second.get(k))}"
        for k in names
        if first.get(k) != second.get(k)
    ]


def _shortened(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class RunStore:
    """A run directory. The driver is its only writer."""

    path: Path

    @property
    def episodes_path(self) -> Path:
        """`episodes.jsonl`."""
        return self.path / "episodes.jsonl"

    @staticmethod
    def create(path: Path, protocol: Mapping[str, Any], run: Mapping[str, Any]) -> RunStore:
        """Open a new or an existing run directory for writing. Raises UserError where another protocol or policy has
        recorded episodes there, naming what differs."""
        store = RunStore(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if store.episodes_path.exists() and (path / "protocol.json").exists():
                store._check_same("protocol", store.protocol(), protocol)
                store._check_same("policy", store.run().get("policy", {}), run.get("policy", {}))
            elif any(
                p.name.removesuffix(".part") not in ("protocol.json", "run.json") for p in path.iterdir()
            ):
                raise UserError(
                    f"{path} is not empty and holds no run. Give --out an empty or new directory."
                )
            else:
                _write_json(path / "protocol.json", {"hash": protocol_hash(protocol), **protocol})
            _write_json(path / "run.json", run)
        except OSError as error:
            raise UserError(f"Cannot write the run directory {path}: {error.strerror or error}.") from None
        return store

    @staticmethod
    def open(path: Path) -> RunStore:
        """Open a run directory for reading."""
        if not (path / "protocol.json").is_file():
            raise UserError(f"{path} holds no run (no protocol.json).")
        return RunStore(path)

    def update_run(self, run: Mapping[str, Any]) -> None:
        """Replace `run.json`. Raises UserError where it cannot be written."""
        try:
            _write_json(self.path / "run.json", run)
        except OSError as error:
            raise UserError(f"Cannot write {self.path / 'run.json'}: {error.strerror or error}.") from None

    def protocol(self) -> dict[str, Any]:
        """The protocol card, with its `hash`."""
        return _read_json(self.path / "protocol.json")

    def run(self) -> dict[str, Any]:
        """What was asked, and what ran it."""
        return _read_json(self.path / "run.json")

    def _check_same(self, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        old, new = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
        differing = [
            f"{k}: {old.get(k)!r} there, {new.get(k)!r} now"
            for k in sorted({*old, *new} - {"hash"})
            if old.get(k) != new.get(k)
        ]
        if differing:
            raise UserError(
                f"{self.path} holds a run of another {what} ({'; '.join(differing)}). "
                "Give --out another directory, or repeat the settings of that run."
            )

    def append(self, record: EpisodeRecord) -> None:
        """Append one line and flush it to the disk. A torn last line of an earlier crash is cut off first."""
        # Unbuffered: a buffer would be written once more on closing, after the line was taken back.
        with open(self.episodes_path, "ab", buffering=0) as file:
            end = file.tell()
            if end and not self._ends_with_newline():
                end = self.episodes_path.read_bytes().rfind(b"\n") + 1
                file.truncate(end)
            try:
                line = record.to_json().encode() + b"\n"
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.episodes_path, end)  # never leave half a line behind
                raise

    def _ends_with_newline(self) -> bool:
        with open(self.episodes_path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

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
        if not self.episodes_path.exists():
            return
        with open(self.episodes_path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return  # torn: a crash while writing
                try:
                    yield EpisodeRecord.from_json(line.decode())
                except ValueError as error:
                    raise UserError(
                        f"{self.episodes_path}, line {number}, is damaged: {error}. Delete that line; the same "
                        "`apt-bench run` command then runs the missing episode again."
                    ) from None


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
        f"Sequential test against {card.get('against')}: {found} after {last.get('pairs', 0)} of at most "
        f"{card.get('maximum')} pairs (only this run succeeded in {last.get('only_run', 0)}, only that one in "
        f"{last.get('only_against', 0)}){chance}."
    )


def finished_keys(records: Iterable[EpisodeRecord]) -> set[EpisodeKey]:
    """Keys that need no further run: everything but errors."""
    return {r.key for r in records if r.outcome != "error"}


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep a second `apt-bench run` out of this directory (made if needed). The lock dies with its process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"Cannot use {path} as run directory: {error.strerror}.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"Another apt-bench run is writing to {path}. Wait for it, or give --out.") from None
    finally:
        os.close(handle)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all: written beside, then moved into place."""
    part = path.with_suffix(path.suffix + ".part")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: expected an object.")
    return value
