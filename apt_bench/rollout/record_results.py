"""The loop that records results, decides about retries, and stops the run."""

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
from apt_bench.rollout.progress import Progress, running
from apt_bench.rollout.result import RunResult, Stop, run_result
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.writer import RunWriter, Unwritable
from apt_bench.suites import EpisodeKey, EpisodeSpec

ERRORS_IN_A_ROW = 5
"""The run stops after this many lost episodes in a row, because something is broken for all of them."""


def record_results(
    plan: Plan,
    writer: RunWriter,
    schedule: Schedule,
    stream: Stream,
    stopped: Callable[[], bool],
    console: Console,
    workers: int,
    tracker: Tracker,
) -> RunResult:
    """Record what the stream yields until it ends, is interrupted, or the run must stop.

    Args:
        plan: What is run.
        writer: Writes the run directory.
        schedule: The queue that the stream takes its episodes from; retries and the rule's batches are added to it.
        stream: Episodes, attempts and results.
        stopped: Whether the run was interrupted.
        console: Shows the progress.
        workers: Number of workers, for `run.json`.
        tracker: Gets each episode's metrics and the final table.

    Raises:
        UserError: Bad input that a worker found.
        PolicyFault: The first answer of the policy is unusable, so it is set up wrongly.
    """
    rule = plan.rule
    requested = {s.key for s in plan.specs}
    finished: dict[EpisodeKey, str] = {}  # without the records, which would grow with the run
    stop: Stop = ""
    message, errors = "", 0
    answered = False
    for recorded in writer.finished():
        finished[recorded.key] = recorded.outcome
        answered |= recorded.decisions > 0

    def queue(batch: Sequence[EpisodeSpec]) -> None:
        schedule.add(batch)
        writer.update_rule()

    earlier = ((key, outcome) for key, outcome in finished.items() if key in requested)
    with Progress(len(requested), earlier, console, lambda: running(schedule)) as progress:
        try:
            if rule:
                queue(rule.start(finished))
            for spec, attempt, found in stream:
                if found.fatal:
                    raise UserError(found.fatal)
                record = found.record
                if record is None:
                    why = found.error or "unknown error"
                    if schedule.retry(spec):
                        progress.retrying(spec.key.id, why)
                        continue
                    record = error_record(spec, plan.policy_spec.name, why, attempt)
                elif record.failure == POLICY_FAULT and not record.decisions and not answered:
                    raise PolicyFault(
                        f"{record.error}. The policy has given no usable answer yet (episode {record.key.id})."
                    )
                answered |= record.decisions > 0
                errors = errors + 1 if record.outcome == "error" else 0
                record = writer.write(spec.key, record, found)
                if record.outcome != "error":
                    finished[spec.key] = record.outcome
                progress.ended(record)
                tracker.log(progress.metrics(record))
                if rule and ((batch := rule.ended(record)) or rule.over):
                    queue(batch)
                if errors >= ERRORS_IN_A_ROW:
                    stop = "errors"
                    message = f"{errors} episodes in a row were lost, the last to: {record.error}"
                    break
        except Unwritable as error:
            stop, message = "disk", f"Cannot write the run directory: {error}"
        except RayLost as error:
            stop, message = "ray", str(error)
    if not stop and stopped():
        stop = "interrupted"
    with status("Closing the run directory"):
        tracker.table("cells", *progress.table())
        writer.close(workers)
    ended = run_result(plan, finished, stop, message)
    return dataclasses.replace(ended, new=progress.new, seconds=progress.seconds)
