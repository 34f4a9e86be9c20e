"""The writer of a run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from apt_bench.core.files import reason
from apt_bench.core.machine import system_info
from apt_bench.policies.simple import packed_actions
from apt_bench.rollout import identity
from apt_bench.rollout.plan import Plan
from apt_bench.rollout.workers import Result
from apt_bench.runs.protocol import protocol_hash
from apt_bench.runs.records import EpisodeRecord, RunStore
from apt_bench.suites import EpisodeKey, EpisodeSpec


class RunWriter:
    """Creates or continues a run directory and writes all of its files."""

    def __init__(
        self,
        plan: Plan,
        gl: Mapping[str, Any] | None,
        canaries: Mapping[str, Any] | None = None,
        rule: str | None = None,
    ) -> None:
        """Write `protocol.json` and `run.json`.

        Args:
            plan: What is to be run.
            gl: The renderer in use; None = nothing is rendered.
            canaries: What a check of the policy's server found.
            rule: Which checkpoint was run and how it was chosen; None = as recorded before.

        Raises:
            UserError: The directory holds a run of another protocol or policy, or cannot be written.
        """
        self._plan = plan
        self._begun = time.monotonic()
        policy = plan.policy.identity(plan.policy_spec)
        earlier = RunStore(plan.out).earlier(plan.protocol, policy)
        self._run = {
            **system_info(),
            **identity.simulator(plan.suite),
            "gl": gl or earlier.get("gl"),
            "policy": policy,
            "unavailable": {**earlier.get("unavailable", {}), **identity.unavailable(plan.suite, plan.specs)},
            "requested": earlier.get("requested", {}),
            "requested_probes": earlier.get("requested_probes", {}),
            "started": earlier.get("started", _now()),
            "ended": None,
            "wall_seconds": earlier.get("wall_seconds", 0.0),
        }
        if found := canaries or earlier.get("canaries"):
            self._run["canaries"] = found
        if stated := rule or earlier.get("selection_rule"):
            self._run["selection_rule"] = stated
        if "sequential" in earlier:
            self._run["sequential"] = earlier["sequential"]
        self._add_requested(plan.rule.begun if plan.rule else plan.specs)
        self._store = RunStore.create(plan.out, plan.protocol, self._run)

    def card(self) -> dict[str, Any]:
        """The run's configuration, for a tracker."""
        return {**self._run, "protocol": {**self._plan.protocol, "hash": protocol_hash(self._plan.protocol)}}

    def finished(self) -> Iterator[EpisodeRecord]:
        """The records on disk that are results, one at a time."""
        return (r for r in self._store.lines() if r.outcome != "error")

    def update_rule(self) -> None:
        """Write the state of the stopping rule and the episodes that it has requested so far. Raises Unwritable."""
        assert self._plan.rule
        self._add_requested(self._plan.rule.begun)
        with _unwritable():
            self._store.update_run(self._run)

    def write(self, key: EpisodeKey, record: EpisodeRecord, found: Result) -> EpisodeRecord:
        """Write an episode: its files first, so that the record never names a missing file.

        Args:
            key: The episode's key from the suite, whose names are safe in a path.
            record: What to record.
            found: Carries the actions and the video, if any. With `more`, the record is flushed with the next one.

        Returns:
            The record as written, with the video's path.

        Raises:
            Unwritable: The directory cannot be written.
        """
        name = f"{key.cell}/{key.task}_init{key.init}" + ("" if key.prompt == "default" else f"_{key.prompt}")
        with _unwritable():
            if found.actions is not None:
                self._store.put(f"actions/{name}.npz", packed_actions(key.id, found.actions))
            if found.video is not None:
                video = f"videos/{name}_{record.outcome}.mp4"
                self._store.put(video, found.video)
                record = dataclasses.replace(record, video=video)
            self._store.append(record, flush=not found.more)
        return record

    def close(self, workers: int) -> None:
        """Write when the run ended and how long it took, if the disk permits."""
        seconds = round(self._run["wall_seconds"] + time.monotonic() - self._begun, 1)
        with suppress(OSError):  # no episode was recorded
            self._store.flush()  # the last one may have announced another, which a stop left out
        with suppress(OSError):  # a full disk: the episodes are what matters
            self._store.update_run(
                {**self._run, "workers": workers, "ended": _now(), "wall_seconds": seconds}
            )

    def _add_requested(self, specs: Iterable[EpisodeSpec]) -> None:
        self._run.update(identity.requested(specs, self._run))
        if self._plan.rule:
            self._run["sequential"] = self._plan.rule.card()


class Unwritable(Exception):
    """The run directory cannot be written: a full disk, a missing folder, a device error."""


@contextmanager
def _unwritable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(reason(error)) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
