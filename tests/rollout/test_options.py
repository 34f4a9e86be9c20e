"""Options have one definition: the command line, a configuration file and the documentation agree with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from apt_bench.cli import run as verb
from apt_bench.core.errors import UserError
from apt_bench.rollout.options import OPTIONS, RunOptions, read_config
from tests.rollout.commands import ROOT, SUITE

NEEDED = ["--suite", SUITE, "--policy", "zero"]
DECIDED = ["--stop-when", "decided"]

VALUES: dict[str, tuple[Any, list[str]]] = {
    "suite": ("libero", ["--suite", "libero"]),
    "cells": (["push", "slide"], ["--cells", "push,slide"]),
    "tasks": ([0, "left"], ["--tasks", "0,left"]),
    "episodes": (3, ["--episodes", "3"]),
    "seed": (0, ["--seed", "0"]),
    "limit": (2, ["--limit", "2"]),
    "instruction-source": ("bddl", ["--instruction-source", "bddl"]),
    "probe": ("null, swapped", ["--probe", "null,swapped"]),
    "instruction": ("push it, please", ["--instruction", "push it, please"]),
    "instructions": ("mine.csv", ["--instructions", "mine.csv"]),
    "policy": ("oracle", ["--policy", "oracle"]),
    "policy-arg": ({"a": 1, "b": "x, y"}, ["--policy-arg", "a=1", "--policy-arg", 'b="x, y"']),
    "file": ("x.npz", ["x.npz"]),
    "checkpoint": ("org/repo@rev", ["--checkpoint", "org/repo@rev"]),
    "server": (["ws://a:1", "b:2-3"], ["--server", "ws://a:1", "--server", "b:2-3"]),
    "llm-model": ("org/model", ["--llm-model", "org/model"]),
    "max-cost": (2.5, ["--max-cost", "2.5"]),
    "cassette": (["replay", "my answers.jsonl"], ["--cassette", "replay", "my answers.jsonl"]),
    "execute-horizon": (4, ["--execute-horizon", "4"]),
    "workers": (2, ["--workers", "2"]),
    "ray-address": ("auto", ["--ray-address", "auto"]),
    "attempts": (1, ["--attempts", "1"]),
    "hang-timeout": (20, ["--hang-timeout", "20"]),
    "unpinned": (True, ["--unpinned"]),
    "out": ("x", ["--out", "x"]),
    "video": ("first:2", ["--video", "first:2"]),
    "save-actions": (True, ["--save-actions"]),
    "track": ("trackio", ["--track", "trackio"]),
    "selection-rule": ("last step", ["--selection-rule", "last step"]),
    "stop-when": ("complete", ["--stop-when", "complete"]),
    "against": ("old", ["--against", "old", *DECIDED]),
    "margin": (5, ["--margin", "5", "--against", "old", *DECIDED]),
}
WITH = {
    "against": {"stop-when": "decided"},
    "margin": {"stop-when": "decided", "against": "old"},
}
"""Other keys that the file must have."""


@pytest.fixture
def options(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The options that a command line means."""

    def parse(*line: str) -> RunOptions:
        found: list[RunOptions] = []

        def keep(options: RunOptions, console: Any) -> None:
            found.append(options)
            raise typer.Exit

        monkeypatch.setattr(verb, "run", keep)
        cli("run", *line, code=0)
        return found[0]

    return parse


def write(path: Path, **keys: Any) -> str:
    path.write_text(yaml.safe_dump({"suite": SUITE, "policy": "zero"} | keys))
    return str(path)


def test_every_option_has_a_value_here() -> None:
    assert list(VALUES) == [o.name for o in OPTIONS.values()]


@pytest.mark.parametrize("name", VALUES)
def test_a_file_and_the_equal_command_line_mean_the_same(name: str, options: Any, tmp_path: Path) -> None:
    value, line = VALUES[name]
    needed = NEEDED[:2] if name == "policy" else NEEDED  # a second --policy adds a run
    expected = options(*needed, *line)
    keys = {name: value} | WITH.get(name, {})
    assert options("--config", write(tmp_path / "a.yaml", **keys)) == expected
    underscores = {k.replace("-", "_"): v for k, v in keys.items()}
    assert options("--config", write(tmp_path / "b.yaml", **underscores)) == expected
    if name != "stop-when":
        assert expected != options(*NEEDED)


def test_the_command_line_overrides_the_file(options: Any, tmp_path: Path) -> None:
    config = write(tmp_path / "a.yaml", cells="push", seed=3, unpinned=True, **{"save-actions": True})
    found = options("--config", config, "--cells", "slide", "--no-save-actions", "--policy", "oracle")
    assert (found.selection.cells, found.selection.seed) == (("slide",), 3)
    assert (found.output.save_actions, found.execution.unpinned) == (False, True)
    assert (found.selection.suite, found.execution.policy) == (SUITE, "oracle")


def test_a_file_and_the_equal_command_line_give_the_same_plan(cli: Any, tmp_path: Path) -> None:
    keys = {"cells": ["push"], "episodes": 2, "probe": ["null"], "workers": 1, "out": str(tmp_path / "run")}
    config = write(tmp_path / "a.yaml", **keys, **{"execute-horizon": 1})
    line = [
        "--cells",
        "push",
        "--episodes",
        "2",
        "--probe",
        "null",
        "--workers",
        "1",
        "--out",
        tmp_path / "run",
    ]
    plan = json.loads(cli("run", "--config", config, "--dry-run", "--json", code=0))
    assert plan == json.loads(
        cli("run", *NEEDED, *line, "--execute-horizon", "1", "--dry-run", "--json", code=0)
    )
    assert (plan["to_run"], plan["execute_horizon"], plan["workers"]) == (12, 1, 1)
    assert [(c["cell"], c["prompt"], c["tasks"], c["to_run"]) for c in plan["cells"]] == [
        ("push", "default", 2, 4),
        ("push", "null", 2, 4),
        ("push", "repeat", 2, 4),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cell": "push"}, r"a\.yaml: unknown key 'cell'. Did you mean 'cells'\?"),
        ({"execute_horizn": 1}, r"unknown key 'execute_horizn'. Did you mean 'execute-horizon'\?"),
        ({"episodes": "many"}, r"a\.yaml: episodes is 'many'; it must be a whole number"),
        ({"episodes": 0}, r"a\.yaml: episodes is 0; it must be at least 1"),
        ({"save-actions": "yes"}, r"a\.yaml: save-actions is 'yes'; it must be of type bool"),
        ({"cells": [["push"]]}, r"a\.yaml: cells is \['push'\]; it must be of type str"),
        ({"cells": 1.5}, r"a\.yaml: cells is 1\.5; it must be of type str"),
        ({"out": 3}, r"a\.yaml: out is 3; it must be of type str"),
        ({"margin": 100}, r"a\.yaml: margin is 100\.0; it must be above 0 and below 100"),
        ({"policy-arg": 3.5}, r"a\.yaml: policy-arg is 3\.5; it must be of type str"),
        ({"stop-when": "soon"}, r"a\.yaml: stop-when is 'soon'; it must be one of complete, decided"),
        ({"hang-timeout": 3, "hang_timeout": 4}, r"a\.yaml: 'hang-timeout' is defined twice"),
        ({"workers": "some"}, r"--workers is auto or a number from 0, not 'some'"),
        ({"suite": None}, r"a\.yaml: suite is None; it must be of type str"),
    ],
)
def test_a_wrong_file_is_one_message(cli: Any, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    assert re.search(message, cli("run", "--config", write(tmp_path / "a.yaml", **keys), "--dry-run"))


def test_what_is_required_is_named(cli: Any, tmp_path: Path) -> None:
    assert "--policy is missing" in cli("run", "--suite", SUITE)
    (tmp_path / "a.yaml").write_text("policy: zero\n")
    assert "--suite is missing" in cli("run", "--config", tmp_path / "a.yaml")
    assert "No such file" in cli("run", "--config", tmp_path / "b.yaml")


def test_options_are_checked_in_python_too() -> None:
    with pytest.raises(UserError, match=r"There is no option 'cell'\. Did you mean 'cells'"):
        RunOptions.of(suite="x", policy="y", cell=("z",))
    with pytest.raises(UserError, match="--margin is 5"):
        RunOptions.of(suite="x", policy="y", against=Path("z"), stop_when="decided", margin=5)
    with pytest.raises(UserError, match="excludes --probe and --limit"):
        RunOptions.of(suite="x", policy="y", against=Path("z"), stop_when="decided", limit=5)
    with pytest.raises(UserError, match="--video is 3"):
        RunOptions.of(suite="x", policy="y", video=3)
    assert RunOptions.of(suite="x", policy="y", cells=("b", "a", "b")).selection.cells == ("b", "a")


def test_help_groups_the_options_and_fits_80_columns(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli("run", "--help", code=0)
    headings = re.findall(r"^(\w.*):$", shown, re.M)
    assert headings == ["Selection of episodes", "Execution", "Output", "Stopping rule", "Options"]
    assert max(map(len, shown.splitlines())) <= 80
    for option in OPTIONS.values():
        assert option.flag in shown
        assert " ".join(option.help.text.split()[:3]) in " ".join(shown.split())


def test_the_documentation_lists_every_key() -> None:
    section = (ROOT / "docs/running.md").read_text().partition("## Options and")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.M) == list(VALUES)


def test_the_documented_file_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/running.md").read_text(), re.S)
    (tmp_path / "run.yaml").write_text(example)
    found = RunOptions.of(**read_config(tmp_path / "run.yaml"))
    assert found.execution.policy_args == ('checkpoint="weights.safetensors"', "temperature=0.5")
    assert (found.selection.cells, found.output.save_actions) == (("spatial_task", "object_pos"), True)
