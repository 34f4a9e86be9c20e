"""Measure the cost of sampling, as ratios within one run.

    python benchmarks/inference.py [--size full|mini] [--device cuda]

1. Reuse: one decision with the vision-language stream computed once, compared with computing it in each of the 20
   denoising steps.
2. Batching: 8 decisions in one batch, compared with 8 single ones.
3. bf16: one decision under autocast, compared with one in float32, neither of them traced.
4. Tracing, on a CPU only: one decision with the network traced, as policies run it, compared with one that is not. The
   first two comparisons are of traced networks.

Random weights, the shapes of the released Stage 2 on Qwen3-VL-2B (two views of 64 tokens, 21 words), one thread. Times
are CPU seconds on a CPU (other jobs disturb them less than wall time) and synchronised wall seconds on a GPU; the best
of `--repeats` is taken, with the variants interleaved. The VLM's own pass is not part of either number.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from apt_bench.models.action_codes import CODE_DIM, make_pose
from apt_bench.models.action_expert import ActionExpert, Context
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.diffusion import ddim_sample
from apt_bench.models.inputs import LANGUAGE, VISION, RobotState, VLFeatures, random_rotations
from apt_bench.models.traced import Traced
from apt_bench.models.vla import build_expert

WORDS, CELLS, VIEWS = 21, 64, 2
SIZES = {
    "full": ExpertConfig(),
    "mini": ExpertConfig(
        vlm=VLMShape(128, 4, 4, 32, None), width=96, heads=3, depth=4, horizon=16, step_index=True
    ),
}


def inputs(config: ExpertConfig, batch: int) -> tuple[VLFeatures, RobotState, torch.Tensor]:
    layers = build_layers(config)
    L = CELLS * VIEWS + WORDS
    view = torch.full((batch, L), -1)
    for v in range(VIEWS):
        view[:, 3 + v * (CELLS + 1) : 3 + v * (CELLS + 1) + CELLS] = v
    features = VLFeatures(
        embeds=torch.randn(batch, L, config.vlm.width),
        taps=torch.randn(len(layers), batch, L, config.vlm.width),
        layers=layers,
        token_type=torch.where(view >= 0, VISION, LANGUAGE),
        view=view,
        uv=torch.rand(batch, L, 2),
    )
    cameras = make_pose(random_rotations(batch * VIEWS), torch.randn(batch * VIEWS, 3)).reshape(
        batch, VIEWS, 4, 4
    )
    robot = RobotState(
        camera_pose=cameras,
        intrinsics=torch.eye(3).expand(batch, VIEWS, 3, 3),
        camera_present=torch.ones(batch, VIEWS, dtype=torch.bool),
        ee_pose=cameras[:, :1],
        ref_pose=cameras[:, 1:],
        openness=torch.ones(batch, 1),
        arm_valid=torch.ones(batch, 1, dtype=torch.bool),
    )
    return features, robot, torch.randn(batch, 1, config.horizon, CODE_DIM)


def build_layers(config: ExpertConfig) -> tuple[int, ...]:
    return tuple(sorted(set(config.vlm.evenly(config.depth))))


def recomputing(
    expert: ActionExpert,
    features: VLFeatures,
    robot: RobotState,
    noise: torch.Tensor,
    *,
    encode_context: Callable[[VLFeatures, RobotState], Context],
    denoise: Callable[[Context, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    def at(x: torch.Tensor, t: int) -> torch.Tensor:
        return denoise(encode_context(features, robot), x, torch.full((len(x),), t, device=x.device))

    return ddim_sample(at, noise)


def half(run: Callable[[], object], device: str) -> None:
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        run()


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.inference_mode()
def measure(size: str, device: str, repeats: int) -> dict[str, float]:
    config = SIZES[size]
    expert = build_expert(config).to(device).eval()
    eight = [part.to(device) for part in inputs(config, 8)]
    features, robot, noise = eight
    one = [_row(features), robot.map(lambda x: x[:1]), noise[:1]]
    parts: dict[str, Any] = {"encode_context": expert.encode_context, "denoise": expert.denoise}
    if device == "cpu":
        parts = {name: Traced(function, expert) for name, function in parts.items()}
    runs = {
        "recomputed": lambda: recomputing(expert, *one, **parts),
        "reused": lambda: expert.sample(*one, **parts),
        "batch": lambda: expert.sample(*eight, **parts),
        "eager": lambda: expert.sample(*one),  # type: ignore[arg-type]
        "bf16": lambda: half(lambda: expert.sample(*one), device),  # type: ignore[arg-type]
    }
    torch.testing.assert_close(runs["recomputed"](), runs["reused"]())
    runs["batch"]()
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run, device))
    return best


def _row(features: VLFeatures) -> VLFeatures:
    """The first sample; taps have the layer in front."""
    rest = {n: getattr(features, n)[:1] for n in ("embeds", "token_type", "view", "uv")}
    return VLFeatures(taps=features.taps[:, :1], layers=features.layers, **rest)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=[*SIZES, "both"], default="both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "size",
        "what",
        "slow way",
        "fast way",
        "ratio",
        title=f"Sampling one decision, 20 steps, {args.device}",
    )
    for size in SIZES if args.size == "both" else [args.size]:
        best = measure(size, args.device, args.repeats)
        rows = {
            "stream reused, not recomputed": (best["recomputed"], best["reused"]),
            "batch of 8, not 8 singles": (8 * best["reused"], best["batch"]),
            "bf16, not traced": (best["eager"], best["bf16"]),
        }
        if args.device == "cpu":
            rows["traced"] = (best["eager"], best["reused"])
        for what, (slow, fast) in rows.items():
            table.add_row(size, what, f"{slow:.3f} s", f"{fast:.3f} s", f"{slow / fast:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
