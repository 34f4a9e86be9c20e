"""Denoising diffusion over action codes: the noise schedule, the training target and the 20-step sampler.

It equals diffusers' DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2",
prediction_type="epsilon", clip_sample=False), which the released APT uses for training and sampling. Schedule:
Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17; sampler: Song et al. 2020 (arXiv 2010.02502), equation 12
with eta = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from apt_bench.models.action_codes import GRIPPER, POSITION, ROTATION

TRAIN_STEPS = 100
SAMPLE_STEPS = 20
LOSS_WEIGHTS = {"position": 30.0, "rotation": 10.0, "gripper": 10.0}


@cache
def signal_levels(steps: int = TRAIN_STEPS) -> Tensor:
    """abar_t, t = 0 ... steps-1: fraction of signal variance after t+1 noising steps. float32, (steps,)."""

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), 0)


@cache
def _factors() -> Tensor:
    """sqrt(abar_t) and sqrt(1 - abar_t) for t = 0 ... TRAIN_STEPS-1, then those of a clean sample, (2, steps+1)."""
    levels = torch.cat([signal_levels(), torch.ones(1)])
    return torch.stack([levels.sqrt(), (1 - levels).sqrt()])


@cache
def _rows() -> list[tuple[Tensor, Tensor]]:
    """The two factors of each step, as scalars; the last ones are those of a clean sample."""
    signal, rest = _factors()
    return list(zip(signal.unbind(), rest.unbind(), strict=True))


def _per_sample(t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t) of each sample of `like`."""
    found = _factors()[:, t.cpu()].to(like.device, like.dtype)
    signal, noise = found.reshape(2, -1, *[1] * (like.dim() - 1)).unbind()
    return signal, noise


def add_noise(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps, for a = `clean` and eps = `noise` (B, ...), `t` (B,) integer."""
    signal, rest = _per_sample(t, clean)
    return signal * clean + rest * noise


def implied_noise(noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The noise eps for which `add_noise` gives x_t = `noisy` from a = `clean`."""
    signal, rest = _per_sample(t, noisy)
    return (noisy - signal * clean) / rest


def ddim_timesteps(steps: int = SAMPLE_STEPS) -> list[int]:
    """Diffusion steps of the sampler, with "leading" spacing: 95, 90, ..., 0 for 20 steps."""
    stride = TRAIN_STEPS // steps
    return [i * stride for i in reversed(range(steps))]


def ddim_step(x: Tensor, eps: Tensor, t: int, stride: int) -> Tensor:
    """One deterministic step t -> t - stride. Below 0 the signal level is 1, so the last step returns x0."""
    (signal, rest), (later_signal, later_rest) = _rows()[t], _rows()[max(t - stride, -1)]
    clean = (x - rest * eps) / signal
    return later_signal * clean + later_rest * eps


def ddim_sample(denoise: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int = SAMPLE_STEPS) -> Tensor:
    """Sample with DDIM, in float32.

    Args:
        denoise: Predicts the noise: `denoise(x_t, t) -> eps`.
        noise: Gaussian noise, (B, ...).
        steps: Number of denoising steps.

    Returns:
        The clean sample, of the shape of `noise`.
    """
    x = noise
    for t in ddim_timesteps(steps):
        x = ddim_step(x, denoise(x, t).float(), t, TRAIN_STEPS // steps)
    return x


def code_losses(predicted: Tensor, wanted: Tensor, arm_valid: Tensor) -> dict[str, Tensor]:
    """L1 losses: total = 30 position + 10 rotation + 10 gripper, each a mean over all elements of the valid arms.

    Args:
        predicted: The network's output, (B, E, T, 10); in the released form the noise.
        wanted: The target, (B, E, T, 10).
        arm_valid: Arms that exist, (B, E) bool.

    Returns:
        `position`, `rotation` and `gripper` (unweighted means) and `total`.
    """
    error = (predicted - wanted).abs()[arm_valid]
    parts = {
        "position": error[..., POSITION],
        "rotation": error[..., ROTATION],
        "gripper": error[..., GRIPPER],
    }
    losses = {name: part.mean() for name, part in parts.items()}
    return losses | {"total": torch.stack([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()}
