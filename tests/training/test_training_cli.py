"""`apt-bench train` and its checkpoints from the command line: learning, and one clear message for bad input."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scripted import demonstration, write

from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.models import checkpoint
from apt_bench.models.action_codes import decode_chunk
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.batches import prepare
from apt_bench.training.samples.stream import open_samples
from apt_bench.training.two_stage import stage_checkpoint

CLI = Callable[..., str]
SHORT = ["--no-two-stage", "--steps", "2", "--device", "cpu"]


@pytest.fixture
def train(cli: CLI, config: Path, cache: Path, tmp_path: Path) -> CLI:
    def call(*words: object, code: int = 2, out: str = "run") -> str:
        folders = ["--out", tmp_path / out, "--cache", cache]
        return cli("train", "--config", config, *SHORT, *folders, *words, code=code)

    return call


def missing(tmp: Path) -> list[Path]:
    return [tmp / "nowhere.hdf5"]


def truncated(tmp: Path) -> list[Path]:
    path = write(tmp / "half.hdf5", 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return [path]


def not_hdf5(tmp: Path) -> list[Path]:
    (tmp / "text.hdf5").write_text("no")
    return [tmp / "text.hdf5"]


def two_sizes(tmp: Path) -> list[Path]:
    write_hdf5(tmp / "mixed.hdf5", [demonstration(0), demonstration(1, size=48)])
    return [tmp / "mixed.hdf5"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "No file or folder"),
        (truncated, "half.hdf5"),
        (not_hdf5, "text.hdf5"),
        (two_sizes, "are 48x48 pixels, those before it 64x64"),
    ],
)
def test_bad_data(train: CLI, tmp_path: Path, make: Callable[[Path], list[Path]], says: str) -> None:
    data = [word for path in make(tmp_path) for word in ("--data", path)]
    assert says in train(*data, "--set", "data.held_out=0")


def test_a_loss_that_is_not_finite(train: CLI) -> None:
    message = train("--set", "train.lr=1e30", "--set", "train.warmup=0", "--steps", "6")
    assert "not finite at step" in message
    assert "lower lr" in message


def test_a_folder_of_another_architecture(train: CLI) -> None:
    train(code=0)
    assert "another architecture: arch is 'apt' there and 'groot' here" in train("--arch", "groot")


def test_a_full_disk_while_saving(train: CLI, tmp_path: Path) -> None:
    train(code=0)
    good = stage_checkpoint(tmp_path / "run", 2)
    before = (good / "optimizer.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        message = train("--steps", "4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step 4 could not be saved" in message
    assert "step_0000002 is intact. Free some space" in message
    assert (good / "optimizer.safetensors").read_bytes() == before


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched_by_a_pickle"),))


def test_checkpoints_that_cannot_be_a_policy(
    cli: CLI, train: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["run", "--suite", "rigid_pick_place", "--limit", "1", "--workers", "0", "--out", tmp_path / "r"]
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    message = cli(*run, "--policy", "apt", tmp_path / "evil.pt")
    assert "evil.pt was refused: it holds more than tensors" in message
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    cli(*run, "--policy", "apt", tmp_path / "plain.pt")
    assert not (tmp_path / "touched_by_a_pickle").exists()
    assert "No checkpoint at" in cli(*run, "--policy", "apt", "./nowhere")
    train(code=0)
    folder = stage_checkpoint(tmp_path / "run", 2)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"width": 32,\n    "heads"', '"width": 64,\n    "heads"')
    )
    assert "It belongs to another architecture, stage or VLM" in cli(*run, "--policy", "apt", folder)
    (folder / "config.json").write_text(text)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is missing or damaged" in cli(*run, "--policy", "apt", folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("arch", "steps", "lr"), [("apt", 1200, 2e-3), ("pi", 1200, 2e-3), ("groot", 1200, 2e-3)]
)
def test_every_architecture_overfits_32_samples_to_5_mm(
    cli: CLI, config: Path, cache: Path, tmp_path: Path, arch: str, steps: int, lr: float
) -> None:
    write_hdf5(tmp_path / "d.hdf5", [demonstration(i, steps=16) for i in range(2)])
    tiny = yaml.safe_load(config.read_text())
    tiny["expert"] |= {"width": 64, "heads": 4, "prediction": "sample", "position_scale": 8, "proprio": True}
    tiny["data"] |= {"held_out": 0.0, "drop_noops": False, "data": [str(tmp_path / "d.hdf5")]}
    tiny["train"] |= {"batch": 32, "lr": lr, "schedule": "cosine", "weight_decay": 0.0, "warmup": 50}
    tiny["train"] |= {"log_every": 100, "save_every": steps}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny))
    words = ["train", "--config", tmp_path / "c.yaml", "--arch", arch, "--no-two-stage", "--steps", steps]
    cli(*words, "--device", "cpu", "--out", tmp_path / "run", "--cache", cache, code=0)

    model = checkpoint.load(tmp_path / "run" / "policy")
    recipe = load_recipe(str(tmp_path / "run" / "config.yaml"))
    stream, _ = open_samples(recipe.data, 8, 0, model.vlm.image_size, cache)
    assert stream.rows == 32
    numbers = range(200)  # every sample a few times
    picks = stream.pick(numbers)
    batch = stream.batch(numbers, picks)
    features = model.features(prepare(model, stream, picks))  # type: ignore[arg-type]
    noise = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0))
    found = model.expert.sample(features, batch.robot, noise)
    poses, wanted = (
        decode_chunk(code, batch.robot.ee_pose, batch.robot.ref_pose)[0] for code in (found, batch.target)
    )
    error = 1000 * (poses - wanted)[..., :3, 3].norm(dim=-1).mean().item()
    print(f"{arch}: mean chunk error {error:.2f} mm")
    assert error < 5
    assert len(np.unique(picks.rows)) == 32
