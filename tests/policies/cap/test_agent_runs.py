"""Whole runs of code as policies on the tabletop: recorded, replayed elsewhere, with a budget, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt_bench import evaluate
from apt_bench.core.errors import UserError
from apt_bench.policies.code_as_policies import llm
from apt_bench.policies.registry import LEDGER, baseline_names, find_policy, load_baseline
from tests.policies.cap.model_server import USAGE, ModelServer, completion
from tests.rollout.commands import ROOT, results

pytestmark = pytest.mark.medium

SOLVE = """\
import re
words = re.findall("[a-z]+", "TASK".lower())
things = [name for name in get_object_names() if name not in ("plate", "bowl")]
thing = max(things, key=lambda name: len({*name.split("_")} & {*words}))
position, quaternion = sample_grasp_pose(thing)
goto_pose(position, quaternion, z_approach=0.1)
close_gripper()
goto_pose(position + [0, 0, 0.15], quaternion)
goal, _ = get_object_pose("plate")
lift = position - get_object_pose(thing)[0]
goto_pose([goal[0], goal[1], goal[2] + get_object_size(thing)[2] / 2 + 0.04], quaternion)
print("holds", thing, get_gripper_opening() > 0.01)
open_gripper()
"""


def model(messages: list[dict[str, Any]]) -> Any:
    """A model that writes one program, and finishes. A question costs 0.01 dollars."""
    task = messages[1]["content"].splitlines()[0].removeprefix("Task: ")
    text = f"```python\n{SOLVE.replace('TASK', task)}```" if len(messages) == 2 else "FINISH"
    return 200, completion(text) | {"usage": {**USAGE, "cost": 0.01}}


def run(out: Path, **more: Any) -> Any:
    options: dict[str, Any] = {
        "cells": "so",
        "tasks": "to_plate",
        "episodes": 2,
        "workers": 0,
        "progress": False,
    }
    return evaluate("cap-privileged", "rigid_pick_place", out=out, llm_model="m", **options | more)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def notes(out: Path) -> list[dict[str, Any]]:
    return [one["notes"] for one in records(out)]


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (llm.BASE_URL, llm.OPENAI_KEY, llm.API_KEY):
        monkeypatch.delenv(name, raising=False)


def test_a_recorded_run_is_replayed_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(llm.OPENAI_KEY, "sk-very-secret")
    cassette = tmp_path / "c.jsonl"
    with ModelServer(model) as server:
        run(
            tmp_path / "live", servers=[server.url], cassette=["record", str(cassette)], workers=2, episodes=3
        )
        assert server.headers[-1]["Authorization"] == "Bearer sk-very-secret"
        url = server.url
    words = [
        "run",
        "--suite",
        "rigid_pick_place",
        "--policy",
        "cap-privileged",
        "--llm-model",
        "m",
        "--cells",
        "so",
    ]
    words += [
        "--tasks",
        "to_plate",
        "--episodes",
        "3",
        "--workers",
        "0",
        "--cassette",
        "replay",
        str(cassette),
    ]
    command = [sys.executable, "-m", "apt_bench", *words, "--out", str(tmp_path / "replayed")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "live") == results(tmp_path / "replayed")
    assert any(key[0] == "success" for key in results(tmp_path / "live").values())

    live, replayed = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("live", "replayed"))
    answers = [one["policy"]["about"].pop("answers") for one in (live, replayed)]
    assert answers == ["live, recorded", "replayed from a cassette"]
    assert live["policy"] == replayed["policy"]
    assert live["policy"]["args"] == {"tier": "privileged", "model": "m"}
    for one, other in zip(notes(tmp_path / "live"), notes(tmp_path / "replayed"), strict=True):
        assert (one["answers"], other["answers"]) == ("live", "replayed")
        assert (other["differs_digits"], other["differs_text"]) == (0, 0)
        assert (one["prompt_tokens"], one["cost"]) == (other["prompt_tokens"], other["cost"])
    assert not (tmp_path / "replayed" / LEDGER).exists()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert "sk-very-secret" not in path.read_text(errors="ignore")
            assert url not in path.read_text(errors="ignore") or path.name == "run.json"


def test_a_cassette_without_the_episode_stops_the_run(tmp_path: Path) -> None:
    cassette = ["record", str(tmp_path / "c.jsonl")]
    with ModelServer(lambda messages: "FINISH") as server:
        run(tmp_path / "live", servers=[server.url], cassette=cassette, episodes=1)
    with pytest.raises(
        UserError, match="has no answer for episode rigid_pick_place/so/to_plate/init1/seed7/default"
    ):
        run(tmp_path / "more", cassette=["replay", cassette[1]])
    assert len(notes(tmp_path / "more")) == 1


def test_a_budget_is_that_of_the_run_and_of_those_that_resume_it(tmp_path: Path) -> None:
    def endless(messages: list[dict[str, Any]]) -> Any:
        return 200, completion("```python\nprint(1)\n```") | {"usage": {**USAGE, "cost": 0.01}}

    with ModelServer(endless) as server:
        with pytest.raises(UserError, match=r"The budget of 0\.145 US dollars is spent: 0\.1500 by now"):
            run(tmp_path, servers=[server.url], max_cost=0.145)
        assert len(server.questions) == 15  # 10 of the first episode, 5 of the second
        assert len(notes(tmp_path)) == 1
        with pytest.raises(UserError, match="is spent"):
            run(tmp_path, servers=[server.url], max_cost=0.145)
        assert len(server.questions) == 15
        run(tmp_path, servers=[server.url], max_cost=1)
        assert len(server.questions) == 25
    assert [one["ended"] for one in notes(tmp_path)] == ["turns", "turns"]
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 25


@pytest.mark.slow
def test_the_budget_counts_over_workers_in_processes_of_their_own(tmp_path: Path) -> None:
    def endless(messages: list[dict[str, Any]]) -> Any:
        return 200, completion("```python\nprint(1)\n```") | {"usage": {**USAGE, "cost": 0.01}}

    with ModelServer(endless) as server:
        with pytest.raises(UserError, match=r"The budget of 0\.135 US dollars is spent"):
            run(tmp_path, servers=[server.url], max_cost=0.135, workers=2, episodes=4)
        assert len(server.questions) in (14, 15)  # one worker may ask while the other spends the rest
    counted = len((tmp_path / LEDGER).read_text().splitlines())
    assert counted in (
        len(server.questions),
        len(server.questions) - 1,
    )  # a worker is killed where the run stops
    assert {json.loads(line)["cost"] for line in (tmp_path / LEDGER).read_text().splitlines()} == {0.01}


def test_a_server_that_is_gone_is_missing_data_and_another_address_resumes(tmp_path: Path) -> None:
    asked = []

    def second_fails(messages: list[dict[str, Any]]) -> Any:
        asked.append(messages)
        return "FINISH" if len(asked) == 1 else (503, {})

    limits = {"policy_args": {"timeout": 0.4}, "attempts": 1}
    with ModelServer(second_fails) as server, pytest.warns(RuntimeWarning):
        run(tmp_path, servers=[server.url], **limits)
    assert sorted(one["outcome"] for one in records(tmp_path)) == ["error", "timeout"]
    with ModelServer(lambda messages: "FINISH") as other:
        run(tmp_path, servers=[other.url], **limits)
    assert len(other.questions) == 1
    assert sorted(one["outcome"] for one in records(tmp_path)) == ["error", "timeout", "timeout"]


# --- the options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in baseline_names() if load_baseline(n).llm])
def test_what_is_no_part_of_the_identity_is_named_rightly(name: str) -> None:
    import inspect

    from apt_bench.core.config import load_object

    ref = load_baseline(name)
    assert {*ref.local, "server"} <= {*inspect.signature(load_object(ref.policy)).parameters}
    assert ref.conventions["start"]


@pytest.mark.parametrize("option", [["--llm-model", "m"], ["--max-cost", "1"], ["--cassette", "replay", "x"]])
def test_other_policies_refuse_the_options_of_a_language_model(
    option: list[str], cli: Callable[..., str]
) -> None:
    error = cli("run", "--suite", "rigid_pick_place", "--policy", "zero", *option)
    assert f"Policy 'zero' asks no language model, but {option[0]} was given" in error


def test_options_and_arguments_of_the_same_name(cli: Callable[..., str]) -> None:
    line = ["run", "--suite", "rigid_pick_place", "--policy", "cap-privileged", "--llm-model", "m"]
    assert "are the same argument" in cli(*line, "--policy-arg", "model=x")
    assert "--cassette is record FILE or replay FILE, not 'play x'" in cli(*line, "--cassette", "play", "x")
    assert "--max-cost" in cli(*line, "--max-cost", "0")
    assert "API is not known. Use --server https://HOST/v1" in cli(*line, "--workers", "0")
    assert "Cannot read nowhere" in cli(*line, "--workers", "0", "--cassette", "replay", "nowhere")


def test_the_table_1_policy_needs_a_segmenter(cli: Callable[..., str]) -> None:
    line = ["run", "--suite", "libero_pro", "--policy", "cap", "--llm-model", "m", "--workers", "0"]
    assert "needs a segmentation server: use --policy-arg segmenter=http://HOST:PORT" in cli(*line)
    assert "use --policy cap-oracle-seg" in cli(*line, "--policy-arg", "segmenter=oracle-seg")
    assert load_baseline("cap").published == "CaP-X"
    assert {load_baseline(f"cap-{name}").published for name in ("oracle-seg", "privileged")} == {None}


def test_it_cannot_be_served(cli: Callable[..., str]) -> None:
    assert "cannot be served" in cli("serve", "--policy", "cap", "--protocol", "openpi")


def test_checkpoint_fills_what_the_file_fills(cli: Callable[..., str]) -> None:
    assert find_policy("apt", file="x").args == {"weights": "x"}
    for verb in (["run", "--suite", "rigid_pick_place", "--workers", "0"], ["serve", "--protocol", "openpi"]):
        line = [*verb, "--policy", "apt", "--checkpoint", "/no/such/folder"]
        assert "/no/such/folder" in cli(*line)
        assert "FILE and --checkpoint are the same. Give one of them." in cli(*line, "x")
    assert "/no/such/folder" in cli(
        "probe", "--suite", "rigid_pick_place", "--policy", "apt", "--checkpoint", "/no/such/folder"
    )
    assert "takes no file, but 'x' was given" in cli(
        "run", "--suite", "rigid_pick_place", "--policy", "zero", "--checkpoint", "x"
    )
