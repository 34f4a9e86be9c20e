"""Samples: what is learned from a demonstration, in which order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scripted import SIZE, demonstration, write

from apt_bench.core.errors import UserError
from apt_bench.demos.demonstration import CameraTrack
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.envs.base import Camera, Observation
from apt_bench.models.action_codes import decode_chunk
from apt_bench.models.config import ExpertConfig
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.models.vla import VLA, VLMSpec, build_expert
from apt_bench.policies.apt import AptPolicy
from apt_bench.training.config import AugmentConfig, DataConfig
from apt_bench.training.samples.augment import augment, view_order
from apt_bench.training.samples.episodes import idle, read_episode
from apt_bench.training.samples.stream import Samples, open_samples

CONFIG = DataConfig(cameras=("agentview",), held_out=0.0, augment=AugmentConfig(enabled=False))


def samples(cache: Path, *paths: Path, horizon: int = 8, seed: int = 0, **change: object) -> Samples:
    config = dataclasses.replace(CONFIG, data=tuple(map(str, paths)), **change)  # type: ignore[arg-type]
    return open_samples(config, horizon, seed, (64, 64), cache)[0]


def test_a_sample_depends_on_its_number_alone(data: Path, cache: Path) -> None:
    stream = samples(cache, data)
    many, one = stream.pick(range(40, 48)), stream.pick([45])
    assert many.rows[5] == one.rows[0]
    all_at_once, alone = stream.batch(range(40, 48), many), stream.batch([45], one)
    for name in ("target", "rotation"):
        assert torch.equal(getattr(all_at_once, name)[5:6], getattr(alone, name)), name
    assert torch.equal(all_at_once.robot.ref_pose[5:6], alone.robot.ref_pose)
    other = samples(cache, data, seed=1)
    assert not np.array_equal(stream.pick(range(50)).rows, other.pick(range(50)).rows)


def test_the_reference_camera_is_drawn_or_given(data: Path, cache: Path) -> None:
    stream = samples(cache, data, reference="agentview")
    picks = stream.pick(range(8))
    batch = stream.batch(range(8), picks)
    for pose, episode, step in zip(batch.robot.ref_pose, picks.episodes, picks.steps, strict=True):
        np.testing.assert_allclose(pose[0], episode.camera_pose[step, 0], atol=1e-6)
    with pytest.raises(UserError, match="not among"):
        DataConfig(cameras=("agentview",), reference="wrist")


@pytest.mark.parametrize(("stride", "image_every"), [(1, 1), (2, 3)])
def test_targets_are_the_commanded_poses_and_the_last_repeats(
    data: Path, cache: Path, stride: int, image_every: int
) -> None:
    stream = samples(cache, data, stride=stride, image_every=image_every)
    numbers = range(60)
    picks = stream.pick(numbers)
    batch = stream.batch(numbers, picks)
    pose, openness = decode_chunk(
        batch.target.double(), batch.robot.ee_pose.double(), batch.robot.ref_pose.double()
    )
    ended = 0
    for i, episode in enumerate(picks.episodes):
        demo = demonstration(int(episode.name.split("init")[1].split("/")[0]))
        steps = picks.steps[i] + stride * np.arange(8)
        ended += int(steps[-1] >= len(episode))
        steps = episode.kept[np.minimum(steps, len(episode) - 1)]
        np.testing.assert_allclose(pose[i, 0], demo.commanded[steps], atol=1e-5)
        np.testing.assert_allclose(openness[i, 0], demo.gripper_target[steps], atol=1e-6)
        shown = stream.images(picks.rows[i : i + 1], picks.versions[i : i + 1], np.ones((1, 1), bool))[0][0]
        np.testing.assert_array_equal(shown, demo.images["agentview"][episode.kept[picks.steps[i]]])
        assert picks.steps[i] % image_every == 0
    assert ended > 5


def test_noops_go_but_not_the_wait_for_the_gripper() -> None:
    demo = demonstration(0)
    actions, state = demo.actions.copy(), demo.state.copy()
    actions[3, :6] = 0  # a pause on the way
    demo = dataclasses.replace(demo, actions=actions, state=state)
    assert demo.noop[3]
    assert idle(demo)[3]
    closing = slice(len(demo) - 3, len(demo) - 1)
    assert demo.noop[closing].all()
    assert not idle(demo)[closing].any()
    assert 3 not in read_episode(demo, CONFIG).kept


def test_weights_set_how_often_a_dataset_is_drawn(data: Path, cache: Path, tmp_path: Path) -> None:
    small = write(tmp_path / "few.hdf5", 2, first=100)
    stream = samples(cache, data, small, weights=(1.0, 3.0))
    first = len(stream.datasets[0].frames.images)
    share = float((stream.pick(range(800)).rows >= first).mean())
    assert 0.70 < share < 0.80  # three standard errors about 0.75


def test_held_out_demonstrations_are_never_trained_on(data: Path, cache: Path) -> None:
    config = dataclasses.replace(CONFIG, data=(str(data),), held_out=0.2)
    train, held = open_samples(config, 8, 0, (64, 64), cache)
    assert held is not None
    names = [{e.name for d in part.datasets for e in d.episodes} for part in (train, held)]
    assert (len(names[0]), len(names[1])) == (16, 4)
    assert not names[0] & names[1]


def test_augmented_versions_are_reproducible_and_differ() -> None:
    images = np.stack([demonstration(0).images["agentview"][0]] * 2)
    config = AugmentConfig(copies=3)
    versions = [augment(images, config, 7, v) for v in range(3)]
    np.testing.assert_array_equal(versions[1], augment(images, config, 7, 1))
    assert all(np.abs(v.astype(int) - images).mean() > 1 for v in versions)
    assert not np.array_equal(versions[0], versions[1])
    orders = {tuple(view_order(config, frame, 0, 2)) for frame in range(20)}
    assert orders == {(0, 1), (1, 0)}


def test_a_mirror_image_reaches_the_network_as_the_plain_one(cache: Path, tmp_path: Path) -> None:
    """LIBERO's images are mirrored, with a negative focal length: training data and the policy both turn them back, so
    the same scene gives the same pixels, intrinsics and codes."""
    plain = demonstration(0)
    (track,) = plain.cameras.values()
    flip = np.array([[-1, 0, SIZE - 1], [0, 1, 0], [0, 0, 1.0]])
    mirrored = dataclasses.replace(
        plain,
        images={"agentview": plain.images["agentview"][:, :, ::-1]},
        cameras={"agentview": CameraTrack(flip @ track.K, track.pose)},
    )
    assert mirrored.cameras["agentview"].K[0, 0] < 0
    write_hdf5(tmp_path / "plain.hdf5", [plain])
    write_hdf5(tmp_path / "mirrored.hdf5", [mirrored])
    streams = [samples(cache, tmp_path / f"{name}.hdf5") for name in ("plain", "mirrored")]
    picks = streams[0].pick(range(6))
    shown = [s.images(picks.rows, picks.versions, np.ones((6, 1), bool)) for s in streams]
    np.testing.assert_array_equal(np.array(shown[0]), np.array(shown[1]))
    batches = [s.batch(range(6), s.pick(range(6))) for s in streams]
    assert torch.equal(batches[0].target, batches[1].target)
    torch.testing.assert_close(batches[0].robot.intrinsics, batches[1].robot.intrinsics)
    # A point of the scene: in both, and in what the policy makes of either observation, at the same pixel.
    vlm = MiniVLM(MiniVLMConfig(width=32, heads=2, layers=2, image_size=(SIZE, SIZE)))
    expert = build_expert(ExpertConfig(vlm=vlm.shape, width=32, heads=2, depth=2, horizon=8))
    policy = AptPolicy("none", model=VLA(vlm, expert, VLMSpec("mini")), cameras=["agentview"], device="cpu")
    step = int(picks.episodes[0].kept[picks.steps[0]])
    for demo in (plain, mirrored):
        image, camera = demo.images["agentview"][step], demo.cameras["agentview"]
        at = camera.K @ np.linalg.inv(camera.pose[step])[:3] @ [*demo.state[step, :3], 1]
        u, v = (at[:2] / at[2]).round().astype(int)
        assert image[v, u].min() > 200  # the white dot that the hand is
        seen = {"agentview": Camera(camera.K, camera.pose[step])}
        obs = Observation({"agentview": image}, demo.state[step], "go", cameras=seen)
        prompt, robot = policy.inputs([obs], [0])
        pixels = ((prompt.pixels["images"][0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        np.testing.assert_array_equal(pixels, shown[0][0][0])
        for name in ("intrinsics", "camera_pose", "ee_pose", "ref_pose", "openness"):
            torch.testing.assert_close(getattr(robot, name)[0], getattr(batches[0].robot, name)[0])


def test_images_are_scaled_to_the_vlm_and_intrinsics_do_not_notice(cache: Path, tmp_path: Path) -> None:
    big = samples(cache, write(tmp_path / "big.hdf5", 2, size=128))
    small = samples(cache, write(tmp_path / "small.hdf5", 2, size=64))
    assert big.datasets[0].frames.images.shape[2:4] == (64, 64)
    np.testing.assert_allclose(big.datasets[0].episodes[0].K, small.datasets[0].episodes[0].K, atol=1e-9)


def _missing(tmp: Path) -> Path:
    return tmp / "nowhere.hdf5"


def _truncated(tmp: Path) -> Path:
    path = write(tmp / "cut.hdf5", 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _two_sizes(tmp: Path) -> Path:
    write(tmp / "both" / "a.hdf5", 1, size=64)
    write(tmp / "both" / "b.hdf5", 1, first=1, size=32)
    return tmp / "both"


def _no_calibration(tmp: Path) -> Path:
    path = tmp / "blind.hdf5"
    write_hdf5(path, [dataclasses.replace(demonstration(0), cameras={})])
    return path


def _not_finite(tmp: Path) -> Path:
    path = write(tmp / "nan.hdf5", 1)
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs/ee_pos"][3] = np.nan
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "No file or folder .*nowhere.hdf5"),
        (_truncated, "cut.hdf5 is not a complete HDF5 file"),
        (_two_sizes, "are 32x32 pixels, those before it 64x64"),
        (_no_calibration, "no calibration"),
        (_not_finite, "NaN or infinity"),
    ],
)
def test_bad_data_is_named(make, says: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        samples(cache, make(tmp_path))


def test_a_hub_name_without_a_network_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match="neither a local file or folder nor a dataset that can be downloaded"
    ):
        samples(cache, Path("nobody/no-such-demonstrations"))


def test_a_camera_that_is_not_there(data: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"no calibration .* of the cameras overhead"):
        samples(cache, data, cameras=("overhead",))
