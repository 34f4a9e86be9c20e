"""Settings of a training as frozen dataclasses. They are built once (`recipe.load_recipe`) and passed down."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from apt_bench.core.config import Count, Natural, Positive, Range, Share, check_fields
from apt_bench.core.errors import UserError
from apt_bench.demos import demonstration
from apt_bench.demos.demonstration import STORED_NAMES, stored_names
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.models.action_codes import Stride


def stored_fields(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass under the names that digests use."""
    return stored_names(asdict(settings))


def current_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping from YAML, in which old names of fields are replaced by the current ones, at every level.

    Raises:
        UserError: A mapping has a field under both names.
    """
    for new, old in STORED_NAMES.items():
        if new in raw and old in raw:
            raise UserError(f"'{old}' is the old name of '{new}'. Give '{new}' only.")
    inner = {k: current_names(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    return demonstration.current_names(inner)


Part = Annotated[float, Range(least=0, most=1)]
Sigma = Annotated[float, Range(least=0, most=100)]


@dataclass(frozen=True)
class AugmentConfig:
    """Image augmentation. The ranges are those of the released APT.

    Attributes:
        enabled: Whether images are augmented.
        copies: Number of augmented versions of each frame. 0 = a new version for every sample; features cannot be
            cached then.
        jitter: Half width of the factors of brightness, contrast and saturation around 1.
        gamma: Half width of the gamma exponent around 1.
        blur_chance: Probability of Gaussian blur.
        blur_sigma: Range of the blur's standard deviation, in pixels of the scaled image. The release states none.
        shuffle_views: Whether the order of the views is shuffled.
    """

    enabled: bool = True
    copies: Annotated[int, Range(least=0, most=10_000)] = 0
    jitter: Part = 0.25
    gamma: Part = 0.15
    blur_chance: Part = 1 / 7
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 1.0)
    shuffle_views: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "data.augment")
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise UserError(f"data.augment: blur_sigma is {self.blur_sigma}; give the smaller value first.")

    def version(self, rng: np.random.Generator, sample: int) -> int:
        """The version of its frame that sample number `sample` shows."""
        if not self.enabled:
            return 0
        return int(rng.integers(self.copies)) if self.copies else sample


@dataclass(frozen=True)
class LabelConfig:
    """Which demonstrations keep their instruction. The held-out ones keep theirs.

    Attributes:
        count: Number of demonstrations of each dataset that keep it, spread evenly over those that name one of `nouns`,
            so that all tasks are among them. None = all demonstrations.
        nouns: Words or phrases; () = any instruction counts.
        unlabelled: Who uses the others: `blind` = every stage, with an empty instruction; `stage1` = Stage 1 only.
        share: Share of the samples that have an instruction, where both kinds are drawn; None = demonstrations are
            drawn uniformly.
    """

    count: Count | None = None
    nouns: tuple[str, ...] = ()
    unlabelled: Literal["blind", "stage1"] = "blind"
    share: Part | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data.labels")
        if self.count is None and (self.nouns or self.unlabelled != "blind" or self.share is not None):
            raise UserError(
                "data.labels has no count. Give the number of demonstrations that keep their instruction."
            )

    def share_in(self, stage: int) -> float | None:
        """Probability that a sample of this stage (1 or 2) has an instruction; None = demonstrations are uniform."""
        return 1.0 if stage == 2 and self.unlabelled == "stage1" else self.share

    def names_noun(self, instruction: str) -> bool:
        """Whether an instruction names one of `nouns`; always true without nouns."""
        found = rf"\b({'|'.join(map(re.escape, self.nouns))})\b"
        return not self.nouns or re.search(found, instruction, re.IGNORECASE) is not None

    def chosen(self, instructions: Sequence[str]) -> list[bool]:
        """Whether each of these demonstrations keeps its instruction."""
        named = [i for i, text in enumerate(instructions) if self.names_noun(text)]
        count = len(named) if self.count is None else min(self.count, len(named))
        kept = {named[k * len(named) // count] for k in range(count)}
        return [i in kept for i in range(len(instructions))]


Weight = Annotated[float, Range(above=0, most=1e9)]


@dataclass(frozen=True)
class DataConfig:
    """The demonstrations, and how samples are drawn from them.

    Attributes:
        data: Files or folders of demonstrations, or hub ids.
        weights: How often each entry of `data` is sampled, relative to the others; () = equally.
        cameras: Names of the cameras, in the order of the views.
        stride: Control steps from one action of a chunk to the next.
        image_every: Control steps from one decision to the next. Larger values need fewer images and features; action
            chunks still use every step. Where demonstrations were recorded with fewer images, only the steps with
            an image are decisions.
        drop_noops: Whether steps without a motion command are left out, see `episodes.idle`.
        held_out: Share of each dataset's episodes that is kept for validation.
        reference: Camera in whose axes actions are coded; empty = drawn per sample, as the release does.
        rotate_world: Whether each sample gets a random world frame, as in the release (`RobotState.recentred`).
        augment: Image augmentation.
        labels: Which demonstrations keep their instruction.
        word_share: Share of the samples in which the next motion depends on the noun of the instruction
            (`word_needed.needs_word`; demonstrations of the tabletop only); None = decisions are drawn uniformly.
    """

    data: tuple[str, ...] = ()
    weights: tuple[Weight, ...] = ()
    cameras: tuple[str, ...] = (AGENTVIEW, WRIST)
    stride: Stride = 1
    image_every: Count = 1
    drop_noops: bool = True
    held_out: Share = 0.05
    reference: str = ""
    rotate_world: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    word_share: Part | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data")
        for name in ("data", "cameras"):
            several = getattr(self, name)
            if twice := next((v for i, v in enumerate(several) if v in several[:i]), None):
                raise UserError(
                    f"data.{name} lists '{twice}' twice. To sample a dataset more often, give it a weight."
                )
        if not self.cameras:
            raise UserError("data.cameras is empty. Name at least one camera.")
        if self.weights and len(self.weights) != len(self.data):
            raise UserError(
                f"data.weights {self.weights}: expected one positive number for each of {len(self.data)} datasets."
            )
        if self.reference and self.reference not in self.cameras:
            raise UserError(
                f"data.reference '{self.reference}' is not among data.cameras {', '.join(self.cameras)}."
            )

    def identity(self) -> dict[str, Any]:
        """The settings, without the paths, that decide which samples are drawn. Settings that older versions did not
        have are left out at their defaults, so that digests of those versions stay valid."""
        fields = stored_fields(self)
        newer = {"labels": asdict(LabelConfig()), "word_share": None}
        return {k: v for k, v in fields.items() if k != "data" and (k not in newer or v != newer[k])}

    def weight(self, index: int) -> float:
        """How often dataset number `index` of `data` is sampled, relative to the others."""
        return float(self.weights[index]) if self.weights else 1.0


Rate = Annotated[float, Range(least=0)]
"""A learning rate, a decay, a weight in a loss."""


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training. The defaults are those of the code released with APT (arXiv 2606.12366).

    Attributes:
        steps: Optimizer steps.
        batch: Samples per optimizer step.
        micro: Samples per forward pass; 0 = the whole batch. Gradients accumulate over batch / micro passes.
        optimizer: `muon` = Muon for the matrices of transformer blocks and AdamW for all other parameters.
        draws: Noise levels per sample and step. The observation is encoded once for all of them.
        lr: Learning rate of the expert.
        new_block_lr: Learning rate of the blocks that Stage 2 adds to the prior's; None = `lr` (released). In one stage
            every block is new and trains at `lr`.
        vlm_lr: Learning rate of the VLM.
        weight_decay: Weight decay of the expert.
        vlm_weight_decay: Weight decay of the VLM.
        warmup: Steps of linear warm-up.
        schedule: Learning rate after the warm-up: constant, or cosine decay to 0.
        clip: Largest gradient norm.
        precision: `auto` = bf16 autocast on a GPU that supports it, else fp32.
        log_every: Steps between two rows of `metrics.jsonl`.
        eval_every: Steps between two validation losses.
        eval_samples: Held-out samples that the validation loss averages over.
        save_every: Steps between two checkpoints.
        loaders: Processes that prepare batches; 0 = the training process itself.
        prior_share: Lambda of LangForce (models/langforce.py); used by that recipe only.
        llr_weight: Beta of LangForce; used by that recipe only.
    """

    steps: Count = 100_000
    batch: Annotated[int, Range(least=1, most=10**6)] = 256
    micro: Natural = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    draws: Annotated[int, Range(least=1, most=1000)] = 1
    lr: Rate = 1e-4
    new_block_lr: Rate | None = None
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
        """The learning rate of step 0, 1, ... as a share of the full rate."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "constant" or step < self.warmup:
            return warm
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))


OBSERVATIONS_PER_SCENE = 2
"""Observations rendered of each pretraining scene: one at the suites' start, one at a random pose of arm and camera."""


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of the mini VLM.

    Attributes:
        scenes: Scenes to render; each gives two observations of two images.
        held_out: Number of scenes, the last ones, that are kept for measuring the grounding of nouns.
        sentences: Sentences per observation and step.
        source: Where the scenes come from.
        cells: Cells of the suite libero_drawn, for the source `libero`.
        start: Folder of a mini VLM whose weights and words it starts from, or `shipped`; empty = a new one.
        places: Whether it learns where things are: from the places, points and attention of nouns and the centres of
            objects. False = from captions and from the objects that visual tokens show only.
        more_containers: Whether scenes of the tabletop also show those of `seen6` (`layouts.CONTAINER_SETS`).
        train: Steps, batch and optimizer settings.
    """

    scenes: Annotated[int, Range(least=2, most=10**6)] = 14_000
    held_out: Count = 200
    sentences: Annotated[int, Range(least=1, most=1000)] = 8
    source: Literal["tabletop", "libero"] = "tabletop"
    cells: tuple[str, ...] = ()
    start: str = ""
    places: bool = True
    more_containers: bool = False
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_fields(self, "pretrain")
        if bool(self.cells) != (self.source == "libero"):
            raise UserError(
                f"pretrain: source is {self.source} and cells are [{', '.join(self.cells)}]. The source libero needs "
                "cells of the suite libero_drawn, and the tabletop takes none."
            )
        observations = OBSERVATIONS_PER_SCENE * (self.scenes - self.held_out)
        if observations < self.train.batch:
            raise UserError(
                f"pretrain: {self.scenes} scenes less {self.held_out} held out give {max(0, observations)} "
                f"observations, fewer than a batch of {self.train.batch}. Give more scenes, or a smaller "
                "pretrain.train.batch."
            )


@dataclass(frozen=True)
class SuiteEpisodes:
    """Episodes of a suite: to collect as demonstrations, or to evaluate the trained policy on.

    Attributes:
        suite: Name or file of the suite; empty = none.
        cells: Names of its cells.
        episodes: Episodes per task.
        limit: The first episodes only; None = all.
        size: Side of collected images, in pixels.
        image_every: Control steps from one collected image to the next.
        policy_args: Arguments NAME=VALUE of the expert, or of the trained policy.
        execute: Execute horizon in control steps; None = the policy's own.
    """

    suite: str = ""
    cells: tuple[str, ...] = ()
    episodes: Count = 1
    limit: Count | None = None
    size: Annotated[int, Range(least=8, most=4096)] = 128
    image_every: Count = 1
    policy_args: tuple[str, ...] = ()
    execute: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "Episodes of a suite")
