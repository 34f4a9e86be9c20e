"""The policy `lerobot` with a stand-in of lerobot's functions; `test_lerobot_genuine.py` has lerobot itself."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.policies.canaries import stored_observation
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.lerobot import FILES, LeRobotPolicy
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import load_suite
from tests.policies.remote.episodes import Expert, expert_of

IMAGES = "observation.images."
CONFIG: dict[str, Any] = {
    "type": "act",
    "n_obs_steps": 1,
    "chunk_size": 16,
    "n_action_steps": 8,
    "images": ["image", "image2"],
    "state": 8,
    "action": 7,
    "answers": 16,
}
SPEC = load_suite("rigid_pick_place").select(["so"], ["0"], episodes=1)[0]


class Config(types.SimpleNamespace):
    device = "cuda"

    @classmethod
    def from_pretrained(cls, folder: Path) -> Config:
        found = cls(**json.loads((folder / "config.json").read_text()))
        shape = types.SimpleNamespace
        found.image_features = {IMAGES + name: shape(shape=(3, 256, 256)) for name in found.images}
        found.input_features = {**found.image_features, "observation.state": shape(shape=(found.state,))}
        found.output_features = {"action": shape(shape=(found.action,))}
        return found


class Processor:
    """lerobot's: tokens of the task, and a scale of state and actions."""

    def __init__(self, call: Callable[[Any], Any], rename_map: dict[str, str] | None = None) -> None:
        self.call, self.steps = call, [types.SimpleNamespace(rename_map=rename_map or {})]

    def __call__(self, value: Any) -> Any:
        return self.call(value)


class Network:
    """lerobot's policy. Its actions are half of the environment's, with noise from torch's own generator."""

    def __init__(self, config: Config) -> None:
        self.config, self.resets = config, 0
        self.batches: list[dict[str, Any]] = []
        self.expert: Callable[[dict[str, Any]], np.ndarray] | None = None

    @classmethod
    def from_pretrained(cls, folder: Path, config: Config, strict: bool) -> Network:
        print((folder / "printed").read_text() if (folder / "printed").exists() else "")
        assert strict, "a missing tensor must be an error"
        return cls(config)

    def to(self, device: str) -> Network:
        return self

    def eval(self) -> Network:
        return self

    def reset(self) -> None:
        self.resets += 1

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        assert batch["normalised"], "lerobot's preprocessor must run first"
        assert not torch.is_grad_enabled()
        self.batches.append(batch)
        if self.expert is None:
            return torch.randn(1, self.config.answers, 7)
        return torch.from_numpy(self.expert(batch) / 2)[None]


def prepare(
    observation: dict[str, Any], device: torch.device, task: str | None = None, robot_type: str | None = None
) -> dict[str, Any]:
    """lerobot's `prepare_observation_for_inference`."""
    found: dict[str, Any] = {"task": task}
    for name, value in observation.items():
        tensor = torch.from_numpy(value)
        if "image" in name:
            tensor = (tensor.float() / 255).permute(2, 0, 1)
        found[name] = tensor[None].to(device)
    return found


@pytest.fixture(autouse=True)
def lerobot(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins of lerobot's modules. `made`: what they were called with."""
    made: dict[str, Any] = {"rename_map": None}

    def processors(config: Config, path: str, preprocessor_overrides: Any) -> tuple[Processor, Processor]:
        made["processors"] = (path, preprocessor_overrides)
        before = Processor(
            lambda b: {**b, "normalised": True, "state": b["observation.state"], "tokens": b["task"]},
            made["rename_map"],
        )
        return before, Processor(lambda chunk: 2 * chunk.double())

    contents: dict[str, dict[str, Any]] = {
        "lerobot": {"__version__": "0.6.1"},
        "lerobot.configs": {"PreTrainedConfig": Config},
        "lerobot.policies": {},
        "lerobot.policies.factory": {
            "get_policy_class": lambda kind: Network,
            "make_pre_post_processors": processors,
        },
        "lerobot.policies.utils": {"prepare_observation_for_inference": prepare},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def loaded(folder: Path | str, **args: Any) -> GuardedPolicy:
    return find_policy("lerobot", {"device": "cpu", **args}, str(folder)).load()


def network(policy: GuardedPolicy) -> Network:
    found = policy.policy
    assert isinstance(found, LeRobotPolicy)
    assert isinstance(found.policy, Network)
    return found.policy


def observation(step: int = 0) -> Observation:
    return dataclasses.replace(stored_observation(SPEC), step=step)


def test_the_interface_is_the_checkpoints(tmp_path: Path, lerobot: dict[str, Any]) -> None:
    policy = loaded(checkpoint(tmp_path))
    spec = policy.spec
    assert (spec.cameras, spec.horizon, spec.execute) == ((AGENTVIEW, WRIST), 16, 8)
    assert (spec.resources.placement, spec.resources.max_batch, spec.resources.num_gpus) == ("actor", 1, 0)
    assert spec.provenance.about == {"lerobot": {"version": "0.6.1", "type": "act"}}
    assert lerobot["processors"] == (str(tmp_path), {"device_processor": {"device": "cpu"}})
    assert network(policy).config.device == "cpu"
    policy.reset([SPEC])
    assert network(policy).resets == 1


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast"])
def test_ten_actions_of_a_pi_policy_are_executed(kind: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, type=kind, n_action_steps=16)
    assert loaded(folder).spec.execute == 10
    assert loaded(folder, execute=5).spec.execute == 5
    with pytest.raises(UserError, match=r"execute=17; the policy's chunks have 16 actions"):
        loaded(folder, execute=17)


def test_noise_is_that_of_the_decision_and_other_draws_stay_as_they_are(tmp_path: Path) -> None:
    policy, here = loaded(checkpoint(tmp_path)), observation()
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    (first,) = policy.act([here])
    assert torch.equal(torch.randn(3), expected)
    first_again, later = policy.act([dataclasses.replace(here, episode="elsewhere"), observation(8)])
    np.testing.assert_array_equal(first_again, first)
    np.testing.assert_array_equal(policy.act([observation(8)])[0], later)
    assert not np.array_equal(later, first)
    assert not np.array_equal(loaded(tmp_path, seed=1).act([here])[0], first)


def test_the_images_are_found_by_the_names_that_the_preprocessor_expects(
    tmp_path: Path, lerobot: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path, images=["base_0_rgb", "left_wrist_0_rgb", "empty_camera_0"])
    with pytest.raises(UserError, match=r"The images of .* are base_0_rgb, left_wrist_0_rgb, empty_camera_0"):
        loaded(folder)
    policy = loaded(folder, images={"base_0_rgb": WRIST, "left_wrist_0_rgb": None})
    policy.act([observation()])
    assert policy.spec.cameras == (WRIST,)
    assert {k for k in network(policy).batches[-1] if k.startswith(IMAGES)} == {f"{IMAGES}base_0_rgb"}
    lerobot["rename_map"] = {
        f"{IMAGES}image": f"{IMAGES}base_0_rgb",
        f"{IMAGES}image2": f"{IMAGES}left_wrist_0_rgb",
    }
    policy = loaded(folder)
    policy.act([observation()])
    assert {k for k in network(policy).batches[-1] if k.startswith(IMAGES)} == {
        f"{IMAGES}image",
        f"{IMAGES}image2",
    }
    assert loaded(checkpoint(tmp_path, images=["image", "wrist_image"])).spec.cameras == (AGENTVIEW, WRIST)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"image": "front"}, "the camera 'front'; there are agentview and wrist"),
        ({"image": None, "image2": None}, "gets no image"),
        ({"images.image": "agentview"}, "The images of .* are image, image2"),
        ("agentview", "images is 'agentview'; it must be of type Mapping"),
    ],
)
def test_a_wrong_assignment_of_images_is_an_error(images: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        loaded(checkpoint(tmp_path), images=images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "xvla"}, "type 'xvla', which apt-bench cannot run. It predicts absolute poses"),
        ({"type": "diffusion", "n_obs_steps": 2}, "observations of the last 2 control steps"),
        ({"temporal_ensemble_coeff": 0.01}, "temporal ensembling"),
        ({"state": 7}, r"observation.state has the shape \(7,\); LIBERO's is \(8,\)"),
        ({"answers": 4}, r"chunk of shape \(4, 7\) instead of \(n, 7\), n from 8 to 16"),
        ({"action": 32}, r"action has the shape \(32,\); LIBERO's is \(7,\)"),
    ],
)
def test_what_can_never_work_is_refused_with_its_reason(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        loaded(checkpoint(tmp_path, **changes))


def test_weights_that_lerobot_did_not_load_are_an_error(tmp_path: Path) -> None:
    """lerobot's pi policies print this, and then run with random weights."""
    (checkpoint(tmp_path) / "printed").write_text(
        "Remapped 3\nWarning: Could not load state dict: Missing key(s)"
    )
    with pytest.raises(UserError, match=r"did not load the weights: Warning: .* Missing key\(s\)"):
        loaded(tmp_path)


def test_without_lerobot_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(
        UserError, match=r"Python 3\.1.* needs Python 3\.12 .* pip install 'apt-bench\[lerobot\]'"
    ):
        loaded(checkpoint(tmp_path))


def test_the_hub_is_asked_for_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, revision: str | None) -> str:
        asked.append((repository, revision))
        if repository == "org/nothing":
            raise OSError("offline")
        return str(checkpoint(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert loaded("org/policy@v0.4").spec.provenance.weights == "org/policy@v0.4"
    loaded("org/policy")
    assert {("org/policy", "v0.4"), ("org/policy", None)} == set(asked)
    with pytest.raises(
        UserError, match=r"'org/nothing' at revision 'main' is no folder here and could not be"
    ):
        loaded("org/nothing@main")
    with pytest.raises(UserError, match="No lerobot checkpoint at 'policy'"):
        loaded("policy")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks config\.json, model\.safetensors, policy_preprocessor"):
        loaded(tmp_path)
    checkpoint(tmp_path / "pretrained_model")
    with pytest.raises(UserError, match=r"is a training folder: give .*/pretrained_model"):
        loaded(tmp_path)
    (tmp_path / "pretrained_model/policy_postprocessor.json").unlink()
    with pytest.raises(UserError, match=r"lacks policy_postprocessor\.json.*migrate_policy_normalization"):
        loaded(tmp_path / "pretrained_model")


def test_the_digest_is_that_of_weights_and_processors(tmp_path: Path) -> None:
    ref = find_policy("lerobot", {"device": "cpu"}, str(checkpoint(tmp_path)))
    digests = [ref.digest()]
    assert ref.load().spec.provenance.weights_sha256 == digests[0]
    (tmp_path / "train_config.json").write_text("another")
    assert ref.digest() == digests[0]
    for name in (*FILES[1:], "policy_preprocessor_step_3.safetensors"):
        (tmp_path / name).write_text("another")
        digests.append(ref.digest())
    assert len(set(digests)) == len(digests)


@pytest.fixture(scope="module")
def expert() -> Iterator[Expert]:
    env = TabletopEnv()
    yield expert_of(env, load_suite("rigid_pick_place").select(["so"], [], 3))
    env.close()


class Judge:
    """Answers the expert's actions as long as every input is right, then actions that do nothing."""

    def __init__(self, expert: Expert) -> None:
        self.expert, self.number, self.wrong = expert, 0, ""
        self.expected = expert.observations(8)  # runs in the same environment: before the episode

    def __call__(self, batch: dict[str, Any]) -> np.ndarray:
        expected = self.expected[self.number]
        pictures = {AGENTVIEW: batch[f"{IMAGES}image"], WRIST: batch[f"{IMAGES}image2"]}
        right = {
            name: np.array_equal(
                (255 * one[0].permute(1, 2, 0)).round().byte().numpy(), expected.images[name]
            )
            for name, one in pictures.items()
        }
        right["state"] = np.array_equal(batch["state"][0].numpy(), expected.state)
        right["prompt"] = batch["tokens"] == self.expert.spec.prompt
        self.wrong = self.wrong or next((name for name, good in right.items() if not good), "")
        rest = self.expert.actions[8 * self.number :][:16]
        self.number += 1
        chunk = np.tile([0.0, 0, 0, 0, 0, 0, -1], (16, 1))
        if not self.wrong:
            chunk[: len(rest)] = rest
        return chunk


def outcome(expert: Expert, folder: Path, change: Callable[[Observation], Observation]) -> tuple[str, str]:
    """The outcome of an episode in which the network answers the expert's actions, and the first wrong input."""
    policy = loaded(checkpoint(folder))
    judge = network(policy).expert = Judge(expert)
    own: Any = policy.policy
    right = own._chunk
    own._chunk = lambda seen: right(change(seen))
    spec = dataclasses.replace(expert.spec, max_steps=len(expert.actions))
    record = run_episode(expert.env, LocalClient(policy), spec, policy.spec, policy.spec.execute).record
    assert record.error is None
    return str(record.outcome), judge.wrong


def test_an_episode_succeeds(tmp_path: Path, expert: Expert) -> None:
    assert outcome(expert, tmp_path, lambda seen: seen) == ("success", "")


@pytest.mark.parametrize(
    ("what", "change"),
    [
        (
            "agentview",
            lambda o: dataclasses.replace(o, images={**o.images, AGENTVIEW: o.images[AGENTVIEW][::-1]}),
        ),
        ("wrist", lambda o: dataclasses.replace(o, images={**o.images, WRIST: o.images[AGENTVIEW]})),
        ("prompt", lambda o: dataclasses.replace(o, instruction="pick up the black bowl")),
        ("state", lambda o: dataclasses.replace(o, state=o.state * np.float32([1, 1, 1, -1, -1, -1, 1, 1]))),
    ],
)
def test_with_one_wrong_input_it_fails(
    what: str, change: Callable[[Observation], Observation], tmp_path: Path, expert: Expert
) -> None:
    found, wrong = outcome(expert, tmp_path, change)
    assert (found != "success", wrong) == (True, what)
