"""A run: from a suite and a policy to a directory of episode records. The driver is the directory's only writer."""

from __future__ import annotations

import dataclasses
import errno
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from apt_bench import probes, rendering
from apt_bench.core.errors import PolicyFault, UserError
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.policies.simple import save_actions
from apt_bench.core.files import exclusive
from apt_bench.records import EpisodeRecord, RunStore, finished_keys, protocol_hash
from apt_bench.rollout import identity
from apt_bench.rollout.engine import PolicyActor, RayPool, Stream, policy_actors, ray_session, run_local
from apt_bench.rollout.episode import POLICY_FAULT, error_record
from apt_bench.rollout.progress import Progress
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.stopping import Sequential, open_rule
from apt_bench.rollout.workers import Result, Settings, Video
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite, load_suite
from apt_bench.tracking import Tracker, find_tracker, tracking

ERRORS_IN_A_ROW = 5
"""So many episodes lost one after the other: something is broken for all of them, and the run stops."""


@dataclass(frozen=True)
class RunOptions:
    """What `apt-bench run` was asked for. None = the suite's or the policy's own choice."""

    suite: str
    policy: str
    policy_args: tuple[str, ...] = ()
    file: str | None = None
    cells: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    episodes: int | None = None
    seed: int | None = None
    limit: int | None = None
    instruction: str | None = None
    probes: tuple[str, ...] = ()
    execute: int | None = None
    workers: str = "auto"
    video: str = "none"
    save_actions: bool = False
    out: Path | None = None
    ray_address: str | None = None
    attempts: int = 3
    hang_seconds: float = 180.0
    unpinned: bool = False
    against: Path | None = None  # stop when decided against this run
    track: str = "none"  # or wandb, trackio
    margin: float | None = None  # fraction; with `against`: equivalence within it decides too


@dataclass(frozen=True)
class Plan:
    """What is to be run, known before anything runs."""

    suite: Suite
    specs: tuple[EpisodeSpec, ...]
    policy: PolicyRef
    policy_spec: PolicySpec
    execute: int
    protocol: dict[str, Any]
    out: Path
    finished: frozenset[EpisodeKey]
    rule: Sequential | None = None  # then `specs` is what it may play, in its order

    @property
    def todo(self) -> list[EpisodeSpec]:
        """Episodes without a result, as far as a rule may still play them."""
        if self.rule and self.rule.over:
            return []
        return [s for s in self.specs if s.key not in self.finished]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    out: Path
    records: tuple[EpisodeRecord, ...]  # of the episodes asked for, earlier commands' included
    missing: tuple[EpisodeKey, ...]
    stopped: Literal["", "interrupted", "disk", "errors"]
    message: str = ""
    sequential: dict[str, Any] | None = None  # see Sequential.card

    @property
    def exit_code(self) -> int:
        """0 every episode has a result, 1 some are missing, 130 interrupted."""
        return 130 if self.stopped == "interrupted" else int(bool(self.missing))


def select(options: RunOptions) -> tuple[Suite, tuple[EpisodeSpec, ...]]:
    """The suite and the episodes asked for."""
    suite = load_suite(options.suite)
    find_tracker(options.track)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, not {options.limit}.")
    installed = identity.versions(suite.simulator)
    for package, wanted in suite.simulator.items():
        if installed[package] != wanted and not options.unpinned:
            raise UserError(
                f"Suite '{suite.name}' is defined on {package} {wanted}; here is {installed[package]}, and scores "
                f"depend on it. Install {package}=={wanted}, or run another protocol on purpose with --unpinned."
            )
    specs = suite.select(
        options.cells or None,
        options.tasks or None,
        options.episodes,
        options.seed,
        options.instruction,
        options.limit,
    )
    if not specs:
        raise UserError("None of these tasks is available. `apt-bench ls tasks` says why.")
    if options.against is not None:
        RunStore.open(options.against)
        if options.probes or options.limit is not None:
            raise UserError("--stop-when decided goes with neither --probe nor --limit. Leave them out.")
        if options.margin is not None and not 0 < options.margin < 1:
            raise UserError(f"--margin must lie between 0 and 100 points, not {100 * options.margin:g}.")
    if options.probes:
        cells = list(dict.fromkeys(s.key.cell for s in specs))
        every = suite.select(cells, episodes=1, seed=options.seed, instruction=options.instruction)
        specs = probes.expand(specs, options.probes, every)
    return suite, tuple(specs)


def plan(
    options: RunOptions,
    suite: Suite,
    specs: tuple[EpisodeSpec, ...],
    ref: PolicyRef,
    policy_spec: PolicySpec,
) -> Plan:
    """Fix the protocol and the run directory, and look up what is finished there."""
    execute = min(policy_spec.execute, policy_spec.horizon) if options.execute is None else options.execute
    if not 1 <= execute <= policy_spec.horizon:
        raise UserError(
            f"--execute-horizon must lie between 1 and the policy's chunk of {policy_spec.horizon}, not {execute}."
        )
    protocol = identity.protocol(suite, policy_spec, execute, options.seed, options.instruction)
    default = f"{suite.name}-{ref.label(policy_spec)}-{protocol_hash(protocol)}"
    if options.against is not None:
        default += "-sequential"
    out = options.out or Path("results/runs") / default
    finished = finished_keys(RunStore(out).episodes()) if out.is_dir() else set()
    rule = None
    if options.against is not None:
        rule = open_rule(options.against, options.margin, protocol, specs, out, bool(finished))
        specs = rule.specs
    return Plan(suite, specs, ref, policy_spec, execute, protocol, out, frozenset(finished), rule)


def asked_workers(text: str) -> int | None:
    """`--workers`: a number, or None for `auto`."""
    if text == "auto":
        return None
    if not text.isdigit():
        raise UserError(f"--workers is auto or a number from 0, not '{text}'.")
    return int(text)


def dry_plan(options: RunOptions) -> Plan:
    """What `run` would do; the policy is made in this process to learn its chunk and cameras."""
    suite, specs = select(options)
    ref = find_policy(options.policy, options.policy_args, options.file)
    return plan(options, suite, specs, ref, ref.load().spec)


def run(
    options: RunOptions, console: Console, prepare: Callable[[EpisodeSpec], EpisodeSpec] = lambda spec: spec
) -> RunResult:
    """Run what is missing and record it. Raises UserError for bad input and for a policy that never answered well.

    prepare: the last word on how an episode is run, not on which (`apt-bench collect` wraps its environment)."""
    video, asked = Video.parse(options.video), asked_workers(options.workers)
    suite, specs = select(options)
    specs = tuple(map(prepare, specs))
    ref = find_policy(options.policy, options.policy_args, options.file)
    home = str(Path.cwd())
    with ExitStack() as stack:
        actors: list[PolicyActor] = []
        workers = 0
        if ref.placement == "worker" or asked == 0:
            policy = ref.load()
            todo = plan(options, suite, specs, ref, policy.spec)
        else:  # its weights are loaded once, where it will run
            policy = None
            workers = stack.enter_context(ray_session(options.ray_address, asked, len(specs)))
            actors = policy_actors(ref, workers, home)
            todo = plan(options, suite, specs, ref, actors[0].spec())
        stack.enter_context(exclusive(todo.out, "apt-bench run"))
        renders = bool(suite.simulator) and (todo.policy_spec.cameras or video.which != "none") and todo.todo
        book = _Book(todo, dataclasses.asdict(rendering.describe()) if renders else None)
        if not actors and asked != 0 and todo.todo:
            workers = stack.enter_context(ray_session(options.ray_address, asked, len(todo.todo)))
        settings = Settings(
            env=suite.env,
            policy=ref,
            policy_spec=todo.policy_spec,
            execute=todo.execute,
            video=video,
            save_actions=options.save_actions,
            control_hz=suite.control_hz,
            path=home,
        )
        schedule = Schedule([] if todo.rule else todo.todo, options.attempts)
        stopped = stack.enter_context(stop_on_signals())
        if workers:
            pool = RayPool(workers, settings, actors, options.hang_seconds)
            stream = pool.stream(schedule, stopped)
        else:
            stream = run_local(schedule, settings, stopped, policy)
        tracker = stack.enter_context(tracking(options.track, todo.out, book.card()))
        with closing(stream):
            return book.fill(schedule, stream, stopped, console, workers, tracker)


class _Book:
    """Writes the run directory: starts or continues it, then fills it."""

    def __init__(self, todo: Plan, gl: Mapping[str, Any] | None) -> None:
        self._plan = todo
        self._clock = time.monotonic()
        earlier = RunStore(todo.out).run() if (todo.out / "run.json").is_file() and todo.finished else {}
        self._run = {
            **identity.circumstances(),
            "gl": gl,
            "policy": todo.policy.identity(todo.policy_spec),
            "unavailable": {**earlier.get("unavailable", {}), **identity.unavailable(todo.suite, todo.specs)},
            "requested": earlier.get("requested", {}),
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
        self._run["requested"] = identity.requested(specs, self._run["requested"])
        if self._plan.rule:
            self._run["sequential"] = self._plan.rule.card()

    def _begin(self, schedule: Schedule, batch: Sequence[EpisodeSpec]) -> None:
        """Queue the rule's next batch, and note where the rule stands."""
        assert self._plan.rule
        schedule.add(batch)
        self._asked(self._plan.rule.begun)
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
        asked = dict.fromkeys(s.key for s in self._plan.specs)
        before = {r.key: r for r in self._store.episodes()}
        finished = {k: r for k, r in before.items() if r.outcome != "error"}
        stop: Literal["", "interrupted", "disk", "errors"] = ""
        message, lost = "", 0
        answered = any(r.decisions for r in finished.values())
        if rule:
            self._begin(schedule, rule.start(finished))
        with Progress(len(asked), [r for k, r in finished.items() if k in asked], console) as progress:
            for spec, attempt, result in stream:
                if result.fatal:
                    raise UserError(result.fatal)
                record = result.record
                if record is None:
                    why = result.error or "unknown error"
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
                try:
                    record = self._keep(record, result)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise
                    stop, message = "disk", f"{error.strerror}: {self._plan.out}"
                    break
                if record.outcome != "error":
                    finished[record.key] = record
                progress.ended(record)
                tracker.log(progress.metrics(record))
                if rule and ((batch := rule.ended(record)) or rule.over):
                    self._begin(schedule, batch)
                if lost >= ERRORS_IN_A_ROW:
                    stop, message = (
                        "errors",
                        f"{lost} episodes in a row were lost, the last to: {record.error}",
                    )
                    break
        if not stop and stopped():
            stop = "interrupted"
        tracker.table("cells", *progress.table())
        self._close(workers)
        if rule:  # what it has not come to is not missing
            asked = dict.fromkeys(s.key for s in rule.begun)
        records = tuple(finished[k] for k in asked if k in finished)
        missing = tuple(k for k in asked if k not in finished)
        return RunResult(self._plan.out, records, missing, stop, message, rule.card() if rule else None)

    def _keep(self, record: EpisodeRecord, result: Result) -> EpisodeRecord:
        """Files first, the record last: a record never names a file that is not there."""
        key = record.key
        name = f"{key.cell}/{key.task}_init{key.init}" + ("" if key.prompt == "default" else f"_{key.prompt}")
        if result.actions is not None:
            save_actions(self._plan.out / "actions" / f"{name}.npz", key.id, result.actions)
        if result.video is not None:
            video = f"videos/{name}_{record.outcome}.mp4"
            _write_whole(self._plan.out / video, result.video)
            record = dataclasses.replace(record, video=video)
        self._store.append(record)
        return record

    def _close(self, workers: int) -> None:
        seconds = round(self._run["wall_seconds"] + time.monotonic() - self._clock, 1)
        with suppress(UserError):  # a full disk: the episodes are what matters
            self._store.update_run(
                {**self._run, "workers": workers, "ended": _now(), "wall_seconds": seconds}
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for a clean stop, which the yielded function reports; a second one forces it."""
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
