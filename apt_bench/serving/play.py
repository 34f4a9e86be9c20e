"""`apt-bench play`: type an instruction and watch a policy act in a scene, in a browser of this machine."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import apt_bench
from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line, plain
from apt_bench.core.wording import in_words
from apt_bench.policies.registry import PolicyRef
from apt_bench.policies.shipped import NETWORKS, scene_of
from apt_bench.rollout.cluster import START_SECONDS
from apt_bench.serving.play_process import Lost, WorkerProcess
from apt_bench.serving.play_worker import SHIPPED_POLICY, Job
from apt_bench.serving.view import Answer, Text
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite, load_suite
from apt_bench.suites.custom_instructions import check_sentence
from apt_bench.suites.registry import suite_names
from apt_bench.suites.suite import ENVIRONMENTS, Cell, Task

FIRST_SUITE = "rigid_pick_place"
"""The suite that the page opens with, if the policy can act in it."""

TICK = 0.1
"""Seconds between two checks for a new job, a stop or a dead worker."""

AGAIN = {
    "loading": "It is being started again. Then press Run again.",
    "ready": "It has been started again. Press Run again.",
}
"""Phase -> what the page adds where it names the end of a worker."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Limits:
    """Times in seconds, and the longest episode.

    Args:
        start: For the worker to load the policy.
        silence: Without a sign of life of a worker that has a job, before it is killed.
        stop: For a worker to stop an episode, before it is killed.
        gone: Without a request of a page, before the episode is stopped.
        hold: For which a request for events waits for one.
        steps: Control steps of an episode; None = the cell's budget.
    """

    start: float = START_SECONDS
    silence: float = 180.0
    stop: float = 30.0
    gone: float = 20.0
    hold: float = 5.0
    steps: int | None = None


@dataclass(frozen=True)
class Request:
    """What the page sends: an initial state, and the sentences to run in it, at most two. Without any, the scene is
    only shown."""

    suite: str
    cell: str
    task: str
    init: Natural
    sentences: tuple[str, ...] = ()


class Play:
    """The pages, and the worker process that runs what they ask for.

    Args:
        ref: The policy.
        limits: See `Limits`.
    """

    def __init__(self, ref: PolicyRef, limits: Limits = Limits()) -> None:
        self._ref, self._limits = ref, limits
        self._changed = threading.Condition()
        self._wanted: Job | None = None  # starts when the running job has ended
        self._running = self._stop = self._closing = False
        self._phase, self._text = "loading", "Starting the worker process"
        self._notice = ""  # how the last worker ended, until the next run
        self._version, self._number = 1, 0  # of the state, and of the job
        self._request: dict[str, Any] = {"number": 0}  # the last one, so that every page shows the same scene
        self._events: list[str] = []  # of the job, as JSON
        self._seen = time.monotonic()
        self._thread = threading.Thread(target=self._supervise, name="play", daemon=True)
        self.failure = ""  # why no worker can be started

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def close(self) -> None:
        """End the worker."""
        with self._update():
            self._closing = True
        self._thread.join()

    # What pages ask for

    def answer(self, path: str) -> Answer:
        """The answer to a path, see `PageServer`."""
        if path == "/":
            page = (_TEMPLATES / "play.html").read_text(encoding="utf-8")
            return Text("play.html", page.replace("VERSION", apt_bench.__version__))
        if path in ("/play.js", "/play.css"):
            return Text(path, (_TEMPLATES / path[1:]).read_text(encoding="utf-8"))
        if path == "/suites.json":
            return _json(self._catalogue)
        name, *words = path.strip("/").split("/")
        if name == "events" and len(words) == 3 and all(w.isascii() and w.isdigit() for w in words):
            return self._events_after(*map(int, words))
        return None

    def post(self, path: str, body: bytes) -> Text | None:
        """The answer to a request that changes something. A mistake is in its `error`."""
        if path not in ("/run", "/stop"):
            return None
        try:
            if path == "/stop":
                self._stop_job()
                return _json({})
            return _json(self._submit(body))
        except (UserError, ValueError, RecursionError) as error:
            return _json({"error": plain(error)})

    @cached_property
    def _catalogue(self) -> list[dict[str, Any]]:
        """The suites, cells and tasks in which the policy can act."""
        suites = [load_suite(name) for name in suite_names()]
        found = []
        for suite in sorted(suites, key=lambda s: s.name != FIRST_SUITE):
            cells = []
            for cell in suite.cells if suite.env in ENVIRONMENTS.values() else ():
                if tasks := self._tasks(suite, cell):
                    named = [{"name": t.name, "label": _task_label(t, cell), "inits": t.inits} for t in tasks]
                    cells.append({"name": cell.name, "label": _label(cell), "tasks": named})
            if cells:
                found.append({"name": suite.name, "title": suite.title, "cells": cells})
        return found

    def _tasks(self, suite: Suite, cell: Cell) -> list[Task]:
        shipped = self._ref.policy == SHIPPED_POLICY
        return [
            task
            for task in suite.cell_tasks(cell)
            if not task.unavailable and (not shipped or scene_of(suite.env, task.args) in NETWORKS)
        ]

    def _submit(self, body: bytes) -> dict[str, Any]:
        asked: Request = build(Request, json.loads(body), "the request")
        suite = load_suite(asked.suite) if asked.suite in suite_names() else None
        if suite is None or suite.env not in ENVIRONMENTS.values():
            raise UserError(f"There are no scenes of a suite '{one_line(asked.suite, 100)}'.")
        spec = suite.episode(EpisodeKey(suite.name, asked.cell, asked.task, asked.init, suite.seed))
        if self._limits.steps:
            spec = dataclasses.replace(spec, max_steps=self._limits.steps)
        if len(asked.sentences) > 2:
            raise UserError("At most two sentences can be compared.")
        episodes = [_with_sentence(spec, side, sentence) for side, sentence in enumerate(asked.sentences)]
        with self._update():
            self._wanted = Job(tuple(episodes) or (spec,), spec.prompt, only_show=not episodes)
            self._stop = True  # the running one
            number = self._request["number"] + 1
            self._request = {
                "number": number,
                **dataclasses.asdict(asked),
                "sentences": asked.sentences or (spec.prompt,),
            }
        return {"sentence": spec.prompt, "number": number}

    def _stop_job(self) -> None:
        with self._update():
            self._wanted, self._stop = None, True

    def _events_after(self, job: int, count: int, version: int) -> Text:
        """The events of the running or last job after the first `count` of job number `job`, and the state. Waits for
        something newer than `version`."""
        with self._changed:
            self._seen = time.monotonic()
            self._changed.wait_for(lambda: self._version != version or self._closing, self._limits.hold)
            self._seen = time.monotonic()
            first = count if job == self._number else 0
            head = {
                "policy": self._ref.name,
                "phase": self._phase,
                "text": self._text,
                "notice": self._notice and f"{self._notice} {AGAIN.get(self._phase, '')}",
                "running": self._running or self._wanted is not None,
                "version": self._version,
                "job": self._number,
                "request": self._request,
                "first": first,
            }
            events = ",".join(self._events[first:])
        return Text("events.json", f'{json.dumps(head)[:-1]}, "events": [{events}]}}')

    # The worker process

    def _supervise(self) -> None:
        """Run jobs in a worker process. Start another one when it was lost."""
        while not self._closing:
            loaded = False
            try:
                with WorkerProcess(self._ref) as worker:
                    self._load(worker)
                    loaded = True
                    while job := self._next(worker):
                        self._run(worker, job)
            except Lost as lost:
                with self._update():
                    self._running = False
                    if loaded:
                        self._notice = str(lost)
                        self._phase, self._text = "loading", "Starting the worker process"
                    else:
                        self._phase, self._text, self.failure = "failed", str(lost), str(lost)
            if not loaded:
                return

    @contextmanager
    def _update(self) -> Iterator[None]:
        """Change what pages read, and tell those that wait for it."""
        with self._changed:
            yield
            self._version += 1
            self._changed.notify_all()

    def _load(self, worker: WorkerProcess) -> None:
        """Wait until the policy is loaded. Raises Lost."""
        end = time.monotonic() + self._limits.start
        while not self._closing:
            raw = worker.receive(TICK)
            message = json.loads(raw) if raw else {}
            if message.get("kind") == "fatal":
                raise Lost(message["text"])
            if message.get("kind") == "ready":
                with self._update():
                    self._phase, self._text = "ready", ""
                return
            if message:
                with self._update():
                    self._text = message["text"]
            if time.monotonic() > end:
                raise Lost(f"The worker process did not load the policy within {self._limits.start:.0f} s.")

    def _next(self, worker: WorkerProcess) -> Job | None:
        """Wait for a job; None at the end. Raises Lost."""
        while not self._closing:
            worker.receive(0)  # finds out whether it has ended
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closing, TICK)
                if not self._wanted:
                    continue
            with self._update():
                job, self._wanted = self._wanted, None
                self._running, self._stop, self._notice = True, False, ""
                self._number, self._events, self._seen = self._number + 1, [], time.monotonic()
                return job
        return None

    def _run(self, worker: WorkerProcess, job: Job) -> None:
        """Run a job until it has ended or was stopped. Raises Lost."""
        worker.send(job)
        heard, stopped_at = time.monotonic(), None
        while not self._closing:
            raw = worker.receive(TICK)
            now = time.monotonic()
            if raw is not None:
                heard = now
                kind = json.loads(raw)["kind"]
                if kind == "done":
                    with self._update():
                        self._running = False
                    return
                if kind != "beat":
                    with self._update():
                        self._events.append(raw.decode())
            if now - heard > self._limits.silence:
                raise Lost(f"The simulator or the policy did not answer for {self._limits.silence:.0f} s.")
            if job.only_show:  # it ends by itself
                continue
            if stopped_at is None and (self._stop or now - self._seen > self._limits.gone):
                worker.send(None)
                stopped_at = now
            if stopped_at is not None and now - stopped_at > self._limits.stop:
                raise Lost(f"The episode did not stop within {self._limits.stop:.0f} s.")


def _label(cell: Cell) -> str:
    """The cell's label and what in its scenes does not occur in training."""
    parts = ("items", "containers", "surroundings")
    if not any(part in cell.args for part in parts):
        return cell.label
    unseen = [part for part in parts if cell.args.get(part) == "unseen"]
    return (
        f"{cell.label}: unseen {' and '.join(unseen)}"
        if unseen
        else f"{cell.label}: everything seen in training"
    )


def _task_label(task: Task, cell: Cell) -> str:
    """The task's instruction in the cell; its name where every initial state has an instruction of its own. In LIBERO,
    tasks may share a name and have different instructions."""
    return in_words(task.name) if task.prompts_of else task.prompts[cell.instruction]


def _with_sentence(spec: EpisodeSpec, side: int, sentence: str) -> EpisodeSpec:
    """The episode under a sentence. A policy tells episodes apart by their keys."""
    check_sentence(sentence, "The second instruction" if side else "The instruction")
    key = dataclasses.replace(spec.key, prompt="second") if side else spec.key
    return dataclasses.replace(spec, key=key, prompt=sentence)


def _json(value: Any) -> Text:
    return Text("answer.json", json.dumps(value))
