"""Measure on one machine everything that a GPU changes, in at most 9 minutes.

    python benchmarks/gpu.py --out results/gpu/NAME
    python benchmarks/gpu.py --out /tmp/tiny --tiny                   # small shapes, also on a CPU
    python benchmarks/gpu.py --out FOLDER --wheels WHEELS             # first install apt-bench from a folder of wheels

The parts: the machine and its matrix products; rendering, with the images of two processes compared; rollouts per
minute with 1 to 16 workers; sampling and training at the shape of Qwen3-VL-2B, with random weights. Each part runs in a
process of its own with a time limit. A part that fails, takes too long or lacks a GPU is named in the table.
`gpu.json` and `gpu.md` in FOLDER are written again after each part, so an interrupted run keeps what it measured.
"""

from __future__ import annotations  # the parent process imports nothing but the standard library

import argparse
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
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 540.0
"""Time limit of the whole script."""

WORKERS = (1, 2, 4, 8, 16)
POLICIES = ("zero", "apt_mini")
BATCHES = (1, 8, 32)
MODES = ("frozen", "lora", "full")
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


@dataclasses.dataclass(frozen=True)
class Part:
    """One process: its name, its time limit in seconds, and whether it needs a GPU unless shapes are tiny."""

    name: str
    seconds: float
    gpu: bool = False


PARTS = (
    Part("machine", 30),
    Part("rendering", 40),
    Part("rendering again", 30),
    *(Part(f"sampling {kind}", s, gpu=True) for kind, s in (("eager", 40), ("bf16", 30), ("compiled", 70))),
    Part("training stage1", 30, gpu=True),
    *(Part(f"training {mode}", 40, gpu=True) for mode in MODES),
    *(Part(f"rollouts {policy} {n}", 25) for policy in POLICIES for n in WORKERS),
)


# --- the parent process -------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="small shapes: tests the script itself")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of the whole script")
    parser.add_argument("--only", default="", help="run only parts whose name begins with this text")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install into FOLDER/venv first")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
        run_part(args.part, args.out, args.tiny)
        return
    end = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    python = install(args.wheels, args.out, end) if args.wheels else sys.executable
    report: dict[str, Any] = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tiny": args.tiny,
        "parts": {},
    }
    for part in PARTS:
        if part.name.startswith(args.only):
            report["parts"][part.name] = measure(part, python, args, report, end)
            write(report, args.out)
            print(f"{part.name}: {report['parts'][part.name]['status']}", flush=True)
    print(f"\n{(args.out / 'gpu.md').read_text()}")


def install(wheels: Path, out: Path, end: float) -> str:
    """Make a virtual environment with apt-bench from a folder of wheels. Returns its Python."""
    python = str(out / "venv/bin/python")
    options = ["--no-index", "--find-links", str(wheels)]
    for command in (
        [sys.executable, "-m", "venv", str(out / "venv")],
        [python, "-m", "pip", "install", "-q", *options, "apt-bench"],
    ):
        subprocess.run(command, check=True, timeout=max(1, end - time.monotonic()))
    return python


def measure(
    part: Part, python: str, args: argparse.Namespace, report: dict[str, Any], end: float
) -> dict[str, Any]:
    """Run one part in its own process group, and end the group when its time is over."""
    machine = {row["what"]: row["value"] for row in report["parts"].get("machine", {}).get("rows", ())}
    if part.gpu and not args.tiny and not machine.get("GPUs", 0):
        return {"status": "skipped: no GPU", "rows": []}
    words = part.name.split()
    if words[0] == "rollouts" and int(words[2]) > machine.get("CPU cores", os.cpu_count()):
        return {"status": "skipped: fewer cores than workers", "rows": []}
    limit = min(part.seconds * (4 if args.tiny else 1), end - time.monotonic() - 5)
    if limit < 5:
        return {"status": "skipped: no time left", "rows": []}
    folder = args.out / "parts"
    folder.mkdir(exist_ok=True)
    rows, log = (folder / f"{part.name.replace(' ', '-')}.{end}" for end in ("jsonl", "log"))
    rows.unlink(missing_ok=True)
    command = [python, __file__, "--part", part.name, "--out", str(rows), *(["--tiny"] if args.tiny else [])]
    began = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ
            | {"APT_BENCH_GPU_SECONDS": str(limit - 3)}
            | ({"OMP_NUM_THREADS": "1"} if args.tiny else {}),
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        except KeyboardInterrupt:
            end_group(process)
            raise
        end_group(process)
    status = "measured" if code == 0 else "took too long" if code is None else f"failed: {last_line(log)}"
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "rows": found}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the part's processes: by SIGTERM, then by SIGKILL. A rollout starts some of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)


def last_line(log: Path) -> str:
    """The last line that a part printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "without a message"


def write(report: dict[str, Any], out: Path) -> None:
    """Write both files."""
    parts = report["parts"]
    if {"rendering", "rendering again"} <= parts.keys():
        one, two = (
            {row["what"]: row["images"] for row in parts[n]["rows"]} for n in ("rendering", "rendering again")
        )
        shared = one.keys() & two.keys()
        report["images equal in two processes"] = [
            f"{sum(one[k] == two[k] for k in shared)} of {len(shared)}"
        ]
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = ["| part | what | value | unit |", "|---|---|---:|---|"]
    for name, part in parts.items():
        lines += [f"| {name} | {row['what']} | {row['value']} | {row['unit']} |" for row in part["rows"]]
        if part["status"] != "measured":
            lines.append(f"| {name} | {part['status'].replace('|', '/')} | | |")
    for text in report.get("images equal in two processes", ()):
        lines.append(f"| rendering | scenes whose images are equal in two processes | {text} | |")
    (out / "gpu.md").write_text("\n".join(lines) + "\n")


# --- the parts ------------------------------------------------------------------------------------------


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


if __name__ == "__main__":
    main()
