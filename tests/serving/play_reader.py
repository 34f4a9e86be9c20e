"""Reads the events of a `Play` as the page does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apt_bench.policies.registry import find_policy
from apt_bench.serving.play import Limits, Play
from apt_bench.serving.view import Text
from tests.chromium import LONG

SHORT = Limits(steps=12, hold=1.0)
SCENE = {"suite": "rigid_pick_place", "cell": "so", "task": "to_plate", "init": 3}


class Reader:
    """Reads the events of a `Play` as the page does."""

    def __init__(self, play: Play) -> None:
        self.play, self.head = play, {"job": 0, "version": 0}
        self.events: list[dict[str, Any]] = []

    def post(self, path: str, **value: Any) -> dict[str, Any]:
        answer = self.play.post(path, json.dumps(value).encode())
        assert answer
        return json.loads(answer.text)

    def read(self) -> None:
        answer = self.play.answer(f"/events/{self.head['job']}/{len(self.events)}/{self.head['version']}")
        assert isinstance(answer, Text)
        self.head = json.loads(answer.text)
        self.events = self.events[: self.head["first"]] + self.head["events"]

    def until(self, condition: Callable[[], bool], seconds: float = 4 * LONG) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.read()
            assert time.monotonic() < end, self.head

    def ready(self) -> None:
        self.until(lambda: self.head.get("phase") == "ready")

    def run(self, *sentences: str, **scene: Any) -> list[dict[str, Any]]:
        """Run sentences and return the events."""
        before = self.head["job"]
        assert "error" not in self.post("/run", **{**SCENE, **scene}, sentences=sentences)
        self.until(lambda: self.head["job"] > before and not self.head["running"])
        return self.events

    @property
    def worker(self) -> int:
        (found,) = children(os.getpid())
        return found


def children(process: int) -> list[int]:
    """Running `play_worker` processes that a process started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:2]
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:  # it has ended
            continue
        if int(parent) == process and state not in "ZX" and "play_worker" in command:
            found.append(int(pid))
    return found


def started(limits: Limits = SHORT, policy: str = "ObedientPolicy") -> Reader:
    play = Play(find_policy(f"tests.serving.play_policy:{policy}"), limits)
    play.start()
    return Reader(play)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [f"{event['kind']}{event['side']}" for event in events]
