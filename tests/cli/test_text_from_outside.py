"""Names and messages from users, files and policies are shown as they are, on any terminal and in any locale."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from apt_bench.cli._run_summary import summary
from apt_bench.rollout.progress import Counts, Progress
from apt_bench.runs.records import RunStore
from tests.runs import add, record, write_run

ROOT = Path(__file__).parents[2]
ODD = "cannot open [/dev/dri/renderD128] [red]x :smile: \x1b[2J"
SHOWN = "cannot open [/dev/dri/renderD128] [red]x :smile: \\x1b[2J"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_errors_and_names_as_they_are(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)  # anybody's, with markup on
    one = record("[/cell]", "t", 0, True)
    counts = Counts("[/push]", 3, [(one.key, one.outcome)])
    other = Counts("[/zero]", 3, [])
    with Progress([counts], console) as progress:
        progress.retrying("toy/[red]/t", ODD + "\nnext line")
        counts.ended(one)
        progress.update()
        console.print(progress.view())
        console.print(Progress([counts, other], console).view())
        console.print(summary([one], [record(c, "t", 1, True).key for c in ("[/cell]", "[/other]")]))
    text = file.getvalue()
    assert f"Retrying toy/[red]/t: {SHOWN} next line" in text.replace("\x1b[33m", "").replace("\x1b[0m", "")
    assert text.count("[/cell]") >= 2
    assert all(name in text for name in ("[/other]", "[/push]", "[/zero]"))
    assert "\x1b[2J" not in text


def test_ls_shows_a_suite_of_odd_names(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (
        (ROOT / "tests/toy_suite.yaml").read_text().replace("title: Toy", 'title: Toy\nabout: "[/x] \\e[2J"')
    )
    text = text.replace("label: Push", 'label: "[/Push]"').replace(
        "its scene was never shipped", '"[bold] never"'
    )
    (tmp_path / "odd.yaml").write_text(text)
    for kind in ("suites", "cells", "tasks"):
        out = cli(
            "ls",
            kind,
            "--suite",
            tmp_path / "odd.yaml",
            *(["--cells", "absent"] if kind == "tasks" else []),
            code=0,
        )
        assert "\x1b" not in out
        assert {"suites": "[/x] \\x1b[2J", "cells": "[/Push]", "tasks": "[bold] never"}[kind] in out


def _run(path: Path, **policy: object) -> RunStore:
    store = RunStore.create(path, {"suite": "toy"}, {"policy": {"name": "p", **policy}})
    store.append(record("a", "t", 0, True))
    return store


def test_ls_runs_finds_every_run_and_survives_damaged_ones(cli, tmp_path):
    _run(tmp_path / "plain", name="[/policy]")
    _run(tmp_path / "toy-my/policy-1234")  # as an older version wrote a policy's name with a slash
    _run(tmp_path / "deep/er/still")
    (tmp_path / "linked").symlink_to(_run(tmp_path.parent / f"{tmp_path.name}-else").path)
    (tmp_path / "loop").symlink_to(tmp_path)
    for name, file, text in [
        ("policy_is_text", "run.json", '{"policy": "apt"}'),
        ("no_run_json", "run.json", None),
        ("huge", "run.json", '{"wall_seconds": 1e400}'),
        ("torn_protocol", "protocol.json", "{"),
        ("no_protocol", "protocol.json", None),
        ("line", "episodes.jsonl", "[]\n"),
        ("folder", "episodes.jsonl", ""),
    ]:
        path = _run(tmp_path / name).path / file
        path.unlink()
        if text is not None:
            path.mkdir() if name == "folder" else path.write_text(text)
    out = cli("ls", "runs", "--path", tmp_path, code=0)
    rows = {line.split()[0]: line for line in out.splitlines()[2:]}
    good = ["plain", "toy-my/policy-1234", "deep/er/still", "linked"]
    assert all(rows[name].split()[1] == "toy" for name in good)
    assert "[/policy]" in out
    damaged = ["policy_is_text", "no_run_json", "huge", "torn_protocol", "no_protocol", "line", "folder"]
    assert all("damaged: " in rows[name] for name in damaged)
    assert len(rows) == len(good) + len(damaged)


LOCALES = [
    {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"},
    {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", LOCALES, ids=["ascii", "latin"])
def test_a_locale_that_is_not_utf8_loses_nothing(environment, tmp_path):
    text = (
        (ROOT / "tests/toy_suite.yaml").read_text().replace("push:   {label: Push,", "schübe: {label: 押す,")
    )
    (tmp_path / "süß.yaml").write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", "apt_bench", "run", "--suite", str(tmp_path / "süß.yaml"), "--policy"]
    words += ["tests.toy:PushPolicy", "--cells", "schübe", "--workers", "0", "--save-actions", "--episodes"]
    where = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))} | environment
    for number in ("1", "2"):
        out = ["--out", str(tmp_path / "läufe")]
        done = subprocess.run([*words, number, *out], capture_output=True, cwd=ROOT, env=where)
        assert (done.returncode, done.stderr) == (0, b"")
    store = RunStore.open(tmp_path / "läufe")
    assert {r.key.cell for r in store.episodes()} == {"schübe"}
    assert store.run()["requested"]["schübe"] == {"push_the_puck_left": 2, "push_the_puck_right": 2}
    assert (tmp_path / "läufe/actions/schübe/push_the_puck_left_init1.npz").is_file()
    done = subprocess.run(
        [*words[:3], "ls", "runs", "--path", str(tmp_path)], capture_output=True, cwd=ROOT, env=where
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_summary_of_nothing_done_is_a_table():
    file = io.StringIO()
    Console(file=file, width=100).print(summary([], [record("a", "t", i, True).key for i in range(2)]))
    assert "0/0" in file.getvalue()
    one = dataclasses.replace(record("a", "t", 0, True), outcome="timeout")
    Console(file=(only := io.StringIO()), width=100).print(summary([one], []))
    assert only.getvalue().split("\n")[1].startswith("a           0/1  0.0")


def test_ls_runs_counts_what_was_asked_and_leaves_probes_out(cli, tmp_path):
    path = write_run(tmp_path / "run", lambda c, t, i: i == 0, {"goal_pos": 2}, tasks=2)
    add(path, *(record("goal_pos", "task_0", i, True, prompt_id="null") for i in range(2)))
    info = json.loads((path / "run.json").read_text())
    info["requested"]["goal_pos"]["task_1"] = 9
    (path / "run.json").write_text(json.dumps(info))
    info["ended"] = "2026-01-02T03:04:05+00:00"
    (path / "run.json").write_text(json.dumps(info))
    first, heads, row = cli("ls", "runs", "--path", tmp_path, code=0).splitlines()
    assert first == f"Runs in {tmp_path}:"
    assert heads.split() == ["run", "suite", "policy", "date", "done", "successes", "errors", "probed"]
    assert row.split() == ["run", "libero_pro", "apt", "2026-01-02", "4/11", "2", "2"]
