"""The public API gives the results of the command line, in a process that continues."""

from __future__ import annotations

import dataclasses
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import apt_bench
from apt_bench.analysis.frame import COLUMNS
from apt_bench.api.runs import SUMMARY, Run
from apt_bench.core.errors import UserError
from apt_bench.core.machine import command
from apt_bench.suites import load_suite
from tests.clock import in_time
from tests.toy import BadPolicy, PushPolicy

SUITE = "tests/toy_suite.yaml"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def evaluate(policy: Any = PushPolicy, cells: Any = "push", **more: Any) -> Run:
    return apt_bench.evaluate(policy, SUITE, cells, progress=False, **{"episodes": 2, "workers": 0, **more})


def outcomes(run: Run) -> pd.DataFrame:
    return run.episodes[["task", "init", "outcome", "steps", "end_hash"]].sort_values(["task", "init"])


# --- the module -----------------------------------------------------------------------------------------------


def test_importing_it_is_fast_and_loads_nothing_heavy() -> None:
    code = """
import sys, time
begin = time.process_time()
import apt_bench
seconds = time.process_time() - begin
print(seconds, sorted({"numpy", "pandas", "torch", "ray", "yaml", "gymnasium"} & set(sys.modules)))
"""
    seconds, loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split(" ", 1)
    assert in_time(float(seconds), 0.1)
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("name", apt_bench.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(apt_bench, name) is not None
    assert name in dir(apt_bench)


def test_a_name_that_it_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        apt_bench.evalute  # noqa: B018


# --- running --------------------------------------------------------------------------------------------------


def test_a_name_a_class_and_an_instance_give_the_same_episodes(tmp_path: Path) -> None:
    text = evaluate("tests.toy:PushPolicy", out=tmp_path / "text")
    kind = evaluate(PushPolicy, out=tmp_path / "kind")
    made = evaluate(PushPolicy(), out=tmp_path / "made")
    for other in (kind, made):
        pd.testing.assert_frame_equal(outcomes(text), outcomes(other))
    assert text.info["policy"] == kind.info["policy"]


def test_it_runs_what_the_command_runs(cli: Any, tmp_path: Path) -> None:
    words = ["run", "--suite", SUITE, "--policy", "tests.toy:PushPolicy", "--cells", "push", "--episodes", 2]
    cli(*words, "--workers", 0, "--policy-arg", "noise=0.1", "--out", tmp_path / "a", code=0)
    ours = evaluate(policy_args={"noise": 0.1}, out=tmp_path / "b")
    theirs = apt_bench.load_run(tmp_path / "a")
    pd.testing.assert_frame_equal(outcomes(ours), outcomes(theirs))
    assert ours.protocol == theirs.protocol
    assert ours.info["policy"] == theirs.info["policy"]
    assert theirs.info["command"].startswith("apt-bench run --suite")
    assert ours.info["requested"] == theirs.info["requested"]


def test_a_run_names_the_program_that_called_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "--fast"])
    assert evaluate(episodes=1, out=tmp_path / "run").info["command"] == "python study.py --fast"
    for program in ("/bin/apt-bench", "/lib/apt_bench/__main__.py"):
        monkeypatch.setattr(sys, "argv", [program, "run"])
        assert command() == "apt-bench run"


def test_the_same_call_resumes(tmp_path: Path) -> None:
    first = evaluate(out=tmp_path / "run")
    more = evaluate(out=tmp_path / "run", episodes=3)
    assert (len(first.episodes), len(more.episodes)) == (4, 6)


@pytest.mark.parametrize("module", ["__main__", __name__])
def test_a_class_of_a_notebook_or_a_function_runs_in_this_process(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(PushPolicy):
        pass

    if module == "__main__":
        Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
        monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    run = evaluate(Mine, workers="auto", policy_args={"noise": 0.1}, out=tmp_path / "run")
    assert run.info["policy"]["args"] == {"noise": 0.1, "instance": "run"}
    assert run.info["workers"] == 0


def test_two_instances_never_share_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_bench.api.evaluate.RUNS", tmp_path)
    calm, wild = evaluate(PushPolicy(0.1), workers="auto"), evaluate(PushPolicy(5.0), workers="auto")
    assert calm.path != wild.path
    assert not outcomes(calm).equals(outcomes(wild))
    assert calm.data.identity != wild.data.identity


def test_a_suite_in_python_is_registered(tmp_path: Path) -> None:
    suite = dataclasses.replace(load_suite(SUITE), name="made_here")
    run = apt_bench.evaluate(
        PushPolicy, suite, "push", tasks=0, episodes=1, workers=0, out=tmp_path / "run", progress=False
    )
    assert set(run.episodes.suite) == {"made_here"}
    assert load_suite("made_here") is suite


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"policy": "tests.toy:PushPolcy"}, "has no 'PushPolcy'"),
        ({"policy": 3}, "'builtins:int' is not a policy"),
        ({"policy": int}, "'builtins:int' is not a policy"),
        ({"policy": PushPolicy(), "workers": 2}, "runs in this process only"),
        ({"policy": PushPolicy(), "policy_args": {"noise": 1}}, "not with an instance"),
        ({"policy_args": {"nose": 1}}, "nose"),
        ({"policy_args": {"noise": float("nan")}}, "finite number"),
        ({"cells": "psh"}, "Did you mean 'push'?"),
        ({"episodes": 0}, "episodes is 0"),
        ({"attemps": 3}, "no argument 'attemps'. Did you mean 'attempts'?"),
        ({"policy": BadPolicy("nan")}, "NaN"),
        ({"margin": 0.1}, "margin is only allowed with against"),
        ({"policy_args": [1]}, "policy_args must be a mapping"),
        ({"out": 3}, "out is 3; it must be a text or a path"),
    ],
)
def test_bad_input_is_a_user_error(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(**{"out": tmp_path / "run", **words})


def test_ctrl_c_raises_when_the_episodes_so_far_are_recorded(tmp_path: Path) -> None:
    class Stops(PushPolicy):
        def reset(self, episodes: Any) -> None:
            if "init1" in episodes[0].id:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops, out=tmp_path / "run")
    assert list(apt_bench.load_run(tmp_path / "run").episodes.init) == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("error")
def test_missing_episodes_are_a_warning(tmp_path: Path) -> None:
    with pytest.raises(RuntimeWarning, match="2 episodes are missing"):
        evaluate(cells="broken", episodes=1, attempts=1, out=tmp_path / "run")
    found = apt_bench.load_run(tmp_path / "run").summary().iloc[0]
    assert (found.episodes, found.errors, found.requested, found.coverage) == (0, 2, 2, 0.0)
    assert np.isnan(found.rate)
    assert (found.low, found.high) == (0.0, 1.0)


# --- reading --------------------------------------------------------------------------------------------------


def test_the_tables_have_stable_columns(tmp_path: Path) -> None:
    run = evaluate(cells=["push", "slide"], probes="null", out=tmp_path / "run")
    page = (ROOT / "docs" / "api.md").read_text()
    assert list(run.episodes.columns[: len(COLUMNS)]) == COLUMNS
    assert all(c.startswith(("seconds_", "score_")) for c in run.episodes.columns[len(COLUMNS) :])
    assert set(run.episodes.prompt) == {"default", "null", "repeat"}
    assert len(run.episodes) == 3 * 8
    table = run.summary()
    assert list(table.columns) == SUMMARY
    assert list(table.cell) == ["push", "slide"]
    assert (table.episodes == 4).all()
    assert (table.coverage == 1).all()
    assert table.rate.between(table.low, table.high).all()
    for name in (*COLUMNS, *SUMMARY):
        assert f"| `{name}` |" in page, f"docs/api.md does not describe {name}"


def test_a_run_without_an_episode_has_all_columns(tmp_path: Path) -> None:
    folder = evaluate(episodes=1, out=tmp_path / "run").path
    (folder / "episodes.jsonl").write_text("")
    empty = apt_bench.load_run(folder)
    assert list(empty.episodes.columns) == COLUMNS
    assert list(empty.summary().episodes) == [0]


def test_compare_takes_runs_and_directories(tmp_path: Path) -> None:
    a = evaluate(out=tmp_path / "a")
    b = evaluate(policy_args={"noise": 2.0}, out=tmp_path / "b")
    assert apt_bench.compare(a, b) == apt_bench.compare(tmp_path / "a", str(tmp_path / "b"))
    assert apt_bench.compare(a, b).overall.n_a == 4
    with pytest.raises(UserError, match=r"[Nn]o run"):
        apt_bench.compare(a, tmp_path / "nothing")
    with pytest.raises(UserError, match="path is 3"):
        apt_bench.compare(a, 3)  # type: ignore[arg-type]


def test_a_run_stops_when_it_is_decided_against_another(tmp_path: Path) -> None:
    first = evaluate(episodes=4, out=tmp_path / "a")
    again = evaluate(episodes=4, against=first, out=tmp_path / "b")
    assert again.data.sequential["against"]


def test_make_env_gives_a_gymnasium_environment() -> None:
    env = apt_bench.make_env("rigid_pick_place", "so", cameras=())
    first, info = env.reset(seed=0, options={"task": 0, "init": 3})
    assert "/init3/" in info["episode"]
    second, _ = pickle.loads(pickle.dumps(env)).reset(seed=0, options={"task": 0, "init": 3})
    assert env.observation_space.contains(first)
    np.testing.assert_array_equal(first["state"], second["state"])
    env.close()
