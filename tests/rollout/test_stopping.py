"""`run --stop-when decided --against RUN` on the toy world."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apt_bench.analysis.compare import compare
from apt_bench.analysis.run import load_runs
from apt_bench.cli import build
from apt_bench.core.errors import UserError
from apt_bench.reporting.coverage import missing
from apt_bench.rollout import runner
from apt_bench.runs.eval_info import import_eval_info
from apt_bench.runs.metadata import sequential_words
from apt_bench.runs.records import RunStore
from apt_bench.suites import load_suite
from tests.rollout.commands import SUITE, records, results

CELLS = ("push", "slide")


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a noisy policy."""
    from rich.console import Console

    out = tmp_path_factory.mktemp("rival") / "run"
    options = runner.RunOptions.of(
        suite=SUITE,
        policy="tests.toy:PushPolicy",
        policy_args=("noise=3.0",),
        cells=CELLS,
        episodes=40,
        out=out,
        workers="0",
    )
    with pytest.MonkeyPatch.context() as patch, open("/dev/null", "w") as nowhere:
        patch.chdir(Path(__file__).parents[2])
        runner.run(options, Console(file=nowhere))
    return out


def test_a_better_policy_stops_early_and_says_so(here, rival, tmp_path):
    steady = {"policy_args": ("noise=0.1",), "cells": CELLS, "episodes": 40, "against": rival}
    done = here(**steady)
    card = RunStore.open(tmp_path / "run").run()["sequential"]
    assert done.sequential == card
    assert (card["verdict"], card["over"], card["maximum"], card["planned_looks"]) == (
        "better",
        True,
        160,
        10,
    )
    assert done.exit_code == 0
    last = card["looks"][-1]
    assert last["pairs"] == len(done.records) < 160
    assert card["p"] < 0.05
    per_task = [sum(r.key.task == t and r.key.cell == c for r in done.records) for c in CELLS for t in
                {r.key.task for r in done.records}]  # fmt: skip
    assert len(set(per_task)) == 1  # no task is ahead of another
    plain = compare(*load_runs([str(tmp_path / "run"), str(rival)]))
    assert (plain.overall.only_a, plain.overall.only_b) == (last["only_run"], last["only_against"])
    assert "do not account for the interim looks" in plain.cautions[0]
    assert any("better after" in line for line in missing(load_runs([str(tmp_path / "run")])))
    assert not any("have no result" in line for line in missing(load_runs([str(tmp_path / "run")])))

    before = (tmp_path / "run/episodes.jsonl").read_bytes()
    assert here(**steady).sequential == card  # decided: nothing runs again
    assert (tmp_path / "run/episodes.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"another stopping rule \(margin differ\)"):
        here(**steady, margin=0.05)
    with pytest.raises(UserError, match="maximum"):
        here(**{**steady, "episodes": 20})


def test_stopped_and_gone_on_it_decides_the_same(here, rival, tmp_path, monkeypatch):
    steady = {"policy_args": ("noise=0.1",), "cells": CELLS, "episodes": 40, "against": rival}
    whole = here(**steady)
    real, count = runner.run_local, 23

    def cut(*arguments):  # the stream ends in the middle of a batch, as at Ctrl-C
        for number, job in enumerate(real(*arguments), 1):
            yield job
            if number == count:
                return

    monkeypatch.setattr(runner, "run_local", cut)
    first = here(**steady, out=tmp_path / "cut")
    assert (first.sequential["over"], first.sequential["p"]) == (False, None)
    assert len(first.sequential["looks"]) == 1
    assert "not over yet" in sequential_words(first.sequential)
    assert (len(first.records), first.exit_code) == (23, 1)
    monkeypatch.undo()
    monkeypatch.chdir(Path(__file__).parents[2])
    second = here(**steady, out=tmp_path / "cut")
    assert second.sequential == whole.sequential
    assert results(tmp_path / "cut") == results(tmp_path / "run")


def test_no_change_is_equivalent_or_undecided_at_the_maximum(here, rival, tmp_path):
    same = {"policy_args": ("noise=3.0",), "cells": CELLS, "against": rival}
    near = here(**same, episodes=40, margin=0.10, out=tmp_path / "near")
    assert (near.sequential["verdict"], near.sequential["p"]) == ("equivalent", None)
    assert len(near.records) < 160
    end = here(**same, episodes=5, out=tmp_path / "end")
    assert (end.sequential["verdict"], end.sequential["over"]) == ("undecided", True)
    assert len(end.sequential["looks"]) == 5
    assert "no decision at the declared maximum after 20 of at most 20 pairs" in sequential_words(
        end.sequential
    )


def test_lost_episodes_leave_the_pairs(here, rival, tmp_path, faults, monkeypatch):
    from tests.toy import order

    monkeypatch.setenv("TOY_FAULTS", str(faults))
    spec = load_suite(SUITE).select(["push"], episodes=1)[0]
    order(faults, "crash", spec.key.id)
    done = here(policy_args=("noise=3.0",), cells=("push",), episodes=4, against=rival, attempts=1)
    assert [look["pairs"] for look in done.sequential["looks"]] == [1, 3, 5, 7]
    assert (done.sequential["over"], done.missing) == (True, (spec.key,))


def test_episodes_without_a_partner_are_left_out(here, rival, tmp_path):
    done = here(cells=("push",), episodes=42, against=rival)
    assert done.sequential["maximum"] == 80
    assert max(r.key.init for r in records(tmp_path / "run")) < 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": Path("nowhere")}, "nowhere holds no run"),
        ({"seed": 8}, r"another protocol \(this run / that one: seed: 8 / 7\)"),
        ({"probes": ("null",)}, "excludes --probe and --limit"),
        ({"margin": 2.0}, "--margin .* must be above 0 and below 1"),
        ({"margin": float("nan")}, "--margin .* must be finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(here, rival, changes, message):
    with pytest.raises(UserError, match=message):
        here(**{"cells": ("push",), "episodes": 2, "against": rival, **changes})


def test_another_execute_horizon_is_the_policys_own(here, rival):
    assert here(cells=("push",), episodes=2, against=rival, execute_horizon=1).sequential["maximum"] == 4


def test_an_imported_run_is_no_partner(here, tmp_path):
    info = {"per_task": [{"task_group": "x", "task_id": 0, "metrics": {"successes": [True]}}]}
    (tmp_path / "eval_info.json").write_text(json.dumps(info))
    import_eval_info(tmp_path / "eval_info.json", tmp_path / "imported", "pi05")
    with pytest.raises(UserError, match="none of its episodes match"):
        here(cells=("push",), episodes=2, against=tmp_path / "imported")


def test_no_overlap_and_no_rule_after_looking(here, rival, tmp_path):
    plain = here(cells=("push",), episodes=1)
    with pytest.raises(UserError, match="declared after the results are seen"):
        here(cells=("push",), episodes=2, against=rival)
    with pytest.raises(UserError, match="this run itself"):
        here(cells=("push",), episodes=2, against=plain.out)
    lone = here(cells=("push",), episodes=1, out=tmp_path / "lone").out
    with pytest.raises(UserError, match=r"no finished episode of this selection: e\.g\. toy/slide/"):
        here(cells=("slide",), episodes=1, against=lone, out=tmp_path / "other")


def test_the_command_line(rival):
    call = lambda *words: CliRunner().invoke(build(), ["run", "--suite", SUITE, "--policy", "tests.toy:PushPolicy",  # noqa: E731
                                                       "--cells", "push", *words])  # fmt: skip
    done = call(
        "--stop-when", "decided", "--against", str(rival), "--episodes", "40", "--workers", "0", "--dry-run"
    )
    assert "At most 80 pairs with" in done.output
    assert "tested 10 times" in done.output
    assert "needs --against" in str(call("--stop-when", "decided").exception)
    assert "one of complete, decided" in str(call("--stop-when", "soon").exception)
    assert json.loads((rival / "run.json").read_text()).get("sequential") is None


@pytest.mark.parametrize("looks", [[{}], [{"pairs": -1, "only_run": 0, "only_against": 0}], ["x"], "x", 3])
def test_damaged_looks_are_a_message(here, rival, tmp_path, looks):
    steady = {"cells": ("push",), "episodes": 2, "against": rival}
    here(**steady)
    path = tmp_path / "run/run.json"
    run = json.loads(path.read_text())
    run["sequential"]["looks"] = looks
    path.write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"run\.json"):
        here(**steady)
    run["sequential"]["looks"] = [{"pairs": 4, "only_run": 0, "only_against": 0}] * 11
    path.write_text(json.dumps(run))
    with pytest.raises(UserError, match="11 looks, but only 2 were planned"):
        here(**steady)


def test_a_stop_when_nothing_was_left_is_none(here, monkeypatch):
    """Ctrl-C, or Ray's death, after the last episode: the run is complete."""
    from apt_bench.core.errors import RayLost

    real, ended, death = runner.run_local, [], []

    def late(*arguments):
        yield from real(*arguments)
        ended.append(True)
        if death:
            raise RayLost("the raylet died")

    monkeypatch.setattr(runner, "run_local", late)
    monkeypatch.setattr(runner, "stop_on_signals", lambda: nullcontext(lambda: bool(ended)))
    done = here(cells=("push",), episodes=1)
    assert (done.stopped, done.exit_code, done.advice) == ("", 0, "")
    ended.clear()
    death.append(True)
    done = here(cells=("push",), episodes=2)
    assert (done.stopped, done.exit_code, done.advice, len(done.records)) == ("", 0, "", 4)
