"""Micro-batches for the training loop: robot state, targets, and prompts or cached features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from apt_bench.models.inputs import VLFeatures
from apt_bench.models.langforce import Branches
from apt_bench.models.vla import VLA
from apt_bench.models.vlm import Prompt
from apt_bench.training.samples.features import FeatureCache
from apt_bench.training.samples.stream import Batch, Picks, Samples

Inputs = Prompt | Branches | VLFeatures
"""What the VLM's side of a batch may be: prompts, those of both LangForce branches, or cached features."""


def prepare(model: VLA, samples: Samples, picks: Picks) -> Prompt | Branches:
    """Prompts of these samples, without an instruction if the model is blind; for LangForce those of both branches."""
    present = np.stack([e.present for e in picks.episodes])
    views = samples.images(picks.rows, picks.versions, present)
    prompt = model.vlm.prepare(views, picks.instructions, blind=model.blind)
    if model.vlm.queries is None:
        return prompt
    return Branches(prompt, model.vlm.prepare(views, picks.instructions, queries_first=True))


@dataclass(frozen=True)
class Batches(TorchDataset):
    """Micro-batches by number: batch m holds the samples first + m * size ... first + m * size + size - 1.

    Each of several processes gets its own part of every batch. It has no state, so loader processes may share it.

    Attributes:
        samples: The stream of samples.
        model: Policy network; its VLM prepares the prompts.
        size: Samples per micro-batch, over all processes.
        cache: Features, if they are cached.
        rank: Number of this process.
        world: Number of processes.
        first: Number of the first sample.
    """

    samples: Samples
    model: VLA
    size: int
    cache: FeatureCache | None = None
    rank: int = 0
    world: int = 1
    first: int = 0

    def __getitem__(self, m: int) -> tuple[Batch, Inputs]:
        part = self.size // self.world
        first = self.first + m * self.size + self.rank * part
        numbers = range(first, first + part)
        picks = self.samples.pick(numbers)
        batch = self.samples.batch(numbers, picks)
        if self.cache is not None:
            return batch, self.cache(picks.rows, picks.versions)
        return batch, prepare(self.model, self.samples, picks)
