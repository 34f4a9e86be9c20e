"""Demonstrations as training samples: a numbered, endless stream in which sample n is a pure function of
(seed, n).

Each sample picks a dataset by weight, then an episode, then a step, each uniformly, then a reference camera
(released APT, METHOD 2.3 and 2.11). There is no hidden random state: a resumed run asks for the numbers it
has not seen yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
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
from apt_bench.models.actions import encode_chunk
from apt_bench.models.inputs import RobotState, fractional_intrinsics
from apt_bench.training.augment import AugmentConfig, augment, view_order
from apt_bench.training.cache import Say, Tick, digest
from apt_bench.training.episodes import DataConfig, Episode, read_episode
from apt_bench.training.episodes import idle as idle
from apt_bench.training.frames import FrameStore, open_frames


@dataclass(frozen=True)
class Picks:
    """Which samples a batch holds: per sample its dataset's frame row, version, episode and step."""

    rows: np.ndarray  # (B,) frame rows of the whole mixture
    versions: np.ndarray
    episodes: tuple[Episode, ...]
    steps: np.ndarray
    orders: np.ndarray  # (B, V) view order
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """What an expert is trained on: target (B, 1, T, 10) action codes, the turn of the world `rotation` (B,
    3, 3), and the seed of the noise that is added."""

    robot: RobotState
    target: Tensor
    rotation: Tensor
    noise_seed: int

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(self.robot.to(device), self.target.to(device), self.rotation.to(device), self.noise_seed)


@dataclass(frozen=True)
class Dataset:
    """One dataset of a mixture, never empty: the name it was given by, its weight in the mixture, its episodes, and the
    frame row of each episode's first decision."""

    episodes: tuple[Episode, ...]
    first_row: np.ndarray
    frames: FrameStore
    fingerprint: str
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Samples:
    """The stream. `horizon`: actions in a chunk."""

    datasets: tuple[Dataset, ...]
    config: DataConfig
    horizon: int
    seed: int

    @property
    def rows(self) -> int:
        """Frames in all datasets together."""
        return sum(len(d.frames.images) for d in self.datasets)

    @property
    def hash(self) -> str:
        """Of all images."""
        return digest([d.frames.hash for d in self.datasets])

    def decisions(self) -> list[tuple[Episode, int]]:
        """The episode and step behind every frame row."""
        return [(e, step) for d in self.datasets for e in d.episodes for step in e.looks.tolist()]

    def pick(self, numbers: Sequence[int] | range) -> Picks:
        """The samples of these numbers."""
        weights = np.array([d.weight for d in self.datasets])
        bounds = np.cumsum(weights / weights.sum())
        offsets = np.cumsum([0, *(len(d.frames.images) for d in self.datasets)])
        rows, versions, episodes, steps = [], [], [], []
        for n in numbers:
            rng = np.random.default_rng((self.seed, 1, n))
            which = min(int(np.searchsorted(bounds, rng.random(), "right")), len(self.datasets) - 1)
            dataset = self.datasets[which]
            index = int(rng.integers(len(dataset.episodes)))
            episode = dataset.episodes[index]
            decision = int(rng.integers(len(episode.looks)))
            rows.append(int(offsets[which] + dataset.first_row[index]) + decision)
            versions.append(self.config.augment.version(rng, n))
            episodes.append(episode)
            steps.append(int(episode.looks[decision]))
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
        """Robot state and targets of `picks`, which are the samples of these numbers."""
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
        """The views of these frames in their versions' light and order; `present` (B, V), by camera."""
        config, out = self.config.augment, []
        for row, version, there in zip(rows.tolist(), versions.tolist(), present, strict=True):
            shown = augment(self._frame(row), config, row, version)
            order = view_order(config, row, version, len(shown))
            out.append([shown[v] if there[v] else None for v in order])
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
    """(training, held out) samples of everything that `config` names; held out is None where nothing was kept
    back.

    fit: (height, width) in pixels of the VLM's images. A dataset that nothing can be learned from is left out of the
    mixture, the others keep their weights, and `say` is told. Raises UserError for what is missing, damaged or
    uncalibrated, and where nothing is left.
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
        if found := _dataset(train, config, fit, cache, stamp, tick, say, name, weight):
            kept.append(found)
        else:
            say(
                f"{name} holds no successful demonstration to train on. It is left out of the mixture"
                + (f", and its weight {weight:g} with it." if config.weights else ".")
            )
        if found := _dataset(held, config, fit, cache, stamp, tick, say, name):
            out.append(found)
    if not kept:
        raise UserError(f"{', '.join(config.data)}: no demonstration is left to train on.")
    held_config = dataclasses.replace(
        config, augment=AugmentConfig(enabled=False), weights=(), rotate_world=False
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
) -> Dataset | None:
    """None where no demonstration has a step to learn from."""
    every = [read_episode(demo, config) for demo in demos.only(())]
    useful = [i for i, episode in enumerate(every) if len(episode.looks)]
    if len(useful) < len(every):
        say(
            f"{name}: {len(every) - len(useful)} of {len(every)} demonstrations are left out: they command nothing at "
            "any step that was looked at."
        )
    if not useful:
        return None
    demos = dataclasses.replace(demos, entries=tuple(demos.entries[i] for i in useful))
    seen, episodes = demos.only(config.cameras), tuple(every[i] for i in useful)
    looked = [e.kept[e.looks] for e in episodes]
    frames = open_frames(
        seen.__getitem__, looked, config.cameras, fit, f"{stamp} {demos.fingerprint}", cache, tick, say
    )
    height, width = frames.native
    blank = np.empty((height, width, 3), np.uint8)
    upright = [np.stack([unmirrored(blank, K)[1] for K in e.K]) for e in episodes]
    episodes = tuple(
        dataclasses.replace(e, K=fractional_intrinsics(torch.from_numpy(K), width, height).numpy())
        for e, K in zip(episodes, upright, strict=True)
    )
    first = np.cumsum([0, *map(len, looked)])[:-1]
    return Dataset(episodes, first, frames, demos.fingerprint, name, weight)


def _stamp(demos: Demos) -> str:
    """Changes when a file that is read does. Raises UserError where one is missing."""
    files = sorted({file for entry in demos.entries for file in entry.files})
    try:
        return digest([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {reason(error)}.") from None


def find_all(names: Sequence[str]) -> list[Path]:
    """`find_data` of each. Raises UserError where two are one: it would be drawn from twice as often."""
    paths, known = [find_data(name) for name in names], dict[Path, str]()
    for name, path in zip(names, paths, strict=True):
        if (other := known.setdefault(path.resolve(), name)) != name:
            raise UserError(
                f"Data '{other}' and '{name}' are the same. To draw from data more often, give a weight."
            )
    return paths


def find_data(name: str) -> Path:
    """A local path, or the local copy of a dataset of the Hugging Face hub (`owner/name`)."""
    try:
        path = Path(name).expanduser()
        here = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, no such user
        raise UserError(f"{name!r} is no path: {reason(error)}.") from None
    if here or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise UserError(
            f"'{name}' is neither a file or folder here nor a dataset that could be fetched from the hub "
            f"({type(error).__name__}). Check the spelling, or download it elsewhere and give its path."
        ) from None
