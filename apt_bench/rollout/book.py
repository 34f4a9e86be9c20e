"""The writer of a run directory: starts or continues it, fills it with what the workers send, and says how it ended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from apt_bench.core.errors import PolicyFault, RayLost, UserError
from apt_bench.core.files import reason
from apt_bench.core.machine import circumstances
from apt_bench.core.tracking import Tracker
from apt_bench.policies.simple import packed_actions
from apt_bench.rollout import identity
from apt_bench.rollout.engine import Stream
from apt_bench.rollout.episode import POLICY_FAULT, error_record
from apt_bench.rollout.plan import Plan
from apt_bench.rollout.progress import Progress
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Result
from apt_bench.runs.records import EpisodeRecord, RunStore, protocol_hash
from apt_bench.suites import EpisodeKey, EpisodeSpec

ERRORS_IN_A_ROW = 5
"""So many episodes lost one after the other: something is broken for all of them, and the run stops."""

Stop = Literal["", "interrupted", "disk", "errors", "ray"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    out: Path
    records: tuple[EpisodeRecord, ...]  # of the episodes asked for, earlier commands' included
    missing: tuple[EpisodeKey, ...]
    stopped: Stop
    message: str = ""
    sequential: dict[str, Any] | None = None  # see Sequential.card

    @property
    def exit_code(self) -> int:
        """0 every episode has a result, 1 some are missing, 130 interrupted."""
        return 130 if self.stopped == "interrupted" else int(bool(self.missing or self.stopped))

    @property
    def advice(self) -> str:
        """Why episodes are missing and what to do, for people; empty where none is."""
        if self.stopped == "interrupted":
            return "interrupted; the same command goes on from here."
        if self.stopped and not (self.out / "protocol.json").is_file():
            return (
                f"stopped. {self.message}. The {len(self.records)} episodes recorded so far are in {self.out}, which "
                "cannot be reached: bring it back, and the same command goes on from there."
            )
        if self.stopped:
            return (
                f"stopped. {self.message}. {len(self.records)} episodes are safe in {self.out}; mend it, and the same "
                "command goes on from here."
            )
        if self.missing:
            return (
                f"{len(self.missing)} episodes are missing (errors, see {self.out}/episodes.jsonl); the same command "
                "tries them again."
            )
        return ""


def result(plan: Plan, finished: Mapping[EpisodeKey, EpisodeRecord], stop: Stop, message: str) -> RunResult:
    """How the run stands. What a sequential rule has not come to is not missing."""
    asked = dict.fromkeys(s.key for s in (plan.rule.begun if plan.rule else plan.specs))
    records = tuple(finished[k] for k in asked if k in finished)
    missing = tuple(k for k in asked if k not in finished)
    # Nothing was left to stop; but a disk may not have taken how the rule stands.
    if not missing and stop != "disk":
        stop, message = "", ""
    return RunResult(plan.out, records, missing, stop, message, plan.rule.card() if plan.rule else None)


def nothing_left(plan: Plan) -> RunResult:
    """Of a run that is over. Writes nothing: what ran it is on record. Raises UserError where it is another run."""
    store = RunStore(plan.out)
    store.earlier(plan.protocol, plan.policy.identity(plan.policy_spec))
    finished = {r.key: r for r in store.episodes() if r.outcome != "error"}
    return result(plan, finished, "", "")


class Book:
    """Writes the run directory."""

    def __init__(self, todo: Plan, gl: Mapping[str, Any] | None) -> None:
        self._plan = todo
        self._clock = time.monotonic()
        policy = todo.policy.identity(todo.policy_spec)
        earlier = RunStore(todo.out).earlier(todo.protocol, policy)
        self._run = {
            **circumstances(),
            **identity.simulator(todo.suite),
            "gl": gl or earlier.get("gl"),
            "policy": policy,
            "unavailable": {**earlier.get("unavailable", {}), **identity.unavailable(todo.suite, todo.specs)},
            "requested": earlier.get("requested", {}),
            "requested_probes": earlier.get("requested_probes", {}),
            "started": earlier.get("started", _now()),
            "ended": None,
            "wall_seconds": earlier.get("wall_seconds", 0.0),
        }
        if "sequential" in earlier:
            self._run["sequential"] = earlier["sequential"]
        self._asked(todo.rule.begun if todo.rule else todo.specs)
        self._store = RunStore.create(todo.out, todo.protocol, self._run)

    def card(self) -> dict[str, Any]:
        """What a tracker keeps as the run's configuration."""
        return {**self._run, "protocol": {**self._plan.protocol, "hash": protocol_hash(self._plan.protocol)}}

    def _asked(self, specs: Iterable[EpisodeSpec]) -> None:
        """So many episodes are asked for, and there the rule stands."""
        for name, found in identity.requested(specs, self._run).items():
            self._run[name] = found
        if self._plan.rule:
            self._run["sequential"] = self._plan.rule.card()

    def _begin(self, schedule: Schedule, batch: Sequence[EpisodeSpec]) -> None:
        """Queue the rule's next batch, and note where the rule stands. Raises Unwritable."""
        assert self._plan.rule
        schedule.add(batch)
        self._asked(self._plan.rule.begun)
        with _writing():
            self._store.update_run(self._run)

    def fill(
        self,
        schedule: Schedule,
        stream: Stream,
        stopped: Callable[[], bool],
        console: Console,
        workers: int,
        tracker: Tracker,
    ) -> RunResult:
        """Record what the stream brings until it ends, is interrupted, or cannot go on."""
        rule = self._plan.rule
        asked = {s.key for s in self._plan.specs}
        finished = {r.key: r for r in self._store.episodes() if r.outcome != "error"}
        stop: Stop = ""
        message, lost = "", 0
        answered = any(r.decisions for r in finished.values())
        with Progress(len(asked), [r for k, r in finished.items() if k in asked], console) as progress:
            try:
                if rule:
                    self._begin(schedule, rule.start(finished))
                for spec, attempt, found in stream:
                    if found.fatal:
                        raise UserError(found.fatal)
                    record = found.record
                    if record is None:
                        why = found.error or "unknown error"
                        if schedule.retry(spec):
                            progress.retrying(spec.key.id, why)
                            continue
                        record = error_record(spec, self._plan.policy_spec.name, why, attempt)
                    elif record.failure == POLICY_FAULT and not record.decisions and not answered:
                        raise PolicyFault(
                            f"{record.error}. It has answered nothing usable yet (episode {record.key.id})."
                        )
                    answered |= record.decisions > 0
                    lost = lost + 1 if record.outcome == "error" else 0
                    record = self._keep(spec.key, record, found)
                    if record.outcome != "error":
                        finished[record.key] = record
                    progress.ended(record)
                    tracker.log(progress.metrics(record))
                    if rule and ((batch := rule.ended(record)) or rule.over):
                        self._begin(schedule, batch)
                    if lost >= ERRORS_IN_A_ROW:
                        stop = "errors"
                        message = f"{lost} episodes in a row were lost, the last to: {record.error}"
                        break
            except Unwritable as error:
                stop, message = "disk", f"Cannot write the run directory: {error}"
            except RayLost as error:
                stop, message = "ray", str(error)
        if not stop and stopped():
            stop = "interrupted"
        tracker.table("cells", *progress.table())
        self._close(workers)
        return result(self._plan, finished, stop, message)

    def _keep(self, key: EpisodeKey, record: EpisodeRecord, found: Result) -> EpisodeRecord:
        """Files first, the record last: a record never names a file that is not there. Raises Unwritable.

        key: the episode's as the suite made it, of names that are safe in a path."""
        name = f"{key.cell}/{key.task}_init{key.init}" + ("" if key.prompt == "default" else f"_{key.prompt}")
        with _writing():
            if found.actions is not None:
                self._store.put(f"actions/{name}.npz", packed_actions(key.id, found.actions))
            if found.video is not None:
                video = f"videos/{name}_{record.outcome}.mp4"
                self._store.put(video, found.video)
                record = dataclasses.replace(record, video=video)
            self._store.append(record)
        return record

    def _close(self, workers: int) -> None:
        seconds = round(self._run["wall_seconds"] + time.monotonic() - self._clock, 1)
        with suppress(OSError):  # a full disk: the episodes are what matters
            self._store.update_run(
                {**self._run, "workers": workers, "ended": _now(), "wall_seconds": seconds}
            )


class Unwritable(Exception):
    """The run directory cannot be written to any more: a full disk, a vanished folder, an error of the device."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(reason(error)) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
