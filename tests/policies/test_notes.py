"""What a policy receives about its episodes, and what it adds to their records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_bench import EpisodeSpec, Observation, PolicySpec, Resources, evaluate
from apt_bench.envs.base import Outcome

pytestmark = pytest.mark.medium

SUITE = str(Path(__file__).parents[1] / "toy_suite.yaml")


class Noting:
    """Stores what it receives about each episode."""

    spec = PolicySpec("noting", resources=Resources(placement="worker"))
    fault: str = ""

    def __init__(self) -> None:
        self._heard: dict[str, dict[str, Any]] = {}  # by episode: a hosted policy runs several at once

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        (episode,) = episodes
        self._heard[episode.id] = {
            "id": episode.id, "prompt": episode.prompt, "init": episode.key.init, "decisions": 0
        }  # fmt: skip

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        for observation in observations:
            self._heard[observation.episode]["decisions"] += 1
        return [np.zeros((10, 7)) for _ in observations]

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> None:
        self._heard[episode.id] |= {"ended": episode.id, "success": outcome.success, "steps": outcome.steps}

    def notes(self, episode: EpisodeSpec) -> Mapping[str, Any]:
        if self.fault:
            raise RuntimeError(self.fault)
        return {**self._heard[episode.id], "array": np.arange(2), "nan": float("nan")}


class Hosted(Noting):
    """The same in a process of its own."""

    spec = PolicySpec("hosted")


class Faulty(Noting):
    fault = "no notes"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "workers"), [("Noting", 0), ("Noting", 2), ("Hosted", 2)])
def test_notes_of_a_policy_are_in_the_record(name: str, workers: int, tmp_path: Path) -> None:
    evaluate(f"tests.policies.test_notes:{name}", SUITE, "push", episodes=2, workers=workers, out=tmp_path)
    records = lines(tmp_path)
    assert len(records) == 4
    for record in records:
        notes = record["notes"]
        assert notes["id"] == notes["ended"]
        assert (notes["prompt"], notes["init"]) == (record["prompt"], record["key"]["init"])
        assert (notes["steps"], notes["decisions"]) == (record["steps"], record["decisions"])
        assert notes["success"] is (record["outcome"] == "success")
        assert (notes["array"], notes["nan"]) == ([0, 1], "nan")


def test_an_exception_in_notes_does_not_change_the_outcome(tmp_path: Path) -> None:
    evaluate("tests.policies.test_notes:Faulty", SUITE, "push", episodes=1, workers=0, out=tmp_path)
    for record in lines(tmp_path):
        assert record["outcome"] == "timeout"
        assert "no notes" in record["notes"]["error"]


def test_a_record_without_notes_has_no_entry(tmp_path: Path) -> None:
    evaluate("zero", SUITE, "push", episodes=1, workers=0, out=tmp_path)
    assert all("notes" not in record for record in lines(tmp_path))
