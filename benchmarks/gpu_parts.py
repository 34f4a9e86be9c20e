"""The parts of `gpu.py`. Each runs in a process of its own and writes one row per figure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 8, 32)
QWEN_TEXT = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True
    },
}  # fmt: skip
QWEN_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2048,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 16, "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
"""The shape of Qwen3-VL-2B."""

TINY_TEXT = QWEN_TEXT | {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [8, 4, 4], "mrope_interleaved": True
    },
}  # fmt: skip
TINY_VISION = QWEN_VISION | {
    "hidden_size": 64, "intermediate_size": 128, "depth": 2, "num_heads": 4, "out_hidden_size": 128,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
}  # fmt: skip

Emit = Callable[..., None]


def run_part(name: str, rows: Path, tiny: bool) -> None:
    """Measure one part in this process. Each row is written at once."""

    def emit(what: str, value: Any, unit: str = "", **more: Any) -> None:
        value = float(f"{value:.4g}") if isinstance(value, float) else value
        with open(rows, "a") as file:
            file.write(json.dumps({"what": what, "value": value, "unit": unit, **more}) + "\n")

    kind, *words = name.split()
    parts: dict[str, Callable[..., None]] = {
        "machine": machine_part,
        "rendering": rendering_part,
        "sampling": sampling_part,
        "training": training_part,
        "rollouts": rollouts_part,
    }
    parts[kind](emit, tiny, *words)


def machine_part(emit: Emit, tiny: bool) -> None:
    """Versions, cores, GPU, and the speed of matrix products."""
    import torch

    emit("CPU cores", len(os.sched_getaffinity(0)))
    emit("CPU", platform.processor() or platform.machine())
    emit("Python", platform.python_version())
    emit("torch", torch.__version__)
    emit("GPUs", torch.cuda.device_count() if torch.cuda.is_available() else 0)
    device = device_name()
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        emit("GPU", found.name)
        emit("GPU memory", found.total_memory / 2**30, "GiB")
    for kind in ("float32", "bfloat16"):
        emit(f"matrix product, {kind}", matmul_speed(kind, tiny) / 1e12, "TFLOP/s")


def rendering_part(emit: Emit, tiny: bool, again: str = "") -> None:
    """Milliseconds per image of each scene, and the images' hashes."""
    import numpy as np

    from apt_bench.core.config import load_object
    from apt_bench.core.errors import UserError
    from apt_bench.envs import rendering
    from apt_bench.suites import load_suite

    backend = rendering.describe()
    if not again:
        emit(f"{backend.name}, {backend.renderer}", backend.seconds * 1e3, "ms, empty image", images=[])
    scenes = {"rigid_pick_place": ["so", "uc"]}
    if not tiny:
        scenes["libero_pro"] = ["spatial_pos", "object_pos", "goal_pos", "long_pos"]
    for suite, cells in scenes.items():
        try:
            for cell in cells:
                (spec,) = load_suite(suite).select([cell], tasks=["0"], episodes=1)
                env = load_object(spec.env)()
                env.reset(spec, ("agentview", "wrist"))
                for camera in ("agentview", "wrist"):
                    images = [env.frame(camera, size=256)]
                    began = time.perf_counter()
                    for _ in range(2 if tiny or again else 40):
                        images.append(env.frame(camera, size=256))
                    each = (time.perf_counter() - began) / (len(images) - 1)
                    hashes = sorted(
                        {hashlib.sha256(np.ascontiguousarray(i)).hexdigest()[:16] for i in images}
                    )
                    emit(f"{cell}, {camera}, 256 x 256", each * 1e3, "ms per image", images=hashes)
                env.close()
        except (UserError, ImportError) as error:  # LIBERO is not installed
            emit(f"{suite}: {error}"[:120].replace("|", "/"), "", "", images=[])


def rollouts_part(emit: Emit, tiny: bool, policy: str, workers: str) -> None:
    """Episodes per minute of `apt-bench run`. At the limit the run is interrupted and what has ended counts."""
    limit = float(os.environ.get("APT_BENCH_GPU_SECONDS", 60))
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "apt_bench",
            "run",
            "--suite",
            "rigid_pick_place",
            "--policy",
            policy,
        ]
        command += ["--workers", workers, "--out", f"{out}/run", "--json"]
        command += ["--limit", str(1 if tiny else 12 * int(workers))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            text, _ = process.communicate(timeout=max(1, limit - 6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            text, _ = process.communicate()
        found = json.loads(text)
    emit(
        f"{policy}, {workers} workers",
        60 * found["new_episodes"] / max(found["seconds"], 1e-9),
        "episodes per minute",
        episodes=found["new_episodes"],
    )


def sampling_part(emit: Emit, tiny: bool, kind: str) -> None:
    """Decisions per second: the VLM's pass and 20 denoising steps."""
    import inference
    import torch

    torch.manual_seed(0)
    device = device_name()
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model = network(tiny, 2, "frozen", dtype).eval()
    if kind == "compiled":
        compile_decode(model.expert)
    with torch.inference_mode(kind != "compiled"), torch.no_grad(), autocast(device, kind == "bf16"):
        for batch in (1, 2) if tiny else BATCHES:
            prompt = prompts(model.vlm, batch).to(device)
            _, robot, noise = inference.inputs(model.expert.config, batch)
            robot, noise = robot.to(device), noise.to(device)
            features = model.features(prompt)
            runs: dict[str, Callable[[], object]] = {
                "expert": lambda f=features, r=robot, n=noise: model.expert.sample(f, r, n)
            }
            if kind != "compiled":
                runs["VLM and expert"] = lambda p=prompt, r=robot, n=noise: model.expert.sample(
                    model.features(p), r, n
                )
            if kind == "eager" and batch == 1:
                runs["expert, VL stream computed in every step"] = lambda f=features, r=robot, n=noise: (
                    inference.recomputing(model.expert, f, r, n)
                )
            for what, run in runs.items():
                emit(f"{what}, batch {batch}, {kind}", batch / seconds(run, tiny), "decisions per second")
    memory(emit, f"memory, {kind}")


def training_part(emit: Emit, tiny: bool, mode: str) -> None:
    """Samples per second of a training step, its share of the matrix products' speed, and the memory."""
    import inference
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from apt_bench.training.config import TrainConfig
    from apt_bench.training.samples.stream import Batch
    from apt_bench.training.trainer import losses, optimizers

    torch.manual_seed(0)
    device, half = device_name(), device_name() == "cuda"
    stage1 = mode == "stage1"
    model = network(
        tiny,
        1 if stage1 else 2,
        "frozen" if stage1 else mode,
        torch.float32 if mode == "full" else torch.bfloat16,
    )
    model.train()
    config = TrainConfig(batch=1)
    optims = optimizers(model, config)
    size = 2 if tiny else 64 if stage1 else 16

    def step(batch: int) -> Callable[[], None]:
        features, robot, target = inference.inputs(model.expert.config, batch)
        sample = Batch(robot, target, torch.eye(3).expand(batch, 3, 3), 0).to(device)
        if stage1:
            layers = model.expert.needed_layers
            inputs: Any = dataclasses.replace(
                features, layers=layers, taps=torch.randn(len(layers), *features.taps.shape[1:])
            )
        else:
            inputs = prompts(model.vlm, batch)
        inputs = inputs.to(device)

        def run() -> None:
            losses(model, sample, inputs, config, device, half)["total"].backward()
            for optim in optims:
                optim.step()
                optim.zero_grad()

        return run

    while True:
        try:
            run = step(size)
            each = seconds(run, tiny)
            break
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            torch.cuda.empty_cache()
    emit(f"{mode}, {size} samples per step", size / each, "samples per second")
    memory(emit, f"memory, {mode}")
    with FlopCounterMode(display=False) as counter:
        run()
    speed = matmul_speed("bfloat16" if half else "float32", tiny)
    emit(f"share of the matrix product's speed, {mode}", 100 * counter.get_total_flops() / each / speed, "%")


# --- what the parts share ---------------------------------------------------------------------------------


def device_name() -> str:
    """`cuda` where there is a GPU, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device: str, on: bool) -> Any:
    """bf16 autocast, or nothing."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=on)


def seconds(run: Callable[[], object], tiny: bool) -> float:
    """Least wall time of several calls, after one that warms up."""
    import torch

    def once() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(1 if tiny else 5))


def matmul_speed(kind: str, tiny: bool) -> float:
    """FLOP/s of a large matrix product."""
    import torch

    n = 256 if tiny else 8192 if device_name() == "cuda" else 1024
    a = torch.randn(n, n, device=device_name(), dtype=getattr(torch, kind))
    return 2 * n**3 / seconds(lambda: a @ a, tiny)


def memory(emit: Emit, what: str) -> None:
    """The largest memory that torch has allocated on the GPU."""
    import torch

    if torch.cuda.is_available():
        emit(what, torch.cuda.max_memory_allocated() / 2**30, "GiB at most")


def network(tiny: bool, stage: int, mode: str, dtype: Any) -> Any:
    """A VLA with random weights: Qwen3-VL-2B and the released expert, or both small."""
    import torch
    import transformers

    from apt_bench.models.config import ExpertConfig
    from apt_bench.models.hf_vlm import wrap
    from apt_bench.models.vla import VLA, VLMSpec, build_expert
    from tests.models.tiny import tokenizer

    config = transformers.Qwen3VLConfig(
        text_config=TINY_TEXT if tiny else QWEN_TEXT,
        vision_config=TINY_VISION if tiny else QWEN_VISION,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
        tie_word_embeddings=True,
    )
    with torch.device(device_name()):
        model = transformers.Qwen3VLForConditionalGeneration._from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    vlm = wrap(model, tokenizer())
    vlm.set_mode(mode)
    size = {"width": 96, "heads": 3, "depth": 4, "horizon": 8} if tiny else {}
    expert = build_expert(ExpertConfig(vlm=vlm.shape, stage=stage, **size))
    return VLA(vlm, expert, VLMSpec(mode=mode)).to(device_name())  # type: ignore[arg-type]


def prompts(vlm: Any, batch: int) -> Any:
    """Prompts with two images of noise and a sentence."""
    import numpy as np

    rng = np.random.default_rng(0)
    views = [[rng.integers(0, 255, (256, 256, 3), np.uint8) for _ in range(2)] for _ in range(batch)]
    return vlm.prepare(views, ["move the red cube to the bowl"] * batch)


def compile_decode(expert: Any) -> None:
    """Compile the denoising blocks. The modulations of a step are inputs, so that all steps share the compiled code."""
    import torch

    from apt_bench.models.attention import AdaRMSNorm, Step, TabulatedStep

    norms = [m for m in expert.modules() if isinstance(m, AdaRMSNorm)]

    class Given(Step):
        def __init__(self, rows: Sequence[Any]) -> None:
            self.rows = dict(zip(norms, rows, strict=True))

        def modulation(self, norm: Any) -> Any:
            return self.rows[norm]

    plain = expert.decode
    compiled = torch.compile(lambda context, x, rows: plain(context, x, Given(rows)), dynamic=False)

    def decode(context: Any, x: Any, step: TabulatedStep) -> Any:
        return compiled(context, x, tuple(step.modulation(norm).clone() for norm in norms))

    expert.decode = decode
