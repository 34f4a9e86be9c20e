"""The loop that records results, decides about retries, and stops the runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rich.console import Console

from apt_bench.core.errors import PolicyFault, RayLost, UserError
from apt_bench.core.status import status
from apt_bench.core.tracking import Tracker
from apt_bench.rollout.engine import Stream
from apt_bench.rollout.episode import POLICY_FAULT, error_record
from apt_bench.rollout.plan import Plan
from apt_bench.rollout.progress import Counts, Progress, running
from apt_bench.rollout.result import RunResult, Stop, run_result
from apt_bench.rollout.schedule import Job, Schedule
from apt_bench.rollout.workers import Result
from apt_bench.rollout.writer import RunWriter, Unwritable
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey

ERRORS_IN_A_ROW = 5
"""The runs stop after this many lost episodes of one run in a row, because something is broken for all of them."""


class Recorder:
    """Records the results of one run.

    Args:
        plan: What is run.
        writer: Writes the run directory.
        tracker: Gets each episode's metrics and the final table.
    """

    def __init__(self, plan: Plan, writer: RunWriter, tracker: Tracker) -> None:
        self.plan, self.writer, self.tracker = plan, writer, tracker
        self.finished: dict[EpisodeKey, str] = {}  # without the records, which would grow with the run
        self._answered = False
        for recorded in writer.finished():
            self.finished[recorded.key] = recorded.outcome
            self._answered |= recorded.decisions > 0
        requested = {s.key for s in plan.specs}
        earlier = ((key, outcome) for key, outcome in self.finished.items() if key in requested)
        self.counts = Counts(plan.policy.name, len(requested), earlier)
        self.errors = 0  # lost episodes since the last result

    def record(self, job: Job, found: Result) -> EpisodeRecord:
        """Write the result of an episode that is not tried again.

        Raises:
            PolicyFault: The first answer of the policy is unusable, so it is set up wrongly.
            Unwritable: The directory cannot be written.
        """
        record = found.record
        if record is None:
            record = error_record(job.spec, self.plan.policy_spec.name, why(found), job.attempt)
        elif record.failure == POLICY_FAULT and not record.decisions and not self._answered:
            raise PolicyFault(
                f"{record.error}. The policy has given no usable answer yet (episode {record.key.id})."
            )
        self._answered |= record.decisions > 0
        self.errors = self.errors + 1 if record.outcome == "error" else 0
        record = self.writer.write(job.spec.key, record, found)
        if record.outcome != "error":
            self.finished[job.spec.key] = record.outcome
        self.counts.ended(record)
        self.tracker.log(self.counts.metrics(record))
        return record

    def close(self, workers: int, stop: Stop, message: str, seconds: float) -> RunResult:
        """Close the run directory."""
        self.tracker.table("cells", *self.counts.table())
        self.writer.close(workers)
        ended = run_result(self.plan, self.finished, stop, message)
        return dataclasses.replace(ended, new=self.counts.new, seconds=seconds)


def why(found: Result) -> str:
    """Why an attempt has no record."""
    return found.error or "unknown error"


def record_results(
    runs: Sequence[Recorder],
    schedule: Schedule,
    stream: Stream,
    stopped: Callable[[], bool],
    console: Console,
    workers: int,
) -> list[RunResult]:
    """Record what the stream yields until it ends, is interrupted, or must stop. What stops one run stops all.

    Args:
        runs: The runs that share the workers.
        schedule: The queue that the stream takes its episodes from; retries and a rule's batches are added to it.
        stream: Episodes and results.
        stopped: Whether the command was interrupted.
        console: Shows the progress.
        workers: Number of workers, for `run.json`.

    Raises:
        UserError: Bad input that a worker found.
        PolicyFault: The first answer of a policy is unusable, so it is set up wrongly.
    """
    stop: Stop = ""
    message = ""
    with Progress([run.counts for run in runs], console, lambda: running(schedule)) as progress:
        try:
            for number, run in enumerate(runs):
                if rule := run.plan.rule:
                    schedule.add(rule.start(run.finished), number)
                    run.writer.update_rule()
            for job, found in stream:
                run = runs[job.run]
                if found.fatal:
                    raise UserError(found.fatal)
                if found.record is None and schedule.retry(job):
                    progress.retrying(job.spec.key.id, why(found))
                    continue
                record = run.record(job, found)
                progress.update()
                if (rule := run.plan.rule) and ((batch := rule.ended(record)) or rule.over):
                    schedule.add(batch, job.run)
                    run.writer.update_rule()
                if run.errors >= ERRORS_IN_A_ROW:
                    stop = "errors"
                    message = f"{run.errors} episodes in a row were lost, the last to: {record.error}"
                    break
        except Unwritable as error:
            stop, message = "disk", f"Cannot write the run directory: {error}"
        except RayLost as error:
            stop, message = "ray", str(error)
    if not stop and stopped():
        stop = "interrupted"
    with status("Closing the run directory"):
        return [run.close(workers, stop, message, progress.seconds) for run in runs]
