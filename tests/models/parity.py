"""Reading the parity fixtures: arrays made by the authors' released code, and smaller ones of our own making."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from apt_bench.models.action_codes import decode_chunk, encode_chunk
from apt_bench.models.apt_expert import APTExpert
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.inputs import RobotState, VLFeatures, fractional_intrinsics
from apt_bench.models.official_names import from_official

ROOT = Path(__file__).parents[2]


def kit(name: str) -> Path:
    """A file of the parity kit. Without it the test is skipped, and the message names the searched folders."""
    places = [Path(os.environ["APT_BENCH_PARITY"])] if "APT_BENCH_PARITY" in os.environ else []
    places += [ROOT / "shared/parity", ROOT.parent / "shared/parity"]
    for place in places:
        if (place / name).is_file():
            return place / name
    pytest.skip(
        f"parity kit absent: no {name} in {', '.join(map(str, places))}; set APT_BENCH_PARITY to its folder"
    )


class Golden:
    """One case (plain, hard) of one stage."""

    def __init__(self, arrays: dict[str, np.ndarray], case: str, stage: int) -> None:
        self.arrays, self.case, self.stage = arrays, case, stage

    @classmethod
    def load(cls, file: Path, case: str, stage: int) -> Golden:
        with np.load(file) as z:
            return cls({k: z[k] for k in z.files}, case, stage)

    def has(self, name: str) -> bool:
        return f"{self.case}/stage{self.stage}/{name}" in self.arrays

    def get(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[f"{self.case}/{name}"]))

    def here(self, name: str) -> Tensor:
        return self.get(f"stage{self.stage}/{name}")

    def here_names(self, name: str) -> list[str]:
        return [str(n) for n in self.arrays[f"{self.case}/stage{self.stage}/{name}"]]

    def full_gradients(self) -> list[str]:
        prefix = f"{self.case}/stage{self.stage}/train/grad/"
        return [k.removeprefix(prefix) for k in self.arrays if k.startswith(prefix)]

    def expert(self) -> APTExpert:
        prefix = f"stage{self.stage}/param/"
        params = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
        depth, width = params["dp_head.traj_context_attn.gate"].shape
        vlm_width = params["context_encoder.proj_input.weight"].shape[1]
        head_dim = params["dp_head.traj_context_attn.layers.0.attn.q_norm.weight"].shape[0]
        config = ExpertConfig(
            stage=self.stage,
            vlm=VLMShape(width=vlm_width, layers=depth),
            width=width,
            heads=width // head_dim,
            depth=depth,
            horizon=self.get("in/future_ee_states").shape[1],
        )
        expert = APTExpert(config)
        expert.load_state_dict(
            {from_official(k): torch.from_numpy(v) for k, v in params.items()}, strict=True
        )
        return expert

    def features(self) -> VLFeatures:
        is_vision, present = self.get("in/is_vision"), self.get("in/camera_mask")
        view = torch.full(is_vision.shape, -1)
        uv = torch.zeros(*is_vision.shape, 2)
        cells = self.get("in/norm_xy_tokens").shape[2]
        side = int(cells**0.5)
        row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        centres = torch.stack([(col + 0.5) / side, (row + 0.5) / side], -1).reshape(cells, 2)
        for b in range(len(view)):
            cameras = present[b].nonzero()[:, 0]
            view[b, is_vision[b]] = cameras.repeat_interleave(cells)
            uv[b, is_vision[b]] = centres.repeat(len(cameras), 1)
        taps = self.get("in/phi_taps")
        return VLFeatures(
            embeds=self.get("in/phi_embeds"),
            taps=taps,
            layers=tuple(range(len(taps))),
            token_type=self.get("in/token_type"),
            view=view,
            uv=uv,
        )

    def robot(self) -> RobotState:
        return RobotState(
            camera_pose=self.get("in/camera_extrinsics"),
            intrinsics=fractional_intrinsics(self.get("in/camera_K"), 256, 256),
            camera_present=self.get("in/camera_mask"),
            ee_pose=self.get("in/current_ee_pose"),
            ref_pose=self.get("in/action_ref_pose"),
            openness=self.get("in/history_ee_states")[:, 0, :, 16],
            arm_valid=self.get("in/valid_ee_mask"),
        )

    def decode(self, code: Tensor) -> tuple[Tensor, Tensor]:
        robot = self.robot()
        return decode_chunk(code, robot.ee_pose, robot.ref_pose)

    def target(self) -> Tensor:
        future = self.get("in/future_ee_states").transpose(1, 2)  # B, E, T, 17
        robot = self.robot()
        pose = future[..., :16].unflatten(-1, (4, 4))
        return encode_chunk(pose, future[..., 16], robot.ee_pose, robot.ref_pose)
