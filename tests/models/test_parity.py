"""The expert against arrays made by the authors' released code (see `parity.kit` for where they are looked for)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity import Golden, kit
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from apt_bench.envs.base import ACTION_SCALE, action_towards
from apt_bench.models import action_codes as A
from apt_bench.models import diffusion as D
from apt_bench.models.apt_expert import token_poses
from apt_bench.models.attention import attention_mask, joint_mask, visual_positions
from apt_bench.models.diffusion import add_noise, ddim_step
from apt_bench.models.inputs import LANGUAGE, PAD, VISION, image_plane
from apt_bench.models.official_names import from_official
from apt_bench.policies.apt import steps

CASES = [(case, stage) for case in ("plain", "hard", "own") for stage in (1, 2)]
NAMES = {"ids": lambda p: f"{p[0]}-stage{p[1]}"}
OWN = Path(__file__).with_name("own_expert.npz")  # by make_own_fixture.py


def near(actual: torch.Tensor, expected: torch.Tensor, atol: float, rtol: float = 0.0) -> None:
    assert_close(actual.float(), expected.float(), atol=atol, rtol=rtol)


@pytest.fixture(params=CASES, **NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    case, stage = request.param
    return Golden.load(OWN if case == "own" else kit("golden_expert_A.npz"), case, stage)


def test_ids_and_masks_are_exact(golden: Golden) -> None:
    features, robot = golden.features(), golden.robot()
    valid = golden.get("in/vl_attention_mask")
    types = torch.where(valid, torch.where(features.is_visual, VISION, LANGUAGE), PAD)
    assert torch.equal(types, features.token_type)
    assert torch.equal(visual_positions(features.is_visual), golden.get("in/pos_id"))
    near(image_plane(features, robot)[features.is_visual], _visual(golden, "norm_xy_tokens"), 1e-5)
    expert = golden.expert()
    action = expert._action_types(robot, 1 + expert.config.horizon)
    if golden.has("train/mask_new_layers"):
        isolated, new = (golden.here(f"train/mask_{n}_layers") for n in ("inherited", "new"))
        assert torch.equal(joint_mask(features.token_type, action, True), isolated)
        assert torch.equal(joint_mask(features.token_type, action, golden.stage == 1), new)
        everyone = torch.cat([features.token_type, action], 1)
        L = features.view.shape[1]
        assert torch.equal(attention_mask(action, everyone, True), isolated[:, L:])


def _visual(golden: Golden, name: str) -> torch.Tensor:
    return golden.get(f"in/{name}")[golden.get("in/camera_mask")].reshape(-1, 2)


def test_training_forward(golden: Golden) -> None:
    """Every intermediate of one training pass, the losses, and every gradient's norm."""
    expert, features, robot = golden.expert(), golden.features(), golden.robot()
    target, t, noise = golden.target(), golden.here("train/timestep"), golden.here("train/noise")
    near(target, golden.here("train/gt_action"), 1e-5)
    near(add_noise(target, noise, t), golden.here("train/noisy_action"), 1e-5)
    near(expert.step.sinusoid(t), golden.here("train/time_sinusoid"), 1e-5)
    near(expert.step(t), golden.here("train/time_embed"), 1e-5)

    rotation = golden.here("train/avg_pose")[:, :3, :3]
    moved = robot.recentred(rotation)
    near(
        torch.cat(token_poses(features, moved, 1 + target.shape[2]), 1), golden.here("train/token_pose"), 1e-5
    )
    near(moved.camera_pose, A.rigid_inverse(golden.here("train/avg_pose"))[:, None] @ robot.camera_pose, 1e-5)

    vl, action = _record_blocks(expert)
    fused: list[torch.Tensor] = []
    expert.fusion.register_forward_hook(lambda m, args, out: fused.append(out))
    context = expert.encode_context(features, robot, rotation)
    eps = expert.denoise(context, golden.here("train/noisy_action"), t)
    L = features.view.shape[1]
    if golden.has("train/x_in"):
        near(torch.cat([vl["in"][0], action["in"][0]], 1), golden.here("train/x_in"), 1e-4)
        near(action["out"][-1], golden.here("train/attn_out")[:, L:], 1e-4)
    for i in range(len(expert.blocks)):
        if golden.has(f"train/layer{i}/block_out"):
            expected = golden.here(f"train/layer{i}/block_out")
            near(action["out"][i], expected[:, L:], 1e-4)
            if i < len(expert.blocks) - 1:  # behind the last block nobody reads the VL part
                near(vl["out"][i], expected[:, :L], 1e-4)
        if golden.has(f"train/layer{i}/gated_out"):
            near(fused[i], golden.here(f"train/layer{i}/gated_out")[:, :L], 1e-4)
    near(eps, golden.here("train/eps"), 1e-4)

    losses = expert.loss(features, robot, target, noise=noise, t=t, rotation=rotation)
    for ours, theirs in (
        ("position", "pos"),
        ("rotation", "rot"),
        ("gripper", "gripper"),
        ("total", "total"),
    ):
        near(losses[ours], golden.here(f"train/loss_{theirs}"), 1e-4)
    losses["total"].backward()
    params = dict(expert.named_parameters())
    for name, norm in zip(golden.here_names("train/grad_names"), golden.here("train/grad_norm"), strict=True):
        grad = params[from_official(name)].grad
        ours = 0.0 if grad is None else grad.norm().item()
        assert ours == pytest.approx(np.nan_to_num(norm.item()), rel=1e-3, abs=1e-6), name
    for name in golden.full_gradients():
        expected = golden.here(f"train/grad/{name}")
        near(params[from_official(name)].grad, expected, 1e-3 * expected.abs().max().item())


def _record_blocks(expert: torch.nn.Module) -> tuple[dict, dict]:
    """Inputs and outputs of the blocks, apart for the VL pass (no step) and the action pass."""
    vl, action = ({"in": [], "out": []} for _ in range(2))

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict, out: tuple) -> None:
        record = action if len(args) > 3 else vl
        record["in"].append(args[0])
        record["out"].append(out[0])

    for block in expert.blocks:
        block.register_forward_hook(hook, with_kwargs=True)
    return vl, action


@pytest.mark.parametrize("golden", [c for c in CASES if c[0] != "own"], indirect=True, **NAMES)
def test_released_bf16_autocast(golden: Golden) -> None:
    expert, t = golden.expert(), golden.here("train/timestep")
    with torch.autocast("cpu", torch.bfloat16):
        rotation = golden.here("train/avg_pose")[:, :3, :3]
        context = expert.encode_context(golden.features(), golden.robot(), rotation)
        eps = expert.denoise(context, golden.here("train/noisy_action"), t)
    near(eps, golden.here("train/eps_autocast_bf16_cpu"), 0.06)
    near(eps, golden.here("train/eps"), 0.06)


@pytest.mark.parametrize("golden", [c for c in CASES if c != ("own", 1)], indirect=True, **NAMES)
def test_sampling(golden: Golden) -> None:
    """20 DDIM steps from the fixture's noise, each step on its own and all of them together, down to world poses. (Our
    own arrays hold one such run, in Stage 2.)"""
    expert, features, robot = golden.expert(), golden.features(), golden.robot()
    timesteps = golden.here("infer/ddim_timesteps").tolist()
    assert D.ddim_timesteps() == timesteps
    context = expert.encode_context(features, robot)
    for i, t in enumerate(timesteps):
        x, eps = golden.here("infer/ddim_x")[i], golden.here("infer/ddim_eps")[i]
        near(expert.denoise(context, x, torch.full((len(x),), t)), eps, 1e-4, rtol=1e-5)
        after = golden.here("infer/ddim_x")[i + 1] if t else golden.here("infer/final_action")
        near(ddim_step(x, eps, t, 5), after, 1e-4, rtol=1e-5)
    final = expert.sample(features, robot, golden.here("infer/initial_noise"))
    near(final, golden.here("infer/final_action"), 1e-3)
    pose, openness = A.decode_chunk(final, robot.ee_pose, robot.ref_pose)
    states = golden.here("infer/ee_states").transpose(1, 2)
    near(pose.flatten(-2), states[..., :16], 1e-3)
    near(openness, states[..., 16], 1e-3)


def test_action_codes() -> None:
    z = {k: torch.from_numpy(v) for k, v in np.load(kit("golden_actions.npz")).items()}
    ee, ref = z["chunk/cur_ee_pose"], z["chunk/ref_cam_pose"]
    states = z["chunk/future_states"]
    pose = states[..., :16].unflatten(-1, (4, 4))
    near(A.encode_chunk(pose, states[..., 16], ee, ref), z["chunk/action"], 1e-5)
    for kind in ("", "noisy_"):
        code = z[f"chunk/{kind}action"]
        back, openness = A.decode_chunk(code, ee, ref)
        expected = z["chunk/noisy_states" if kind else "chunk/states_back"]
        near(back.flatten(-2), expected[..., :16], 1e-5)
        near(openness, expected[..., 16], 1e-5)
        near(A.position_in_camera(ee, ref) + code[..., A.POSITION], z[f"chunk/{kind}abs_pos"], 1e-5)
    near(A.rot6d(z["rot6d/R"]), z["rot6d/code"], 1e-6)
    near(A.rot6d_to_matrix(z["rot6d/raw"]), z["rot6d/raw_to_R"], 1e-5)


def test_noise_schedule() -> None:
    z = {k: torch.from_numpy(v) for k, v in np.load(kit("golden_actions.npz")).items()}
    near(D.signal_levels(), z["schedule/alphas_cumprod"], 1e-6)
    near(add_noise(z["schedule/x"], z["schedule/eps"], z["schedule/t"]), z["schedule/add_noise"], 1e-5)
    for t in (95, 50, 5, 0):
        near(
            ddim_step(z["schedule/x"], z["schedule/eps"], t, 5), z[f"schedule/ddim_step_{t}"], 1e-4, rtol=1e-5
        )


def test_control_actions() -> None:
    z = np.load(kit("golden_actions.npz"))
    np.testing.assert_array_equal(z["libero/action_scale"], ACTION_SCALE)
    rows, live = steps(z["libero/pred_pose"], z["libero/pred_gripper"]), z["libero/eef_pose"]
    state = np.concatenate([live[:3, 3], Rotation.from_matrix(live[:3, :3]).as_rotvec()])
    action = np.stack([action_towards(row, state) for row in rows])
    np.testing.assert_allclose(action, z["libero/env_action"], atol=1e-5)
