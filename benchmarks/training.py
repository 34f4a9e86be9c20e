"""Measure the training speed. Each figure is a ratio of two values from the same run.

    python benchmarks/training.py            # about 2 minutes on one idle core

- Stage 1 on cached features against Stage 1 that runs the mini VLM for every batch: the features alone, and a
  whole step (expert, backward pass and optimiser included) with one noise level per sample.
- The same against a VLM of Qwen3-VL-2B's shape: two of its 28 decoder layers are timed on one sample's 160 tokens, and
  the other layers are counted as equal (the vision tower is left out, which makes the figure too small).
- Arithmetic of a training step (all matrix products, forward and backward, as torch counts them) as a share of the
  machine's matmul speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apt_bench.demos.demonstration import CameraTrack, DemoInfo, Demonstration
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.models.vla import VLA, build_expert
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.batches import Batches
from apt_bench.training.samples.features import open_features
from apt_bench.training.samples.stream import open_samples
from apt_bench.training.trainer import losses, optimizers, vlm_features
from apt_bench.training.two_stage import open_vlm

STEPS, SIZE, TOKENS = 60, 128, 160
"""Steps of a demonstration, pixels, and tokens of one Qwen prompt (two views of 64, template and instruction)."""


def demonstration(index: int) -> Demonstration:
    """Smooth motions with images of noise: the content of the images does not affect the speed."""
    rng = np.random.default_rng(index)
    pose = np.tile(np.eye(4), (STEPS, 1, 1))
    pose[:, 2, 3] = 1.0
    state = np.zeros((STEPS, 8), np.float32)
    state[:, :3] = np.cumsum(rng.normal(0, 0.01, (STEPS, 3)), 0)
    actions = np.concatenate([rng.uniform(-1, 1, (STEPS, 6)), np.ones((STEPS, 1))], 1)
    K = np.array([[100.0, 0, 63.5], [0, 100.0, 63.5], [0, 0, 1]])
    cameras = ("agentview", "wrist")
    images = {c: rng.integers(0, 255, (STEPS, SIZE, SIZE, 3), np.uint8) for c in cameras}
    info = DemoInfo(f"bench/{index}", STEPS, "move the red can to the plate")
    return Demonstration(info, images, state, actions, {c: CameraTrack(K, pose) for c in cameras})


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Least CPU time of several calls, after one call to warm up. With one thread, it is that of an idle machine."""
    run()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def matmul_speed(repeats: int) -> float:
    """FLOP/s of a 1024 x 1024 product."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ a, repeats)


def layer_seconds(repeats: int) -> float:
    """One decoder layer of Qwen3-VL-2B's shape on one sample: attention and gated MLP, float32."""
    width, kv, inner = 2048, 1024, 6144
    q, k, v, o = (nn.Linear(width, n, bias=False) for n in (width, kv, kv, width))
    gate, up, down = (
        nn.Linear(width, inner, bias=False),
        nn.Linear(width, inner, bias=False),
        nn.Linear(inner, width),
    )
    x = torch.randn(1, TOKENS, width)

    @torch.no_grad()
    def layer() -> torch.Tensor:
        heads = [f(x).unflatten(-1, (-1, 128)).transpose(1, 2) for f in (q, k, v)]
        seen = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        y = o(seen.transpose(1, 2).flatten(2))
        return down(nn.functional.silu(gate(y)) * up(y))

    return seconds(lambda: [layer(), layer()], repeats) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        data = Path(tmp) / "d.hdf5"
        write_hdf5(data, [demonstration(i) for i in range(2)])
        over = {"data": {"data": [str(data)], "held_out": 0.0}, "vlm_weights": ""}
        recipe = load_recipe("mini", over)
        vlm, spec = open_vlm(recipe)
        model = VLA(vlm, build_expert(recipe.expert_config(1, vlm.shape)), spec)
        samples, _ = open_samples(recipe.data, model.expert.config.horizon, 0, vlm.image_size, Path(tmp))
        cached = Batches(samples, model, args.batch, open_features(model, samples, Path(tmp)))
        live = Batches(samples, model, args.batch)
        optims = optimizers(model, recipe.stage1)

        def step(batches: Batches, draws: int) -> None:
            config = dataclasses.replace(recipe.stage1, draws=draws)
            losses(model, *batches[0], config)["total"].backward()
            for optim in optims:
                optim.step()
                optim.zero_grad()

        draws = recipe.stage1.draws
        fast, slow = (seconds(lambda b=b: step(b, 1), args.repeats) for b in (cached, live))
        mini = seconds(lambda: step(cached, draws), args.repeats)
        seen = [
            seconds(lambda b=b: vlm_features(b[0][1], model, "cpu"), args.repeats) for b in (cached, live)
        ]
        with FlopCounterMode(display=False) as counter:
            step(cached, 1)
    speed, layer = matmul_speed(args.repeats), layer_seconds(args.repeats)
    big = fast + 28 * args.batch * layer
    report = {
        "features of a batch, mini VLM / cached": seen[1] / seen[0],
        "stage 1 step on cached features, s": fast,
        "step, mini VLM run every time / cached": slow / fast,
        "step, 2B-shaped VLM run every time / cached (extrapolated)": big / fast,
        "samples per second, cached": args.batch / fast,
        f"samples per second, cached, {draws} noise levels each": args.batch / mini,
        "matmul peak, GFLOP/s": speed / 1e9,
        "share of it reached in a training step": counter.get_total_flops() / fast / speed,
    }
    print(json.dumps({k: round(v, 4) for k, v in report.items()}, indent=2))


if __name__ == "__main__":
    main()
