"""Bad input: one clear message on stderr, exit code 2, no traceback."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from apt_bench.envs.rendering import choose_backend

ROOT = Path(__file__).parents[2]
TOY = ["--suite", "tests/toy_suite.yaml"]
PUSH = [*TOY, "--policy", "tests.toy:PushPolicy"]
BAD = [*TOY, "--policy", "tests.toy:BadPolicy", "--policy-arg"]


@pytest.fixture
def cli(cli, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    return cli


@pytest.fixture
def run(cli, tmp_path):
    def call(*words: str, code: int = 2) -> str:
        return cli("run", "--workers", "0", "--out", str(tmp_path / "run"), *words, code=code)

    return call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "libero_prp", "--policy", "zero"], "No suite 'libero_prp'. Did you mean 'libero_pro'?"),
        ([*PUSH, "--cells", "pusch"], "no cell 'pusch'. Did you mean 'push'?"),
        ([*PUSH, "--tasks", "push_the_puk_left"], "No task 'push_the_puk_left'"),
        ([*TOY, "--policy", "orcale"], "No policy 'orcale'. Did you mean 'oracle'?"),
        ([*TOY, "--policy", "tests.toy:Nobody"], "Module 'tests.toy' has no 'Nobody'"),
        ([*TOY, "--policy", "no_such_module:P"], "Cannot import 'no_such_module'"),
        ([*TOY, "--policy", "tests.toy:INITS"], "is not a policy: it needs `spec`, `reset` and `act`"),
        ([*PUSH, "--policy-arg", "nois=1"], "unexpected keyword argument 'nois'"),
        ([*PUSH, "--policy-arg", "noise"], "--policy-arg takes key=value"),
        ([*PUSH, "some.npz"], "takes no file"),
        ([*TOY, "--policy", "replay"], "needs a file: --policy replay FILE"),
        ([*TOY, "--policy", "replay", "nowhere"], "No stored actions (.npz) at 'nowhere'"),
        ([*TOY, "--policy", "replay", "tests/toy.py"], "tests/toy.py is not a file of stored actions"),
        (["--suite", "nofile.yaml", "--policy", "zero"], "No file 'nofile.yaml'"),
        (["--suite", "x" * 300 + ".yaml", "--policy", "zero"], "No file 'xxx"),
        ([*PUSH, "--out", "x" * 300], "File name too long. Give --out another directory"),
        ([*PUSH, "--out", "tests/toy.py/run"], "Not a directory. Give --out another directory"),
        ([*PUSH, "--against", "x" * 300, "--stop-when", "decided"], "File name too long"),
        (["--suite", "tests", "--policy", "zero"], "No suite 'tests'"),
        (["--suite", "../tests/toy_suite", "--policy", "zero"], "No suite '../tests/toy_suite'"),
        ([*PUSH, "--episodes", "-3"], "--episodes is -3; it must be at least 1"),
        ([*PUSH, "--episodes", "9" * 30], "--episodes is 999"),
        ([*PUSH, "--seed", "-1"], "--seed is -1; it must be at least 0"),
        ([*PUSH, "--seed", "9" * 30], "which is too large"),
        ([*PUSH, "--attempts", "0"], "--attempts is 0; it must be at least 1"),
        ([*PUSH, "--execute-horizon", "-1"], "--execute-horizon is -1; it must be at least 1"),
        ([*PUSH, "--hang-timeout", "nan"], "--hang-timeout is nan; it must be finite"),
        ([*PUSH, "--hang-timeout", "inf"], "--hang-timeout is inf; it must be finite"),
        ([*PUSH, "--workers", "²"], "--workers is auto or a number from 0, not '²'"),
        ([*PUSH, "--workers", "-1"], "--workers is auto or a number from 0, not '-1'"),
        ([*PUSH, "--workers", "٣"], "--workers is auto or a number from 0"),
        ([*PUSH, "--workers", "9" * 5000], "--workers is auto or a number from 0"),
        ([*PUSH, "--workers", "²", "--dry-run"], "--workers is auto or a number from 0"),
        ([*PUSH, "--video", "first:²"], "--video is none, failures, first:K"),
        ([*PUSH, "--tasks", "²"], "No task '²'"),
        ([*PUSH, "--against", "x", "--stop-when", "decided", "--margin", "nan"], "--margin is nan"),
        (
            [*PUSH, "--against", "x", "--stop-when", "decided", "--margin", "100"],
            "--margin is 100.0; it must be above 0",
        ),
        ([*PUSH, "--probe", "nul"], "Did you mean 'null'?"),
        ([*PUSH, "--episodes", "51"], "has 50 initial states"),
        ([*PUSH, "--limit", "0"], "--limit is 0; it must be at least 1"),
        (
            [*PUSH, "--execute-horizon", "5"],
            "--execute-horizon must be between 1 and the policy's chunk of 4",
        ),
        ([*PUSH, "--workers", "many"], "--workers is auto or a number from 0, not 'many'"),
        ([*PUSH, "--video", "first"], "--video is none, failures, first:K"),
        ([*PUSH, "--hang-timeout", "0"], "--hang-timeout is 0.0; it must be above 0"),
        ([*PUSH, "--instruction-source", "bdll"], "no instruction source 'bdll'. Did you mean 'bddl'?"),
        ([*PUSH, "--cells", "no_gl"], "No usable GL backend"),
        ([*BAD, "how=nan"], "Policy 'bad' returned a chunk with NaN or infinite values"),
        ([*BAD, "how=shape"], "a chunk of shape (4, 6) instead of (n, 7) with 1 <= n <= 4"),
        ([*BAD, "how=long"], "a chunk of shape (12, 7)"),
        ([*BAD, "how=text"], "a str that is not an array of numbers"),
        ([*BAD, "how=raise"], "Policy 'bad' raised ValueError: the toy policy is confused"),
    ],
)
def test_one_message(words, message, run):
    assert message in run(*words)


def test_a_suite_with_an_unknown_key(run, tmp_path):
    text = (ROOT / "tests/toy_suite.yaml").read_text().replace("settle_steps", "setle_steps")
    (tmp_path / "odd.yaml").write_text(text)
    message = run("--suite", str(tmp_path / "odd.yaml"), "--policy", "zero")
    assert "odd.yaml: unknown key 'setle_steps'. Did you mean 'settle_steps'?" in message


def test_another_simulator_version(run, tmp_path):
    text = (ROOT / "tests/toy_suite.yaml").read_text() + "simulator: {mujoco: 2.0.0}\n"
    (tmp_path / "old.yaml").write_text(text)
    words = ["--suite", str(tmp_path / "old.yaml"), "--policy", "zero", "--limit", "1"]
    assert "is defined on mujoco 2.0.0; here is" in run(*words)
    run(*words, "--unpinned", code=0)


def test_a_directory_of_another_run(run, tmp_path):
    run(*PUSH, "--limit", "1", code=0)
    assert "another protocol (execute: 3 there, 2 now)" in run(*PUSH, "--execute-horizon", "2")
    assert "another policy (args.how" in run(*BAD, "how=nan")
    (tmp_path / "run" / "protocol.json").unlink()
    assert "is not empty and holds no run" in run(*PUSH)


def test_a_damaged_line(run, tmp_path):
    run(*PUSH, "--limit", "3", code=0)
    path = tmp_path / "run" / "episodes.jsonl"
    first, second, third = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:40]}\n{third}\n")
    assert "episodes.jsonl, line 2, is damaged" in run(*PUSH, "--limit", "3")
    path.write_text(
        f"{first}\n{third}\n{second[:40]}"
    )  # a crash while writing: only the last line, without its end
    run(*PUSH, "--limit", "3", code=0)
    assert len(path.read_text().splitlines()) == 3


def test_no_gl_library(run, monkeypatch, tmp_path):
    text = (ROOT / "tests/toy_suite.yaml").read_text() + f"simulator: {{mujoco: {version('mujoco')}}}\n"
    (tmp_path / "gl.yaml").write_text(text)
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    choose_backend.cache_clear()  # another test of this process may have rendered
    message = run("--suite", str(tmp_path / "gl.yaml"), "--policy", "tests.toy:PushPolicy")
    assert "MUJOCO_GL=vulkan is not a known GL library" in message


def test_what_is_listed_and_planned(cli, run, tmp_path):
    assert "libero_pro" in cli("ls", code=0)
    assert "oracle" in cli("ls", "policies", code=0)
    assert "unavailable: its scene was never shipped" in cli("ls", "tasks", *TOY, "--cells", "absent", code=0)
    run(*PUSH, "--cells", "push", "--episodes", "2", code=0)
    planned = run(*PUSH, "--episodes", "2", "--dry-run", code=0)
    assert "4 episodes to run" in planned
    assert [line.split() for line in planned.splitlines()[1:3]] == [
        ["push", "2", "4", "4", "0"],
        ["slide", "2", "4", "0", "4"],
    ]
    listed = cli("ls", "runs", "--path", str(tmp_path), code=0).splitlines()
    assert listed[0] == f"Runs in {tmp_path}:"
    assert listed[2].startswith("run ")


def test_validate(cli, monkeypatch, tmp_path):
    suite = tmp_path / "checked.yaml"
    text = (ROOT / "tests/toy_suite.yaml").read_text()
    suite.write_text(text + "checks: tests.toy:checks\n")
    out = cli("validate", "--suite", str(suite), code=1)
    assert "error: push/push_the_puck_left init 3: premise: the puck is off the table" in out
    assert "unavailable: absent/push_the_puck_left" in out
    assert "names no checks" in cli("validate", *TOY)
