"""Where and how a training runs: folders, device, what it reports to, and the processes that train together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from apt_bench.core.errors import UserError
from apt_bench.training.cache import default_cache
from apt_bench.training.progress import Report


@dataclass(frozen=True)
class World:
    """The process's place among those that train together.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        stop: A file; when it exists, all processes save and stop.
    """

    rank: int = 0
    size: int = 1
    stop: Path | None = None

    @property
    def asked_to_stop(self) -> bool:
        """Whether the file `stop` exists."""
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
        """Wait for the other processes."""
        if self.size > 1:
            dist.barrier()


@dataclass(frozen=True)
class Session:
    """Where and how a recipe runs. Nothing here changes the result.

    Attributes:
        out: Folder of the run.
        cache: Folder of prepared images and features.
        report: Receives messages, progress and metrics.
        world: This process among those that train together.
        device: torch device.
    """

    out: Path
    cache: Path = field(default_factory=default_cache)
    report: Report = field(default_factory=lambda: Report(None))
    world: World = field(default_factory=World)
    device: str = "cpu"


def require_folder(out: Path) -> None:
    """Check that the run's folder still exists. A new, empty one would hide the checkpoints of the old one.

    Raises:
        UserError: It does not exist.
    """
    if not out.is_dir():
        raise UserError(
            f"{out} was moved or deleted. Put it back and rerun the same command to resume from its last checkpoint."
        )
