"""A mixture's weights and names stay with their data, whatever else is empty; unusable data are reported."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripted import demonstration, write

from apt_bench.core.errors import UserError
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.demos.lerobot_writer import LeRobotWriter
from apt_bench.training.config import AugmentConfig, DataConfig
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.sources import find_all
from apt_bench.training.samples.stream import open_samples
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe

CONFIG = DataConfig(cameras=("agentview",), held_out=0.0, augment=AugmentConfig(enabled=False))


def failures(path: Path) -> Path:
    demo = demonstration(50)
    write_hdf5(path, [dataclasses.replace(demo, info=dataclasses.replace(demo.info, success=False))])
    return path


def mixture(tmp_path: Path) -> tuple[str, ...]:
    paths = failures(tmp_path / "a.hdf5"), write(tmp_path / "b.hdf5", 2), write(tmp_path / "c.hdf5", 3, 10)
    return tuple(map(str, paths))


def test_an_empty_dataset_takes_its_weight_with_it(cache: Path, tmp_path: Path) -> None:
    said: list[str] = []
    data = mixture(tmp_path)
    config = dataclasses.replace(CONFIG, data=data, weights=(8.0, 1.0, 1.0))
    stream, _ = open_samples(config, 8, 0, (64, 64), cache, say=said.append)
    assert [(d.name, d.weight) for d in stream.datasets] == [(data[1], 1.0), (data[2], 1.0)]
    first = len(stream.datasets[0].frames.images)
    share = float((stream.pick(range(1000)).rows < first).mean())
    assert 0.45 < share < 0.55  # three standard errors about 0.5
    assert said == [
        f"{data[0]} has no successful demonstration. It is left out of the mixture, together with its weight "
        "8."
    ]


def test_a_checkpoint_names_the_data_it_was_trained_on(config: Path, cache: Path, tmp_path: Path) -> None:
    data = mixture(tmp_path)
    over = {"two_stage": False, "stage2": {"steps": 1}, "data": {"data": list(data), "weights": [8, 1, 2]}}
    policy = run_recipe(load_recipe(str(config), over), Session(tmp_path / "run", cache, Report(None)))
    said = json.loads((policy / "provenance.json").read_text())["data"]
    assert [(d["name"], d["episodes"], d["weight"]) for d in said] == [(data[1], 1, 1.0), (data[2], 2, 2.0)]


def test_nothing_but_empty_data_is_an_error(cache: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, data=(str(failures(tmp_path / "a.hdf5")),))
    with pytest.raises(UserError, match="no usable demonstration to train on"):
        open_samples(config, 8, 0, (64, 64), cache)


def test_a_reference_camera_without_calibration_is_an_error(cache: Path, tmp_path: Path) -> None:
    """Else its pose would be the world's, and targets would be coded in other axes than meant."""
    path = write(tmp_path / "d.hdf5", 1)
    config = dataclasses.replace(CONFIG, data=(str(path),), cameras=("agentview", "wrist"), reference="wrist")
    with pytest.raises(UserError, match=r"init0/.* has no calibration .* camera 'wrist'.*data\.reference"):
        open_samples(config, 8, 0, (64, 64), cache)
    open_samples(dataclasses.replace(config, reference="agentview"), 8, 0, (64, 64), cache)


def test_a_demonstration_without_a_decision_is_left_out_and_counted(cache: Path, tmp_path: Path) -> None:
    """Images at every fifth step, and every fifth step is a no-op: no decision is left."""
    idle = demonstration(0)
    actions = idle.actions.copy()
    actions[::5, :6], actions[:, 6] = 0, -1
    state = idle.state.copy()
    state[:, 6:] = [0.04, -0.04]
    info = dataclasses.replace(idle.info, image_every=5)
    idle = dataclasses.replace(idle, actions=actions, state=state, info=info)
    write_hdf5(tmp_path / "d.hdf5", [idle, demonstration(1), demonstration(2)])
    said: list[str] = []
    config = dataclasses.replace(CONFIG, data=(str(tmp_path / "d.hdf5"),))
    stream, _ = open_samples(config, 8, 0, (64, 64), cache, say=said.append)
    (dataset,) = stream.datasets
    assert len(dataset.episodes) == 2
    assert all(len(e.decisions) for e in dataset.episodes)
    assert said == [
        f"{tmp_path / 'd.hdf5'}: 1 of 3 demonstrations are left out: every step with an image is a no-op."
    ]
    picks = stream.pick(range(50))  # and images still belong to their episodes
    for row, episode, step in zip(picks.rows, picks.episodes, picks.steps, strict=True):
        demo = demonstration(int(episode.name.split("init")[1].split("/")[0]))
        np.testing.assert_array_equal(
            dataset.frames.images[row, 0], demo.images["agentview"][episode.kept[step]]
        )
    write_hdf5(tmp_path / "e.hdf5", [idle])
    with pytest.raises(UserError, match="no usable demonstration to train on"):
        open_samples(dataclasses.replace(config, data=(str(tmp_path / "e.hdf5"),)), 8, 0, (64, 64), cache)


def test_data_given_twice_are_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.data lists 'a' twice"):
        DataConfig(data=("a", "b", "a"))
    with pytest.raises(UserError, match=r"data\.cameras lists 'wrist' twice"):
        DataConfig(cameras=("wrist", "wrist"))


def test_data_given_twice_under_two_names_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in (f"{tmp_path}/x/../a", f"{tmp_path}/link"):
        with pytest.raises(UserError, match="are the same"):
            find_all([f"{tmp_path}/a", other])
    assert find_all([f"{tmp_path}/a", f"{tmp_path}/b"]) == [tmp_path / "a", tmp_path / "b"]


def test_a_folder_of_lerobot_datasets_is_trained_on(
    cli: Callable[..., str], config: Path, cache: Path, tmp_path: Path
) -> None:
    for n, name in enumerate(("a", "b")):
        writer = LeRobotWriter(tmp_path / "sets" / name)
        for i in range(2):
            writer.add(demonstration(10 * n + i))
        writer.close()
    words = [
        "--config",
        config,
        "--data",
        tmp_path / "sets",
        "--no-two-stage",
        "--steps",
        1,
        "--device",
        "cpu",
    ]
    out = cli("train", *words, "--out", tmp_path / "run", "--cache", cache, code=0)
    assert "3 demonstrations with" in out
