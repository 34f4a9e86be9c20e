"""The policy `lerobot` against lerobot itself. `scripts/lerobot.sh` makes the environment and runs this file in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

pytest.importorskip("lerobot", reason="bash scripts/lerobot.sh makes the environment with lerobot")

from lerobot.configs import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.processor.env_processor import LiberoProcessorStep
from safetensors.torch import load_file, save_file
from tiny_lerobot import save

import apt_bench
from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import noise_seed
from apt_bench.policies.canaries import stored_observation
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.lerobot import FILES
from apt_bench.policies.registry import find_policy
from apt_bench.suites import load_suite

KINDS = ("act", "smolvla")
SPEC = load_suite("libero_pro").select(["object_task"], ["0"], episodes=1)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind) / "pretrained_model", kind) for kind in KINDS}


def loaded(folder: Path, **args: Any) -> GuardedPolicy:
    return find_policy("lerobot", {"device": "cpu", **args}, str(folder)).load()


def observation(step: int = 0) -> Observation:
    return dataclasses.replace(stored_observation(SPEC), step=step)


def raw(seen: Observation) -> dict[str, Any]:
    """The observation as lerobot's environment of LIBERO returns it: rotated images, nested state."""
    quaternion = Rotation.from_rotvec(seen.state[3:6]).as_quat()
    robot = {
        "eef": {"pos": seen.state[None, :3], "quat": quaternion[None].astype(np.float32)},
        "gripper": {"qpos": seen.state[None, 6:]},
    }
    names = {"image": AGENTVIEW, "image2": WRIST}
    pixels = {name: seen.images[camera][None, ::-1, ::-1].copy() for name, camera in names.items()}
    return {"pixels": pixels, "robot_state": robot}


def evaluated(folder: Path, seen: Observation, processed: tuple[bool, bool] = (True, True)) -> np.ndarray:
    """What lerobot's own evaluation executes after this observation: `select_action` until its chunk is used up."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    before, after = make_pre_post_processors(config, str(folder))
    batch = LiberoProcessorStep().observation(preprocess_observation(raw(seen)))
    batch["observation.state"] = torch.from_numpy(seen.state)[None]  # without the rounding of the quaternion
    batch["task"] = [seen.instruction]
    if processed[0]:
        batch = before(batch)
    torch.manual_seed(noise_seed(seen, 0))
    with torch.inference_mode():
        actions = [policy.select_action(dict(batch)) for _ in range(config.n_action_steps)]
    return np.stack([(after(a) if processed[1] else a)[0].numpy() for a in actions])


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_that_of_lerobots_own_evaluation(kind: str, folders: dict[str, Path]) -> None:
    policy, seen = loaded(folders[kind]), observation()
    policy.reset([SPEC])
    (chunk,) = policy.act([seen])
    assert chunk.shape == (10, 7)
    assert (policy.spec.horizon, policy.spec.execute) == (10, {"act": 8, "smolvla": 5}[kind])
    np.testing.assert_array_equal(
        chunk[: policy.spec.execute].astype(np.float32), evaluated(folders[kind], seen)
    )


@pytest.mark.parametrize("processed", [(False, True), (True, False)])
def test_without_a_processor_the_numbers_are_others(
    processed: tuple[bool, bool], folders: dict[str, Path]
) -> None:
    (chunk,) = loaded(folders["act"]).act([observation()])
    wrong = evaluated(folders["act"], observation(), processed)
    assert np.abs(chunk[: len(wrong)] - wrong).max() > 1e-3


def test_images_and_state_are_those_of_lerobots_environment() -> None:
    seen = observation()
    theirs = LiberoProcessorStep().observation(preprocess_observation(raw(seen)))
    for name, camera in (("image", AGENTVIEW), ("image2", WRIST)):
        image = 255 * theirs[f"observation.images.{name}"][0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image.round().astype(np.uint8), seen.images[camera])
    np.testing.assert_allclose(theirs["observation.state"][0], seen.state, atol=1e-5)


def test_noise_depends_on_scene_step_and_seed_alone(folders: dict[str, Path]) -> None:
    policy, here = loaded(folders["smolvla"]), observation()
    (first,) = policy.act([here])
    state = torch.random.get_rng_state()
    elsewhere = dataclasses.replace(here, episode="suite/other/task/init0/seed7")
    np.testing.assert_array_equal(policy.act([elsewhere])[0], first)
    assert torch.equal(torch.random.get_rng_state(), state)  # the harness's own draws are not changed
    for other in (observation(8), dataclasses.replace(here, noise_key="another")):
        assert not np.array_equal(policy.act([other])[0], first)
    assert not np.array_equal(loaded(folders["smolvla"], seed=1).act([here])[0], first)


def test_a_batch_gives_what_single_calls_give(folders: dict[str, Path]) -> None:
    policy = loaded(folders["smolvla"])
    several = [observation(), observation(8)]
    for one, alone in zip(policy.act(several), several, strict=True):
        np.testing.assert_array_equal(one, policy.act([alone])[0])


def test_the_answer_depends_on_the_instruction(folders: dict[str, Path]) -> None:
    policy, here = loaded(folders["smolvla"]), observation()
    other = dataclasses.replace(here, instruction="open the drawer")
    assert not np.array_equal(policy.act([here])[0], policy.act([other])[0])


def test_a_camera_of_another_name_must_be_assigned(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = save(tmp_path, "act", ("base_0_rgb", "left_wrist_0_rgb"))
    with pytest.raises(UserError, match=r"images=\{base_0_rgb: agentview\}"):
        loaded(folder)
    policy = loaded(folder, images={"base_0_rgb": AGENTVIEW, "left_wrist_0_rgb": WRIST})
    assert policy.spec.cameras == (AGENTVIEW, WRIST)
    swapped = loaded(folder, images={"base_0_rgb": WRIST, "left_wrist_0_rgb": AGENTVIEW})
    (right,), (wrong,) = policy.act([observation()]), swapped.act([observation()])
    assert not np.array_equal(right, wrong)


def test_missing_weights_are_an_error(tmp_path: Path, folders: dict[str, Path]) -> None:
    for path in folders["act"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.action_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"action_head\.weight"):
        loaded(tmp_path)


@pytest.mark.parametrize("kind", ["diffusion", "xvla"])
def test_policies_that_cannot_work_are_refused(kind: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    """lerobot writes the configuration; the other files are not reached."""
    make_policy_config(kind, device="cpu", push_to_hub=False)._save_pretrained(tmp_path)
    for name in FILES[1:]:
        (tmp_path / name).touch()
    reason = {"diffusion": "the last 2 control steps", "xvla": "absolute poses"}[kind]
    with pytest.raises(UserError, match=reason):
        loaded(tmp_path)


def test_an_episode_of_libero_pro(tmp_path: Path, folders: dict[str, Path]) -> None:
    run = apt_bench.evaluate(
        "lerobot", "libero_pro", "object_task", tasks="0", episodes=1, workers=0, out=tmp_path, progress=False,
        policy_args={"checkpoint": str(folders["act"]), "device": "cpu"},
    )  # fmt: skip
    (episode,) = run.episodes.to_dict("records")
    assert episode["outcome"] == "timeout"  # its weights are random
    assert episode["decisions"] == -(-episode["steps"] // 8)
    policy = run.info["policy"]
    assert policy["about"] == {"lerobot": {"version": "0.6.1", "type": "act"}}
    assert policy["weights_sha256"] == find_policy("lerobot", (), str(folders["act"])).digest()
