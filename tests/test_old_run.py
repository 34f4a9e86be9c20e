"""A run directory of an earlier version is read, reported, compared and resumed; protocol hashes stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import apt_bench
from apt_bench.analysis.run import load_runs
from apt_bench.policies.base import PolicySpec
from apt_bench.reporting.report import write_tables
from apt_bench.rollout.identity import protocol
from apt_bench.runs.protocol import protocol_hash
from apt_bench.suites import iter_suites

DATA = Path(__file__).parent / "data"
OLD = DATA / "run-0.1.0"
TABLES = DATA / "run-0.1.0-tables"


def test_an_old_run_is_read():
    run = apt_bench.load_run(OLD)
    episodes = run.episodes
    assert run.name == "oracle"
    assert episodes.groupby(["prompt", "cell"]).size().to_dict() == {
        (prompt, cell): count for prompt in ("default", "null", "repeat") for cell, count in (("so", 2), ("uo", 1))
    }  # fmt: skip
    assert set(episodes.outcome) == {"success"}
    assert episodes.steps[:3].tolist() == [64, 69, 81]
    assert episodes.first_contact[:3].tolist() == ["purple_ball", "apple", "pink_cube"]
    assert run.summary()[["successes", "episodes", "requested"]].to_numpy().tolist() == [[2, 2, 2], [1, 1, 1]]


def test_the_report_of_an_old_run_has_the_same_tables(tmp_path):
    write_tables(load_runs([str(OLD)]), tmp_path)
    for expected in sorted(TABLES.glob("*.csv")):
        assert (tmp_path / "tables" / expected.name).read_text() == expected.read_text(), expected.name


def test_an_old_run_compared_with_itself_shows_no_difference():
    found = apt_bench.compare(OLD, OLD)
    assert (found.overall.difference.value, found.overall.p) == (0, 1)


def test_an_old_run_is_resumed_with_its_missing_episode_only(cli, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD, run)
    before = (run / "episodes.jsonl").read_text()
    old = json.loads((run / "protocol.json").read_text())
    words = "run --suite rigid_pick_place --policy oracle --cells so,uo --tasks 0 --episodes 2 --workers 0"
    cli(*words.split(), "--probe", "null", "--out", run, code=0)
    assert json.loads((run / "protocol.json").read_text()) == old
    after = (run / "episodes.jsonl").read_text()
    assert after.startswith(before)
    added = [json.loads(line) for line in after.removeprefix(before).splitlines()]
    assert sorted(r["key"]["prompt"] for r in added) == ["default", "null", "repeat"]
    assert {(r["key"]["cell"], r["key"]["task"], r["key"]["init"]) for r in added} == {("uo", "to_plate", 1)}
    assert all(list(r) == list(json.loads(before.splitlines()[0])) for r in added)  # the same fields


@pytest.mark.parametrize("suite", list(iter_suites()), ids=lambda suite: suite.name)
def test_protocol_hashes_of_shipped_suites_stay(suite):
    spec = PolicySpec("any", cameras=("agentview", "wrist"))
    expected = json.loads((DATA / "protocol_hashes.json").read_text())
    assert protocol_hash(protocol(suite, spec, 10, None, None)) == expected[suite.name]
