"""How a run ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from apt_bench.core.errors import UserError
from apt_bench.rollout.plan import Plan
from apt_bench.runs.records import EpisodeRecord, RunStore, finished_keys
from apt_bench.suites import EpisodeKey

Stop = Literal["", "interrupted", "disk", "errors", "ray"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        out: The run directory.
        finished: Requested episodes that have a result, also from earlier commands.
        missing: Requested episodes without a result.
        stopped: Why the run stopped early; empty = it did not.
        message: What stopped it, for people.
        sequential: State of the stopping rule, as `Sequential.card` gives it.
        new: Episodes that this command ran, errors included.
        seconds: Wall time from the first episode to the last.
    """

    out: Path
    finished: tuple[EpisodeKey, ...]
    missing: tuple[EpisodeKey, ...]
    stopped: Stop
    message: str = ""
    sequential: dict[str, Any] | None = None
    new: int = 0
    seconds: float = 0.0

    @cached_property
    def records(self) -> tuple[EpisodeRecord, ...]:
        """The records of the finished episodes, read from the run directory; none where that is lost."""
        try:
            best = {r.key: r for r in RunStore(self.out).episodes()} if self.finished else {}
        except (OSError, UserError):
            best = {}
        return tuple(best[k] for k in self.finished if k in best)

    @property
    def exit_code(self) -> int:
        """0 = every episode has a result, 1 = some are missing, 130 = interrupted."""
        return 130 if self.stopped == "interrupted" else int(bool(self.missing or self.stopped))

    @property
    def advice(self) -> str:
        """Why episodes are missing and what to do; empty where none is missing."""
        if self.stopped == "interrupted":
            return "interrupted. Rerun the same command to resume."
        if self.stopped and not (self.out / "protocol.json").is_file():
            return (
                f"stopped. {self.message}. {len(self.finished)} episodes are recorded in {self.out}, which cannot be "
                "reached now. Restore it, then rerun the same command to resume."
            )
        if self.stopped:
            return (
                f"stopped. {self.message}. {len(self.finished)} episodes are recorded in {self.out}. Solve the "
                "problem, then rerun the same command to resume."
            )
        if self.missing:
            return (
                f"{len(self.missing)} episodes are missing because of errors (see {self.out}/episodes.jsonl). "
                "Rerun the same command to try them again."
            )
        return ""


def run_result(plan: Plan, finished: Collection[EpisodeKey], stop: Stop = "", message: str = "") -> RunResult:
    """The result of a run with these finished episodes, whose records are on disk. Episodes that a stopping rule has
    not reached are not missing."""
    requested = dict.fromkeys(s.key for s in (plan.rule.begun if plan.rule else plan.specs))
    done = tuple(k for k in requested if k in finished)
    missing = tuple(k for k in requested if k not in finished)
    # A stop after the last episode changes nothing, unless the disk failed: then the rule's state may be unsaved.
    if not missing and stop != "disk":
        stop, message = "", ""
    return RunResult(plan.out, done, missing, stop, message, plan.rule.card() if plan.rule else None)


def result_on_disk(plan: Plan) -> RunResult:
    """The result of a run that has no episode left. Writes nothing, because `run.json` names what ran it.

    Raises:
        UserError: The directory holds a run of another protocol or policy.
    """
    store = RunStore(plan.out)
    store.earlier(plan.protocol, plan.policy.identity(plan.policy_spec))
    return run_result(plan, finished_keys(store.lines()))
