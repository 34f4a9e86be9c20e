"""The training loop of one stage: one network, one stream of samples, a fixed number of steps.

All randomness is a function of sample numbers (`samples.stream`). A run that was killed and resumed therefore gives the
same weights, bit for bit, as an uninterrupted one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.signals import stop_on_signals
from apt_bench.models.action_expert import is_decayed
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.langforce import Branches, langforce_loss
from apt_bench.models.vla import VLA
from apt_bench.models.vlm import Prompt
from apt_bench.training import checkpoints
from apt_bench.training.cache import digest
from apt_bench.training.config import TrainConfig
from apt_bench.training.metrics import Metrics, plot_losses
from apt_bench.training.muon import Muon
from apt_bench.training.progress import Report
from apt_bench.training.samples.batches import Batches, Inputs
from apt_bench.training.samples.stream import Batch
from apt_bench.training.session import World

FIRST_SAMPLE = "first sample"
"""Name of `Batches.first` among the settings that a resumed run must share."""


def optimizers(model: VLA, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a network.

    Returns:
        AdamW over all trained parameters: expert with and without decay, its new blocks and the VLM at their own
        rates. With `optimizer: muon`, Muon takes the matrices of all.
    """
    found: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    new = tuple(f"blocks.{i}." for i, source in enumerate(model.expert.sources) if source is None)
    for part, module in (("expert", model.expert), ("vlm", model.vlm)):
        for name, p in module.named_parameters():
            if p.requires_grad:
                muon = config.optimizer == "muon" and is_matrix(name, p)
                own_rate = part == "expert" and config.new_block_lr is not None and name.startswith(new)
                key = ("new blocks" if own_rate else part, muon, part == "vlm" or is_decayed(name))
                found.setdefault(key, []).append(p)
    kinds: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for (part, muon, decayed), params in found.items():
        lr, decay = {
            "expert": (config.lr, config.weight_decay),
            "new blocks": (config.new_block_lr or 0.0, config.weight_decay),
            "vlm": (config.vlm_lr, config.vlm_weight_decay),
        }[part]
        decay = decay if decayed else 0.0
        kinds[muon].append({"params": params, "lr": lr, "weight_decay": decay, "full_lr": lr})
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(kinds[False])]
    return [*out, Muon(kinds[True], config.lr)] if kinds[True] else out


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon trains `p`: a linear layer's weight in a transformer block of the expert or the VLM's decoder."""
    return (
        p.ndim == 2 and ("blocks." in name or "layers." in name) and "norm" not in name and "lora" not in name
    )


def vlm_features(inputs: Prompt | VLFeatures, model: VLA, device: str) -> VLFeatures:
    """Features of prompts, or cached ones in float32."""
    if isinstance(inputs, VLFeatures):
        return inputs.to(device).map(lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)
    return model.features(inputs.to(device))


def losses(
    model: VLA, batch: Batch, inputs: Inputs, config: TrainConfig, device: str = "cpu", half: bool = False
) -> dict[str, Tensor]:
    """The losses of one micro-batch.

    Args:
        model: Policy network.
        batch: Robot state and targets.
        inputs: Prompts or cached features.
        config: Settings of the stage.
        device: torch device.
        half: Whether to use bf16 autocast.

    Returns:
        Scalar tensors by name; `total` is the one to differentiate.
    """
    batch = batch.to(device)
    options: dict[str, Any] = {
        "rotation": batch.rotation,
        "generator": torch.Generator().manual_seed(batch.noise_seed),
        "draws": config.draws,
    }
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
        if isinstance(inputs, Branches):
            weights = {"prior_share": config.prior_share, "llr_weight": config.llr_weight}
            return langforce_loss(model, inputs.to(device), batch.robot, batch.target, **weights, **options)
        return model.expert.loss(vlm_features(inputs, model, device), batch.robot, batch.target, **options)


def train(
    model: VLA,
    data: Batches,
    held_out: Batches | None,
    config: TrainConfig,
    out: Path,
    provenance: Mapping[str, Any],
    report: Report,
    world: World | None = None,
    device: str = "cpu",
    title: str = "training",
) -> Path:
    """Train `model` in place, from the last checkpoint in `out` if there is one.

    Ctrl-C and SIGTERM end the training after the current step, which is saved; a second signal ends it at once.

    Args:
        model: Policy network.
        data: Micro-batches for training.
        held_out: Micro-batches for the validation loss.
        config: Settings of the stage.
        out: Folder of the stage.
        provenance: Content of the checkpoints' `provenance.json`.
        report: Receives messages, progress and metrics.
        world: This process among those that train together.
        device: torch device.
        title: Name of the stage in messages.

    Returns:
        Folder of the last checkpoint.

    Raises:
        UserError: `out` holds another run, the loss is not finite, or a checkpoint cannot be saved.
        KeyboardInterrupt: The training was interrupted.
    """
    world = world or World()
    if world.rank == 0:
        out.mkdir(exist_ok=True)
    model.to(device).train()
    optims = optimizers(model, config)
    half = _half(config.precision, device)
    last = checkpoints.latest(out)
    settings = asdict(config) | identity(model, data)
    start = checkpoints.restore(last, model, optims, settings, report.say) if last else 0
    if last and FIRST_SAMPLE not in checkpoints.settings_of(last):  # saved when each stage began at sample 0
        data = replace(data, first=0)
        del settings[FIRST_SAMPLE]
    if world.rank == 0:
        checkpoints.sweep(out, start)
    if start:
        report.say(f"{title}: resuming after step {start}")
    groups = [group for optim in optims for group in optim.param_groups]
    trained = [p for group in groups for p in group["params"]]
    stream = _stream(data, start, config)
    metrics = Metrics(out, start, report.say) if world.rank == 0 else None
    began, done = time.perf_counter(), start
    window: list[dict[str, float]] = []
    stop = False

    with report.bar(title, config.steps, start) as bar, stop_on_signals() as stopped:
        for step in range(start, config.steps):
            for group in groups:
                group["lr"] = group["full_lr"] * config.rate(step)
            parts = []
            for _ in range(config.passes):
                found = losses(model, *next(stream), config, device, half)
                (found["total"] / config.passes).backward()
                parts.append(torch.stack([x.detach() for x in found.values()]))
            loss = torch.stack(parts).mean(0)
            asked = loss.new_tensor(
                [float(stopped() or world.asked_to_stop)]
            )  # all must stop at the same step
            world.average([loss, asked, *(p.grad for p in trained if p.grad is not None)])
            norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
            if not (loss.isfinite().all() and norm.isfinite()):
                raise UserError(_diverged(step, config, out))
            for optim in optims:
                optim.step()
                optim.zero_grad(set_to_none=True)
            window.append(dict(zip(found, loss.tolist(), strict=True)) | {"grad_norm": float(norm)})

            number, final, stop = step + 1, step + 1 == config.steps, bool(asked > 0)
            values: dict[str, float] = {}
            if number % config.log_every == 0 or final or stop:
                speed = (number - done) * config.batch / (time.perf_counter() - began)
                values = {k: sum(w[k] for w in window) / len(window) for k in window[0]}
                values = {"loss": values.pop("total"), **values, "lr": groups[0]["lr"]}
                values["samples_per_s"] = round(speed, 2)
                window, began, done = [], time.perf_counter(), number
                bar.to(number, f"loss {values['loss']:.3f}, {speed:.0f} samples/s")
            else:
                bar.to(number, f"loss {window[-1]['total']:.3f}")
            if held_out is not None and (number % config.eval_every == 0 or final):
                values["held_out"] = validate(model, held_out, config, device, half)
            if values and metrics:
                metrics.write(number, values)
                report.tracker.log({f"{title}/{k}": v for k, v in {"step": number, **values}.items()})
            if (number % config.save_every == 0 or final or stop) and world.rank == 0:
                last = checkpoints.save(out, number, model, optims, settings, provenance)
            world.barrier()
            if stop:
                break
        stop = stop or stopped()  # a signal after the last step
    if metrics:
        metrics.close()
        _plot(model, out, title, report)
    if stop:
        report.say(
            f"{title}: interrupted. Step {number_of(last)} is saved in {last}. Rerun the same command to resume."
        )
        raise KeyboardInterrupt
    return last or checkpoints.step_folder(out, config.steps)


def number_of(checkpoint: Path | None) -> int:
    """Finished steps of a checkpoint, from its name."""
    return int(checkpoint.name[5:]) if checkpoint else 0


def _plot(model: VLA, out: Path, title: str, report: Report) -> None:
    if model.vlm.queries is not None:
        what = "LangForce: action loss less the gain in likelihood"
    else:
        what = f"weighted L1 on {'noise' if model.expert.config.prediction == 'noise' else 'action codes'}"
    try:
        plot_losses(out, title, what)
    except OSError as error:
        report.say(f"{out / 'loss.png'} cannot be written: {reason(error)}.")


def identity(model: VLA, data: Batches) -> dict[str, Any]:
    """Settings of samples and VLM that must be the same to resume a run."""
    samples = data.samples
    return {
        "images": samples.hash,
        "data settings": digest(samples.config.identity()),
        "seed": samples.seed,
        FIRST_SAMPLE: data.first,
        "vlm": model.spec.name,
        "queries": model.spec.queries,
        "plain_words": model.spec.plain_words,
        "vlm_mode": model.spec.mode,
    }


@torch.no_grad()
def validate(model: VLA, held_out: Batches, config: TrainConfig, device: str, half: bool) -> float:
    """Mean loss over the first held-out samples: the same samples and the same noise every time."""
    model.eval()
    count = max(1, config.eval_samples // held_out.size)
    once = replace(config, draws=1)
    found = [float(losses(model, *held_out[m], once, device, half)["total"]) for m in range(count)]
    model.train()
    return sum(found) / count


def _stream(data: Batches, start: int, config: TrainConfig) -> Iterator[tuple[Batch, Inputs]]:
    numbers = range(start * config.passes, config.steps * config.passes)
    loader = DataLoader(
        data, batch_size=None, sampler=numbers, num_workers=config.loaders, worker_init_fn=_ignore_ctrl_c
    )
    return iter(loader)


def _ignore_ctrl_c(_: int) -> None:
    """Keep a loader process alive until the training process has saved; the terminal sends Ctrl-C to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _half(precision: str, device: str) -> bool:
    if precision == "auto":
        return device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _diverged(step: int, config: TrainConfig, out: Path) -> str:
    last = checkpoints.latest(out)
    first = step * config.batch
    return (
        f"The loss is not finite at step {step} (samples {first} to {first + config.batch - 1}). "
        + (f"{last} holds the last good weights. " if last else "No checkpoint was saved yet. ")
        + f"Start again with a lower lr (now {config.lr:g}), a longer warmup (now {config.warmup}), or precision: fp32."
    )
