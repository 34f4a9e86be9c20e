"""The policy `apt`: from a checkpoint folder to control actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Camera, Observation, action_towards
from apt_bench.models import checkpoint
from apt_bench.models.config import ExpertConfig
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.models.vla import VLA, VLMSpec, build_expert
from apt_bench.policies.apt import AptPolicy, steps
from apt_bench.policies.preprocessing import shrink
from apt_bench.rollout.runner import RunOptions, run


def pose(rng: np.random.Generator) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix(), rng.normal(size=3) * 0.3
    return out


def observation(i: int, instruction: str = "move the cube") -> Observation:
    rng = np.random.default_rng(i)
    K = np.array([[70.0, 0, 31.5], [0, 70, 31.5], [0, 0, 1]])
    state = np.concatenate([rng.normal(size=3) * 0.2, [3.1, 0.1, 0.0], [0.03, -0.03]]).astype(np.float32)
    return Observation(
        images={c: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for c in (AGENTVIEW, WRIST)},
        state=state,
        instruction=instruction,
        episode=f"suite/cell/task/init{i}",
        step=3 * i,
        cameras={c: Camera(K, pose(rng)) for c in (AGENTVIEW, WRIST)},
    )


def network(folder: Path, stage: int = 2, provenance: dict | None = None) -> Path:
    torch.manual_seed(0)
    mini = MiniVLMConfig(width=32, heads=2, image_size=(64, 64))
    vlm = MiniVLM(mini)
    config = ExpertConfig(stage=stage, vlm=vlm.shape, width=32, heads=4, depth=4, horizon=6, proprio=True)
    expert = build_expert(config)
    for p in expert.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return checkpoint.save(folder, VLA(vlm, expert, VLMSpec(name="mini", mini=mini)), provenance or {})


@pytest.mark.parametrize("two_stage", [True, False])
def test_a_run_says_what_the_ablation_compares(tmp_path: Path, two_stage: bool) -> None:
    """From the checkpoint through run.json to the ticks of Table 2."""
    import json

    from runs import add, record, write_run

    from apt_bench.analysis.run import load_run
    from apt_bench.policies.registry import find_policy
    from apt_bench.reporting.headline_tables import suite_tables

    folder = network(tmp_path / "policy")
    provenance = {"recipe": {"two_stage": two_stage, "arch": "apt"}, "step": 500}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    ref = find_policy("apt", ("device=cpu",), str(folder))
    policy = json.loads(json.dumps(ref.identity(ref.load().spec)))
    path = write_run(tmp_path / "run", lambda c, t, i: True, {}, policy=policy)
    add(path, record("so", "lemon", 0, True, suite="rigid_pick_place"))
    run = load_run(path)
    ticks = {"knowledge_insulation": True, "two_stage": two_stage, "finetune_vlm": False}
    wanted = {"architecture": "APT", "step": 500, **ticks}
    assert {k: run.policy[k] for k in wanted} == wanted
    (table, *_) = suite_tables([run], "rigid_pick_place")
    (row,) = [r for r in table.rows if r.kind == "measured"]
    assert [row.values[k] for k in ticks] == ["✓" if on else "✗" for on in ticks.values()]
    bare = checkpoint.about(network(tmp_path / "bare"))
    assert bare == {"architecture": "APT", "knowledge_insulation": True, "finetune_vlm": False}


def test_a_batch_gives_what_singles_give_and_draws_are_seeded(tmp_path: Path) -> None:
    policy = AptPolicy(network(tmp_path / "policy"), device="cpu")
    assert policy.spec.execute == 3
    assert policy.spec.horizon == 6
    assert policy.spec.provenance.weights_sha256 == checkpoint.sha256(tmp_path / "policy")
    observations = [observation(i, text) for i, text in enumerate(["go", "move the red cube", "stop"])]
    together = policy.act(observations)
    for obs, chunk in zip(observations, together, strict=True):
        assert chunk.shape == (6, 7)
        assert np.isfinite(chunk).all()
        np.testing.assert_allclose(policy.act([obs])[0], chunk, atol=1e-3)
        assert set(chunk[:, 6]) <= {-1.0, 1.0}
    np.testing.assert_array_equal(policy.act(observations[:1])[0], policy.act(observations[:1])[0])
    quick = AptPolicy(tmp_path / "policy", device="cpu", sample_steps=2).act(observations[:1])[0]
    assert not np.allclose(quick, together[0], atol=1e-3)
    later = dataclasses.replace(observations[0], step=observations[0].step + 3)
    assert not np.allclose(policy.act([later])[0], together[0], atol=1e-3)


@pytest.mark.parametrize("stage", [1, 2])
def test_only_a_stage_2_policy_hears_the_instruction(tmp_path: Path, stage: int) -> None:
    policy = AptPolicy(network(tmp_path / "policy", stage), device="cpu")
    a, b = (
        policy.act([observation(0, text)])[0] for text in ("lift the cube", "put everything into the drawer")
    )
    assert np.array_equal(a, b) == (stage == 1)


def test_chunks_are_the_poses_at_the_control_rate() -> None:
    """Between two predictions the hand moves straight and turns evenly; the gripper opens above 0.8."""
    rng = np.random.default_rng(0)
    poses, openness = np.stack([pose(rng) for _ in range(3)]), np.array([1.0, 0.7, 0.9])
    plain, dense = steps(poses, openness), steps(poses, openness, stride=4)
    assert (plain.shape, dense.shape) == ((3, 7), (9, 7))
    np.testing.assert_allclose(dense[::4], plain, atol=1e-9)
    np.testing.assert_allclose(plain[:, :3], poses[:, :3, 3])
    np.testing.assert_allclose(Rotation.from_rotvec(plain[:, 3:6]).as_matrix(), poses[:, :3, :3], atol=1e-9)
    np.testing.assert_allclose(dense[2, :3], poses[:2, :3, 3].mean(0))
    whole, half = (
        Rotation.from_rotvec(dense[k, 3:6]) * Rotation.from_rotvec(dense[0, 3:6]).inv() for k in (4, 2)
    )
    np.testing.assert_allclose((half * half).as_matrix(), whole.as_matrix(), atol=1e-9)
    assert dense[:, 6].tolist() == [
        -1,
        -1,
        -1,
        1,
        1,
        1,
        1,
        -1,
        -1,
    ]  # openness 1, .925, .85, .775, .7, .75, .8, .85, .9


def test_the_network_is_fed_as_its_checkpoint_was_trained(tmp_path: Path) -> None:
    trained = {"cameras": [WRIST], "stride": 3, "image_size": [32, 32]}
    policy = AptPolicy(network(tmp_path / "policy", provenance=trained), device="cpu")
    assert policy.spec.cameras == (WRIST,)
    assert policy.spec.horizon == 16
    obs = observation(0)
    small = shrink(obs.images[WRIST], 32)
    half = obs.cameras[WRIST].K.copy()
    half[:2] /= 2
    half[:2, 2] -= 0.25
    same = dataclasses.replace(
        obs, images={WRIST: small}, cameras={WRIST: Camera(half, obs.cameras[WRIST].pose)}
    )
    (a, ra), (b, rb) = (policy.inputs([o], [0]) for o in (obs, same))
    assert torch.equal(a.pixels["images"], b.pixels["images"])
    torch.testing.assert_close(ra.intrinsics, rb.intrinsics)
    (chunk,) = policy.act([obs])
    assert chunk.shape == (16, 7)
    both = AptPolicy(tmp_path / "policy", device="cpu", cameras=[AGENTVIEW, WRIST])
    assert both.spec.cameras == (AGENTVIEW, WRIST)
    odd = dataclasses.replace(obs, images={WRIST: obs.images[WRIST][:48, :48]})
    with pytest.raises(UserError, match=r"trained on images of 32x32 pixels\. Those of 'wrist', 48x48"):
        policy.act([odd])


def test_bad_input_is_named(tmp_path: Path) -> None:
    folder = network(tmp_path / "policy")
    with pytest.raises(UserError, match="execute=7"):
        AptPolicy(folder, execute=7)
    with pytest.raises(UserError, match="sample_steps=7 must divide"):
        AptPolicy(folder, sample_steps=7)
    obs = observation(0)
    with pytest.raises(UserError, match="calibration of 'wrist'"):
        AptPolicy(folder, device="cpu").act(
            [dataclasses.replace(obs, cameras={AGENTVIEW: obs.cameras[AGENTVIEW]})]
        )


def test_a_pose_that_comes_from_another_process_becomes_an_action() -> None:
    target, state = np.arange(7) / 10, np.zeros(9)
    state[:6] = 0.1
    expected = action_towards(target, state)
    target.flags.writeable = False  # as arrays are that Ray delivers
    np.testing.assert_array_equal(action_towards(target, state), expected)


@pytest.mark.sim
def test_the_shipped_policy_does_what_it_is_told(tmp_path: Path) -> None:
    options = RunOptions.of(
        suite="rigid_pick_place",
        policy="apt_mini",
        cells=("so",),
        episodes=2,
        workers="0",
        out=tmp_path / "run",
    )
    records = run(options, Console(quiet=True)).records
    assert sum(r.outcome == "success" for r in records) >= 3  # of 4; 29 of 30 when it was shipped


@pytest.mark.parametrize("taps", [(1, 2), (0, 1, 2, 3)])
def test_taps_that_do_not_fit_are_refused(taps: tuple[int, ...]) -> None:
    shape = MiniVLM(MiniVLMConfig()).shape  # three layers
    with pytest.raises(UserError, match="from 0 to 2"):
        ExpertConfig(vlm=shape, width=96, heads=3, depth=4, taps=taps)


@pytest.mark.parametrize(
    "provenance",
    [
        {"stride": 0},
        {"stride": 10**6},
        {"stride": "two"},
        {"stride": None},
        {"stride": True},
        {"image_size": [0, 64]},
        {"image_size": [64]},
        {"image_size": 64},
        {"image_size": ["a", "b"]},
        {"image_size": [10**9, 10**9]},
        {"cameras": []},
        {"cameras": 3},
        {"cameras": [None]},
        {"cameras": [AGENTVIEW, AGENTVIEW]},
        {"reference": 7},
        {"reference": "elsewhere"},
    ],
)
def test_what_a_checkpoint_says_of_its_training_is_checked(tmp_path: Path, provenance: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(provenance))}|camera"):
        AptPolicy(network(tmp_path / "policy", provenance=provenance), device="cpu")
