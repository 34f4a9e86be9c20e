"""Makes `own_expert.npz`: the parity kit's arrays in small, so that the expert is checked where the kit is absent.

Written by the code under test at a revision that agreed with the kit, so it can only show that nothing has changed.
Run `python tests/models/make_own_fixture.py` where the kit is present and its tests pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from apt_bench.models.action_codes import make_pose
from apt_bench.models.apt_expert import APTExpert, token_poses
from apt_bench.models.attention import joint_mask, visual_positions
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.diffusion import add_noise, ddim_step, ddim_timesteps
from apt_bench.models.inputs import (
    image_plane,
    random_rotations,
)
from apt_bench.models.official_names import to_official

SIDE, WIDTH, HEADS, DEPTH, VLM_WIDTH, HORIZON = 2, 16, 2, 4, 4, 2


def poses(*shape: int) -> torch.Tensor:
    count = int(np.prod(shape))
    return make_pose(random_rotations(count), torch.randn(count, 3)).reshape(*shape, 4, 4)


def inputs() -> dict[str, torch.Tensor]:
    """Two samples: two views, one arm; then one view (the other missing), left padding, two arms."""
    cell, text = SIDE * SIDE, 6
    L = 2 + 2 * cell + 2 * 2 + text
    rows = {"is_vision": torch.zeros(2, L, dtype=torch.bool), "token_type": torch.full((2, L), 2)}
    starts = {0: (3, 3 + cell + 2), 1: (3 + cell + 2,)}
    for b, at in starts.items():
        for start in at:
            rows["is_vision"][b, start : start + cell] = True
    rows["token_type"][rows["is_vision"]] = 1
    rows["token_type"][1, : cell + 2] = 0
    rows["token_type"][0, 4] = 0  # a visual token that sees nothing valid
    K = torch.tensor([[250.0, 0, 120], [0, 260, 130], [0, 0, 1]]).repeat(2, 2, 1, 1)
    ee = poses(2, 2)
    future = torch.cat([poses(2, HORIZON, 2).flatten(-2), torch.rand(2, HORIZON, 2, 1)], -1)
    return rows | {
        "vl_attention_mask": rows["token_type"] > 0,
        "pos_id": visual_positions(rows["is_vision"]),
        "camera_mask": torch.tensor([[True, True], [False, True]]),
        "camera_K": K,
        "camera_extrinsics": poses(2, 2),
        "current_ee_pose": ee,
        "action_ref_pose": poses(2, 2),
        "history_ee_states": torch.cat([ee.flatten(-2), torch.rand(2, 2, 1)], -1)[:, None],
        "future_ee_states": future,
        "valid_ee_mask": torch.tensor([[True, False], [True, True]]),
        "phi_embeds": torch.randn(2, L, VLM_WIDTH),
        "phi_taps": torch.randn(DEPTH, 2, L, VLM_WIDTH),
        "norm_xy_tokens": torch.zeros(2, 2, cell, 2),  # filled below
    }


def make() -> dict[str, np.ndarray]:
    from parity import Golden

    torch.manual_seed(0)
    out = {f"own/in/{k}": v for k, v in inputs().items()}
    for stage in (1, 2):
        vlm = VLMShape(width=VLM_WIDTH, layers=DEPTH)
        config = ExpertConfig(stage=stage, vlm=vlm, width=WIDTH, heads=HEADS, depth=DEPTH, horizon=HORIZON)
        expert = APTExpert(config)
        for name, p in expert.named_parameters():  # what starts at zero must matter too
            p.data += 0.3 * torch.randn_like(p) if p.dim() > 1 else 0.1 * torch.randn_like(p)
            out[f"stage{stage}/param/{to_official(name)}"] = p.detach()
        golden = Golden(
            {k: np.asarray(torch.as_tensor(v).detach()) for k, v in out.items() if "grad_names" not in k},
            "own",
            stage,
        )
        features, robot = golden.features(), golden.robot()
        grid = image_plane(features, robot)
        for b, v in ((0, 0), (0, 1), (1, 1)):
            out["own/in/norm_xy_tokens"][b, v] = grid[b][features.view[b] == v]
        record = f"own/stage{stage}/"
        rotation, noise = random_rotations(2), torch.randn(2, 2, HORIZON, 10)
        t, target = torch.tensor([7, 80]), golden.target()
        noisy = add_noise(target, noise, t)
        moved = robot.recentred(rotation)
        centre = robot.camera_pose @ torch.linalg.inv(moved.camera_pose)
        types = expert._action_types(robot, 1 + HORIZON)
        losses = expert.loss(features, robot, target, noise=noise, t=t, rotation=rotation)
        losses["total"].backward()
        grads = {to_official(n): p.grad for n, p in expert.named_parameters()}
        names = sorted(grads)
        train = {
            "avg_pose": centre[:, 0],
            "noise": noise,
            "timestep": t,
            "gt_action": target,
            "noisy_action": noisy,
            "time_sinusoid": expert.step.sinusoid(t),
            "time_embed": expert.step(t),
            "token_pose": torch.cat(token_poses(features, moved, 1 + HORIZON), 1),
            "mask_inherited_layers": joint_mask(features.token_type, types, True),
            "mask_new_layers": joint_mask(features.token_type, types, stage == 1),
            "eps": expert.denoise(expert.encode_context(features, robot, rotation), noisy, t),
            "grad_names": np.array(names),
            "grad_norm": torch.stack(
                [torch.tensor(torch.nan) if grads[n] is None else grads[n].norm() for n in names]
            ),
            "grad/dp_head.traj_context_attn.gate": grads["dp_head.traj_context_attn.gate"],
            **{
                f"loss_{b}": losses[a]
                for a, b in (
                    ("position", "pos"),
                    ("rotation", "rot"),
                    ("gripper", "gripper"),
                    ("total", "total"),
                )
            },
        }
        out |= {f"{record}train/{k}": v for k, v in train.items()}
        if stage == 1:
            continue  # sampling is the same code in both stages
        x, context, xs, es = torch.randn(2, 2, HORIZON, 10), expert.encode_context(features, robot), [], []
        out[record + "infer/initial_noise"] = x
        for step in ddim_timesteps():
            xs.append(x)
            es.append(expert.denoise(context, x, torch.full((2,), step)))
            x = ddim_step(x, es[-1], step, 5)
        pose, openness = golden.decode(x)
        infer = {
            "ddim_timesteps": torch.tensor(ddim_timesteps()),
            "ddim_x": torch.stack(xs),
            "ddim_eps": torch.stack(es),
            "final_action": x,
            "ee_states": torch.cat([pose.flatten(-2), openness[..., None]], -1).transpose(1, 2),
        }
        out |= {f"{record}infer/{k}": v for k, v in infer.items()}
    return {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in out.items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("own_expert.npz"), **make())
