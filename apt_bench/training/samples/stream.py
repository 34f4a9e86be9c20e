"""Demonstrations as an endless, numbered stream of training samples.

Sample n is a pure function of (seed, n): a dataset by weight, then an episode, a decision step and a reference camera,
each uniformly, as in the code released with APT (arXiv 2606.12366). There is no hidden random state: a resumed run asks
for the numbers that it has not used yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.text import say as say_on_stderr
from apt_bench.demos.dataset import Demos, open_demos
from apt_bench.envs.base import unmirrored
from apt_bench.models.action_codes import encode_chunk
from apt_bench.models.inputs import RobotState, fractional_intrinsics
from apt_bench.training.cache import digest
from apt_bench.training.config import AugmentConfig, DataConfig, LabelConfig
from apt_bench.training.progress import Say, Tick
from apt_bench.training.samples.augment import augment, view_order
from apt_bench.training.samples.episodes import Episode, read_episode
from apt_bench.training.samples.frames import FrameStore, open_frames
from apt_bench.training.samples.sources import find_all
from apt_bench.training.samples.word_needed import needs_word


@dataclass(frozen=True)
class Picks:
    """The samples of a batch: where each comes from.

    Attributes:
        rows: (B,) Frame rows, counted over the whole mixture.
        versions: (B,) Augmented versions of the frames.
        episodes: Episode of each sample.
        steps: (B,) Steps within the episodes.
        orders: (B, V) Order of the views.
        instructions: Instruction of each sample.
    """

    rows: np.ndarray
    versions: np.ndarray
    episodes: tuple[Episode, ...]
    steps: np.ndarray
    orders: np.ndarray
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Input and target of an expert.

    Attributes:
        robot: State of robot and cameras.
        target: (B, 1, T, 10) Action codes.
        rotation: (B, 3, 3) Random rotation of the world frame.
        noise_seed: Seed of the noise that the loss adds.
    """

    robot: RobotState
    target: Tensor
    rotation: Tensor
    noise_seed: int

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(self.robot.to(device), self.target.to(device), self.rotation.to(device), self.noise_seed)


@dataclass(frozen=True)
class Dataset:
    """One dataset of a mixture; it has at least one episode.

    Attributes:
        episodes: The episodes.
        first_row: Frame row of each episode's first decision.
        frames: The images.
        fingerprint: `Demos.fingerprint`.
        name: The name or path it was given by.
        weight: How often it is sampled, relative to the others.
        labelled: Numbers of the episodes that keep their instruction (`LabelConfig`).
        needs_word: Whether the decision of each frame row needs the word; None = not determined
            (`DataConfig.word_share`).
    """

    episodes: tuple[Episode, ...]
    first_row: np.ndarray
    frames: FrameStore
    fingerprint: str
    name: str = ""
    weight: float = 1.0
    labelled: tuple[int, ...] = ()
    needs_word: np.ndarray | None = None

    @cached_property
    def unlabelled(self) -> tuple[int, ...]:
        """Numbers of the episodes whose instruction was removed."""
        return tuple(sorted(set(range(len(self.episodes))) - set(self.labelled)))

    def draw(
        self, rng: np.random.Generator, label_share: float | None, word_share: float | None
    ) -> tuple[int, int]:
        """Draw an episode and one of its decisions. Where nothing is of the kind that was drawn, the kind is ignored.

        Args:
            rng: Source of the draws.
            label_share: Probability of a labelled episode; None = uniform.
            word_share: Probability of a decision that needs the word; None = uniform.

        Returns:
            Numbers of the episode and of its decision.
        """
        episodes: Sequence[int] = range(len(self.episodes))
        if label_share is not None and 0 < len(self.labelled) < len(episodes):
            labelled = label_share == 1 or rng.random() < label_share
            episodes = self.labelled if labelled else self.unlabelled
        if word_share is None or self.needs_word is None:
            index = episodes[int(rng.integers(len(episodes)))]
            return index, int(rng.integers(len(self.episodes[index].decisions)))
        lengths = [len(e.decisions) for e in self.episodes]
        allowed = np.repeat(np.isin(np.arange(len(self.episodes)), episodes), lengths)
        wanted = allowed & (self.needs_word == (rng.random() < word_share))
        rows = np.flatnonzero(wanted if wanted.any() else allowed)
        row = int(rows[rng.integers(len(rows))])
        index = int(np.searchsorted(self.first_row, row, "right")) - 1
        return index, row - int(self.first_row[index])


@dataclass(frozen=True)
class Samples:
    """The stream of samples.

    Attributes:
        datasets: The mixture.
        config: How samples are drawn.
        horizon: Actions in a chunk.
        seed: Seed of all draws.
        label_share: Probability that a labelled episode is drawn; None = uniform.
    """

    datasets: tuple[Dataset, ...]
    config: DataConfig
    horizon: int
    seed: int
    label_share: float | None = None

    @property
    def rows(self) -> int:
        """Number of frames in all datasets together."""
        return sum(len(d.frames.images) for d in self.datasets)

    @property
    def hash(self) -> str:
        """Digest of all images."""
        return digest([d.frames.hash for d in self.datasets])

    def decisions(self) -> list[tuple[Episode, int]]:
        """Episode and step of every frame row."""
        return [(e, step) for d in self.datasets for e in d.episodes for step in e.decisions.tolist()]

    def pick(self, numbers: Sequence[int] | range) -> Picks:
        """Draw the samples of these numbers."""
        weights = np.array([d.weight for d in self.datasets])
        bounds = np.cumsum(weights / weights.sum())
        offsets = np.cumsum([0, *(len(d.frames.images) for d in self.datasets)])
        rows, versions, episodes, steps = [], [], [], []
        for n in numbers:
            rng = np.random.default_rng((self.seed, 1, n))
            which = min(int(np.searchsorted(bounds, rng.random(), "right")), len(self.datasets) - 1)
            dataset = self.datasets[which]
            index, decision = dataset.draw(rng, self.label_share, self.config.word_share)
            episode = dataset.episodes[index]
            rows.append(int(offsets[which] + dataset.first_row[index]) + decision)
            versions.append(self.config.augment.version(rng, n))
            episodes.append(episode)
            steps.append(int(episode.decisions[decision]))
        views = len(self.config.cameras)
        orders = [view_order(self.config.augment, r, v, views) for r, v in zip(rows, versions, strict=True)]
        instructions = tuple(e.instruction for e in episodes)
        return Picks(
            np.array(rows),
            np.array(versions),
            tuple(episodes),
            np.array(steps),
            np.stack(orders),
            instructions,
        )

    def batch(self, numbers: Sequence[int] | range, picks: Picks) -> Batch:
        """Robot state and targets of the samples `picks`, drawn for these numbers."""
        K, camera, present, ee, ref, openness, pose, opened, turn = ([] for _ in range(9))
        for i, n in enumerate(numbers):
            episode, step, order = picks.episodes[i], int(picks.steps[i]), picks.orders[i]
            rng = np.random.default_rng((self.seed, 2, n))
            reference = self._reference(episode, rng)
            K.append(episode.K[order])
            camera.append(episode.camera_pose[step][order])
            present.append(episode.present[order])
            ee.append(episode.ee_pose[step][None])
            ref.append(episode.camera_pose[step, reference][None])
            openness.append(episode.openness[step : step + 1])
            target = episode.chunk(step, self.horizon, self.config.stride)
            pose.append(target[0])
            opened.append(target[1])
            turn.append(
                Rotation.random(random_state=rng).as_matrix() if self.config.rotate_world else np.eye(3)
            )
        target_pose, target_open, ee_pose, ref_pose = (
            torch.from_numpy(np.stack(x)) for x in (pose, opened, ee, ref)
        )
        code = encode_chunk(target_pose[:, None], target_open[:, None], ee_pose, ref_pose)
        robot = RobotState(
            camera_pose=_float(camera),
            intrinsics=_float(K),
            camera_present=torch.from_numpy(np.stack(present)),
            ee_pose=ee_pose.float(),
            ref_pose=ref_pose.float(),
            openness=_float(openness),
            arm_valid=torch.ones(len(ee), 1, dtype=torch.bool),
        )
        seed = int(np.random.SeedSequence((self.seed, 3, numbers[0])).generate_state(1, np.uint64)[0] >> 1)
        return Batch(robot, code.float(), _float(turn), seed)

    def _reference(self, episode: Episode, rng: np.random.Generator) -> int:
        if self.config.reference:
            return self.config.cameras.index(self.config.reference)
        return int(rng.choice(np.flatnonzero(episode.present)))

    def images(
        self, rows: np.ndarray, versions: np.ndarray, present: np.ndarray
    ) -> list[list[np.ndarray | None]]:
        """The images of frames, augmented.

        Args:
            rows: (B,) Frame rows.
            versions: (B,) Augmented versions.
            present: (B, V) bool, which cameras exist.

        Returns:
            For each frame its views in their version's order; None for a missing camera.
        """
        config, out = self.config.augment, []
        for row, version, cameras in zip(rows.tolist(), versions.tolist(), present, strict=True):
            shown = augment(self._frame(row), config, row, version)
            order = view_order(config, row, version, len(shown))
            out.append([shown[v] if cameras[v] else None for v in order])
        return out

    def _frame(self, row: int) -> np.ndarray:
        for dataset in self.datasets:
            if row < len(dataset.frames.images):
                return np.asarray(dataset.frames.images[row])
            row -= len(dataset.frames.images)
        raise IndexError(row)


def _float(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float()


def open_samples(
    config: DataConfig,
    horizon: int,
    seed: int,
    fit: tuple[int, int],
    cache: Path,
    tick: Tick | None = None,
    say: Say = say_on_stderr,
) -> tuple[Samples, Samples | None]:
    """Read demonstrations and prepare their images.

    A dataset without a usable demonstration is left out of the mixture; the others keep their weights, and `say` gets a
    message.

    Args:
        config: The data, and how samples are drawn.
        horizon: Actions in a chunk.
        seed: Seed of the draws.
        fit: (height, width) in pixels of the VLM's images.
        cache: Folder of the cache.
        tick: Called with the number of demonstrations whose images are prepared.
        say: Receives messages.

    Returns:
        Training samples, and held-out samples, None if nothing is held out.

    Raises:
        UserError: Data are missing, damaged or uncalibrated, or no demonstration is left.
    """
    if not config.data:
        raise UserError(
            "No data to train on. Give --data PATH (demonstrations of `apt-bench collect`, or a hub id)."
        )
    kept: list[Dataset] = []
    out: list[Dataset] = []
    for index, (name, path) in enumerate(zip(config.data, find_all(config.data), strict=True)):
        demos = open_demos(path).successes
        train, held = demos.split(config.held_out)
        stamp, weight = _stamp(demos), config.weight(index)
        if found := _dataset(train, config, fit, cache, stamp, tick, say, name, weight, config.labels):
            kept.append(found)
        else:
            say(
                f"{name} has no successful demonstration. It is left out of the mixture"
                + (f", together with its weight {weight:g}." if config.weights else ".")
            )
        if found := _dataset(held, config, fit, cache, stamp, tick, say, name):
            out.append(found)
    if not kept:
        raise UserError(f"{', '.join(config.data)}: no usable demonstration to train on.")
    held_config = dataclasses.replace(
        config, augment=AugmentConfig(enabled=False), weights=(), rotate_world=False, word_share=None
    )
    held_out = Samples(tuple(out), held_config, horizon, seed) if out else None
    return Samples(tuple(kept), config, horizon, seed), held_out


def _dataset(
    demos: Demos,
    config: DataConfig,
    fit: tuple[int, int],
    cache: Path,
    stamp: str,
    tick: Tick | None,
    say: Say,
    name: str,
    weight: float = 1.0,
    labels: LabelConfig | None = None,
) -> Dataset | None:
    """None if no demonstration has a decision step. labels: None = all demonstrations keep their instruction."""
    every = [read_episode(demo, config) for demo in demos.only(())]
    useful = [i for i, episode in enumerate(every) if len(episode.decisions)]
    if len(useful) < len(every):
        say(
            f"{name}: {len(every) - len(useful)} of {len(every)} demonstrations are left out: every step with an "
            "image is a no-op."
        )
    if not useful:
        return None
    demos = dataclasses.replace(demos, entries=tuple(demos.entries[i] for i in useful))
    with_images, episodes = demos.only(config.cameras), tuple(every[i] for i in useful)
    steps = [e.kept[e.decisions] for e in episodes]
    frames = open_frames(
        with_images.__getitem__, steps, config.cameras, fit, f"{stamp} {demos.fingerprint}", cache, tick, say
    )
    height, width = frames.native
    blank = np.empty((height, width, 3), np.uint8)
    upright = [np.stack([unmirrored(blank, K)[1] for K in e.K]) for e in episodes]
    episodes = tuple(
        dataclasses.replace(e, K=fractional_intrinsics(torch.from_numpy(K), width, height).numpy())
        for e, K in zip(episodes, upright, strict=True)
    )
    first = np.cumsum([0, *map(len, steps)])[:-1]
    keeps = (labels or LabelConfig()).chosen([e.instruction for e in episodes])
    if not any(keeps):
        raise UserError(
            f"{name}: no instruction names one of data.labels.nouns ({', '.join(config.labels.nouns)})."
        )
    needed = None
    if config.word_share is not None and labels is not None:
        needed = np.concatenate(
            [needs_word(demo.info, e) for demo, e in zip(demos.only(()), episodes, strict=True)]
        )
    episodes = tuple(
        e if kept else dataclasses.replace(e, instruction="") for e, kept in zip(episodes, keeps, strict=True)
    )
    labelled = tuple(i for i, kept in enumerate(keeps) if kept)
    return Dataset(episodes, first, frames, demos.fingerprint, name, weight, labelled, needed)


def _stamp(demos: Demos) -> str:
    """A digest that changes with any file that is read. Raises UserError if one is missing."""
    files = sorted({file for entry in demos.entries for file in entry.files})
    try:
        return digest([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {reason(error)}.") from None
