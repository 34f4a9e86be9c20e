"""Everything that can be checked is checked before a long operation starts. Messages name the problem and its cause."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scripted import demonstration, write

from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.training import final_evaluation, inputs, preflight
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint

CLI = Callable[..., str]


@pytest.fixture
def train(cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CLI:
    """The default recipe, where the first thing that takes time is an error of the test."""

    def long(*args: object, **options: object) -> None:
        raise AssertionError("something long was started")

    for module, name in ((inputs, "collect"), (inputs, "pretrained_mini"), (final_evaluation, "run")):
        monkeypatch.setattr(module, name, long)
    monkeypatch.setattr("apt_bench.training.two_stage.run_recipe", long)

    def call(*words: object, code: int = 2) -> str:
        folders = ["--out", tmp_path / "run", "--cache", tmp_path / "cache"]
        return cli("train", "--device", "cpu", *folders, *words, code=code)

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu", "cuda:x", "meta", ""])
def test_a_device_that_is_not_there(train: CLI, device: str) -> None:
    message = train("--device", device)
    assert f"--device {device} cannot be used: " in message
    assert len(message.split("cannot be used: ")[1]) > 20  # a reason


def _file(tmp: Path) -> Path:
    (tmp / "file").write_text("")
    return tmp / "file"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "collect.suite=no_suite"], "no_suite"),
        (["--set", "collect.cells=[no_cell]"], "no_cell"),
        (["--set", "evaluate.suite=no_suite"], "no_suite"),
        (["--set", "evaluate.cells=[no_cell]"], "no_cell"),
        (["--set", "collect.policy_args=[speed=9]"], "speed"),
        (["--set", "evaluate.policy_args=[sample_step=10]"], "sample_step"),
        (["--set", "evaluate.policy_args=[sample_steps=7]"], "sample_steps=7 must divide"),
        (["--set", "evaluate.execute=99"], "execute is 99"),
        (["--set", "expert.heads=0"], "heads is 0"),
        (["--set", "expert.apt.taps=[9, 9, 9, 9]"], "taps"),
        (
            ["--set", "vlm.mini.heads=1", "--set", "expert.apt.taps=[]"],
            "needs a mini VLM of at least 2 heads",
        ),
        (["--track", "wandb"], "wandb"),
        (["--data", "/no/such/data.hdf5"], "/no/such/data.hdf5"),
        (["--prior", "/no/such/prior"], "No checkpoint at '/no/such/prior'"),
        (["--vlm", "/no/such/vlm"], "/no/such/vlm"),
        (["--workers", "3"], "a batch of 32 cannot be shared by 3 processes"),
        (["--config", "nowhere"], "No training configuration 'nowhere'"),
    ],
)
def test_it_is_known_before_anything_long_starts(train: CLI, words: list[str], says: str) -> None:
    assert says in train(*words)


def test_folders_that_cannot_be_written(train: CLI, tmp_path: Path) -> None:
    assert "Cannot write to" in train("--out", _file(tmp_path) / "run")
    assert "Give --cache another directory" in train("--cache", _file(tmp_path) / "cache")


def test_a_demonstration_that_cannot_be_learned_from(train: CLI, tmp_path: Path) -> None:
    write(tmp_path / "d.hdf5", 2)  # seen by agentview alone
    assert "no calibration" in train("--data", tmp_path / "d.hdf5", "--set", "data.cameras=[wrist]")
    assert "camera 'wrist'" in train("--data", tmp_path / "d.hdf5")  # the default reference
    write_hdf5(tmp_path / "broken.hdf5", [demonstration(0)])
    (tmp_path / "broken.hdf5").write_bytes((tmp_path / "broken.hdf5").read_bytes()[:100])
    assert "broken.hdf5" in train("--data", tmp_path / "broken.hdf5")


def test_a_second_training_in_one_folder_is_refused(train: CLI, tmp_path: Path) -> None:
    with exclusive(tmp_path / "run", "apt-bench train"):
        assert "Another apt-bench train is writing to" in train()


def test_a_disk_without_room(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(UserError, match=r"GB for checkpoints and has 0\.00 GB free"):
        preflight.check(load_recipe(str(config)), Session(tmp_path / "run", tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(config: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preflight")
    run_recipe(load_recipe(str(config), SHORT), Session(out, cache, Report(None)))
    return out


SHORT: dict[str, Any] = {"stage1": {"steps": 1}, "stage2": {"steps": 1}}


@pytest.mark.parametrize(
    ("over", "says"),
    [({"train": {"lr": 5e-4}}, "was trained with lr"), ({"arch": "groot"}, "another architecture"),
     ({"seed": 3}, "was trained with seed 0"), ({"vlm_mode": "full"}, "vlm_mode frozen, this run has full")],
)  # fmt: skip
def test_a_folder_of_another_training_is_known_at_once(
    config: Path, cache: Path, trained: Path, over: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        preflight.check(load_recipe(str(config), SHORT | over), Session(trained, cache))


def test_a_prior_that_does_not_fit_or_is_damaged_is_known_at_once(
    config: Path, cache: Path, trained: Path, tmp_path: Path
) -> None:
    prior = stage_checkpoint(trained, 1)
    session = Session(tmp_path / "run", cache)
    preflight.check(load_recipe(str(config), SHORT | {"prior": str(prior)}), session)
    with pytest.raises(UserError, match=r"is apt, stage 1, .* this run needs groot"):
        preflight.check(load_recipe(str(config), SHORT | {"prior": str(prior), "arch": "groot"}), session)
    path = prior / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="SHA-256"):
            preflight.check(load_recipe(str(config), SHORT | {"prior": str(prior)}), session)
    finally:
        path.write_bytes(content)


def test_a_run_is_resumed_from_the_weights_that_it_began_with(
    config: Path, cache: Path, trained: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(trained / "policy", policy)
    began = load_recipe(str(config), SHORT | {"start": str(policy)})
    session = Session(tmp_path / "run", cache, Report(None))
    run_recipe(began, session)
    preflight.check(began, session)
    with pytest.raises(
        UserError, match=r"was trained from .*/policy \(SHA-256 .* starts from no given weights"
    ):
        preflight.check(load_recipe(str(config), SHORT), session)
    other = tmp_path / "other"
    run_recipe(load_recipe(str(config), SHORT | {"seed": 1}), Session(other, cache, Report(None)))
    shutil.copytree(other / "policy", policy, dirs_exist_ok=True)
    with pytest.raises(UserError, match="Give the same weights to resume"):
        preflight.check(began, session)


def test_the_default_recipe_passes(tmp_path: Path) -> None:
    session = Session(tmp_path / "run", tmp_path / "cache")
    preflight.check(load_recipe("mini"), session)
    assert yaml.safe_load(load_recipe("mini").to_yaml())["recipe"] == "plain"


def test_an_error_of_the_system_in_the_middle_is_one_line(
    cli: CLI, config: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise OSError(5, "Input/output error", str(tmp_path / "run" / "config.yaml"))

    monkeypatch.setattr("apt_bench.training.two_stage.write_whole", fails)
    words = ["train", "--config", config, "--device", "cpu", "--out", tmp_path / "run", "--cache", cache]
    assert "stopped: Input/output error" in cli(*words)
