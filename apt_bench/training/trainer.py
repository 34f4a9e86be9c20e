"""The training loop: one network, one stream of samples, one optimiser, until a number of steps is done.

Everything random is a function of sample numbers (`data.Samples`), so a run that was killed and resumed gives
the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apt_bench.core.config import Count, Natural, Positive, Range, check_fields
from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.signals import stop_on_signals
from apt_bench.models.base import is_decayed
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.langforce import Branches, langforce_loss
from apt_bench.models.vla import VLA
from apt_bench.models.vlm import Prompt
from apt_bench.training import saving
from apt_bench.training.cache import digest
from apt_bench.training.data import Batch
from apt_bench.training.features import Batches, Inputs
from apt_bench.training.muon import Muon
from apt_bench.training.progress import Metrics, Report, plot_losses

Rate = Annotated[float, Range(least=0)]
"""A learning rate, a decay, a weight in a loss."""


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training. Defaults: the released APT (METHOD 2.11).

    batch: samples per optimiser step; micro: samples per forward pass, 0 = all of them (gradients are
    accumulated over batch / micro passes). optimizer: `muon` = Muon for the matrices of transformer blocks, AdamW for
    all else. draws: noise levels tried per sample and step; what is seen is
    digested once for all. eval_samples: held-out samples that the validation loss averages over. loaders:
    processes that prepare batches, 0 = this one. precision `auto`: bf16 autocast on a GPU that has it, else
    fp32. prior_share, llr_weight: lambda and beta of LangForce (models/langforce.py), for that recipe alone.
    """

    steps: Count = 100_000
    batch: Annotated[int, Range(least=1, most=10**6)] = 256
    micro: Natural = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    draws: Annotated[int, Range(least=1, most=1000)] = 1
    lr: Rate = 1e-4
    vlm_lr: Rate = 1e-5
    weight_decay: Rate = 1e-2
    vlm_weight_decay: Rate = 1e-10
    warmup: Natural = 10_000
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Positive = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: Count = 50
    eval_every: Count = 1000
    eval_samples: Annotated[int, Range(least=1, most=10**6)] = 256
    save_every: Count = 1000
    loaders: Annotated[int, Range(least=0, most=256)] = 0
    prior_share: Annotated[float, Range(least=0, most=1)] = 0.3
    llr_weight: Rate = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "Training")
        if self.micro and self.batch % self.micro:
            raise UserError(f"Training: batch {self.batch} is not a multiple of micro {self.micro}.")

    @property
    def passes(self) -> int:
        """Forward passes per step."""
        return self.batch // (self.micro or self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ... as a share of the full one: linear warm-up, then constant or
        cosine to 0."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "constant" or step < self.warmup:
            return warm
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    stop: Path | None = None  # a file whose presence asks all of them to stop

    @property
    def asked_to_stop(self) -> bool:
        """Whether it is there."""
        return self.stop is not None and self.stop.exists()

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.size > 1:
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
            flat /= self.size
            for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                t.copy_(mean.view_as(t))

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


def optimizers(model: VLA, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW over what trains: expert weights with and without decay, and the VLM's at their own rate; or Muon for the
    matrices of both and AdamW for the rest."""
    found: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for part, module in (("expert", model.expert), ("vlm", model.vlm)):
        for name, p in module.named_parameters():
            if p.requires_grad:
                muon = config.optimizer == "muon" and is_matrix(name, p)
                found.setdefault((part, muon, part == "vlm" or is_decayed(name)), []).append(p)
    kinds: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for (part, muon, decayed), params in found.items():
        lr, decay = {
            "expert": (config.lr, config.weight_decay),
            "vlm": (config.vlm_lr, config.vlm_weight_decay),
        }[part]
        decay = decay if decayed else 0.0
        kinds[muon].append({"params": params, "lr": lr, "weight_decay": decay, "full_lr": lr})
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(kinds[False])]
    return [*out, Muon(kinds[True], config.lr)] if kinds[True] else out


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon trains it: the weight of a linear in a transformer block, of the expert or of a VLM's decoder."""
    return (
        p.ndim == 2 and ("blocks." in name or "layers." in name) and "norm" not in name and "lora" not in name
    )


def read(inputs: Prompt | VLFeatures, model: VLA, device: str) -> VLFeatures:
    """The features of prompts, or those that come from a cache, in float32."""
    if isinstance(inputs, VLFeatures):
        return inputs.to(device).map(lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)
    return model.features(inputs.to(device))


def losses(
    model: VLA, batch: Batch, inputs: Inputs, config: TrainConfig, device: str = "cpu", half: bool = False
) -> dict[str, Tensor]:
    """The losses of one micro-batch; gradients of `total` flow into whatever trains."""
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
        return model.expert.loss(read(inputs, model, device), batch.robot, batch.target, **options)


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
    """Train `model` in place for `config.steps` steps, or for what is left of them where `out` holds a
    checkpoint of the same run. Returns the last checkpoint folder.

    Ctrl-C and SIGTERM stop it after the step it is at, which is saved; a second one at once. Raises UserError where
    `out` holds another run, where the loss is not finite, or where a checkpoint cannot be saved; KeyboardInterrupt
    where it was stopped.
    """
    world = world or World()
    if world.rank == 0:
        out.mkdir(exist_ok=True)
    model.to(device).train()
    optims = optimizers(model, config)
    half = _half(config.precision, device)
    last = saving.latest(out)
    settings = asdict(config) | identity(model, data)
    start = saving.restore(last, model, optims, settings, report.say) if last else 0
    if world.rank == 0:
        saving.sweep(out, start)
    if start:
        report.say(f"{title}: going on after step {start}")
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
            asked = loss.new_tensor([float(stopped() or world.asked_to_stop)])  # all must stop at one step
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
                last = saving.save(out, number, model, optims, settings, provenance)
            world.barrier()
            if stop:
                break
        stop = stop or stopped()  # asked for after the last step, or where no step was left
    if metrics:
        metrics.close()
        _plot(model, out, title, report)
    if stop:
        report.say(
            f"{title}: interrupted. Step {number_of(last)} is saved in {last}; the same command goes on there."
        )
        raise KeyboardInterrupt
    return last or saving.step_folder(out, config.steps)


def number_of(checkpoint: Path | None) -> int:
    """The steps behind a checkpoint, by its name."""
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
    """What else must be the same for a run to go on: samples and VLM."""
    samples = data.samples
    return {
        "images": samples.hash,
        "data settings": digest({k: v for k, v in asdict(samples.config).items() if k != "data"}),
        "seed": samples.seed,
        "vlm": model.spec.name,
        "queries": model.spec.queries,
        "vlm_mode": model.spec.mode,
    }


@torch.no_grad()
def validate(model: VLA, held_out: Batches, config: TrainConfig, device: str, half: bool) -> float:
    """Mean loss over the first held-out samples: always the same ones, under the same noise."""
    model.eval()
    count = max(1, config.eval_samples // held_out.size)
    once = replace(config, draws=1)
    found = [float(losses(model, *held_out[m], once, device, half)["total"]) for m in range(count)]
    model.train()
    return sum(found) / count


def _stream(data: Batches, start: int, config: TrainConfig) -> Iterator[tuple[Batch, Inputs]]:
    numbers = range(start * config.passes, config.steps * config.passes)
    loader = DataLoader(
        data, batch_size=None, sampler=numbers, num_workers=config.loaders, worker_init_fn=_deaf_to_ctrl_c
    )
    return iter(loader)


def _deaf_to_ctrl_c(_: int) -> None:
    """A loader's process goes on until this one has saved; the terminal sends Ctrl-C to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _half(precision: str, device: str) -> bool:
    if precision == "auto":
        return device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _diverged(step: int, config: TrainConfig, out: Path) -> str:
    last = saving.latest(out)
    first = step * config.batch
    return (
        f"The loss is not finite at step {step} (samples {first} to {first + config.batch - 1}). "
        + (f"{last} holds the last good weights. " if last else "Nothing was saved yet. ")
        + f"Start again with a lower lr (now {config.lr:g}), a longer warmup (now {config.warmup}), or precision: fp32."
    )
