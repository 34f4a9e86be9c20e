"""`apt-bench probe`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

TOY = ["--suite", "tests/toy_suite.yaml", "--cells", "push", "--episodes", "2"]


def test_the_noise_floor_stands_beside_each_probe(cli, tmp_path: Path) -> None:
    shown = cli("probe", *TOY, "--policy", "random", "--probe", "null", "--out", tmp_path / "x.csv", code=0)
    rows = [line.split() for line in shown.splitlines() if line.startswith(("repeat", "null"))]
    assert [row[:3] for row in rows] == [["repeat", "4", "0%"], ["null", "4", "0%"]]
    assert rows[1][3] == "0%"
    assert "A repeat under the same instruction changed the chunk in 0% of 4 episodes" in shown
    with open(tmp_path / "x.csv", newline="") as file:
        assert [row["probe"] for row in csv.DictReader(file)] == ["null", "repeat"] * 4


def test_a_policy_with_its_own_noise_shows_it(cli) -> None:
    shown = cli("probe", *TOY, "--policy", "tests.policies.test_noise:OwnNoise", "--probe", "null", code=0)
    rows = {
        line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(("repeat", "null"))
    }
    assert rows["repeat"][2] == rows["null"][2] == rows["null"][3] == "100%"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "random", "--probe", "nul"], "No language probe 'nul'. Did you mean 'null'?"),
        (["--policy", "random", "--out", "nowhere/x.csv"], "Folder nowhere does not exist"),
        (
            ["--policy", "tests.wild:Answering", "--policy-arg", "how=exit"],
            "Policy 'answering' raised SystemExit: 0",
        ),
        (
            ["--policy", "tests.wild:Answering", "--policy-arg", "how=zmq"],
            "The server of policy 'answering' is gone",
        ),
    ],
)
def test_bad_input_is_one_message(words: list[str], message: str, cli) -> None:
    assert message in cli("probe", *TOY, *words)


def test_another_simulator_is_refused_or_said(cli, tmp_path: Path) -> None:
    text = Path("tests/toy_suite.yaml").read_text() + "simulator: {mujoco: 2.0.0}\n"
    (tmp_path / "old.yaml").write_text(text)
    asked = ["--suite", str(tmp_path / "old.yaml"), "--cells", "push", "--policy", "zero", "--episodes", "1"]
    assert "is defined on mujoco 2.0.0; here is" in cli("probe", *asked, "--probe", "null")
    cli("probe", *asked, "--probe", "null", "--unpinned", code=0)
