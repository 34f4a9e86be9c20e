"""Demonstrations as training samples: a numbered, endless stream in which sample n is a pure function of
(seed, n).

Each sample picks a dataset by weight, then an episode, then a step, each uniformly, then a reference camera
(released APT, METHOD 2.3 and 2.11). There is no hidden random state: a resumed run asks for the numbers it
has not seen yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import Demos, open_demos
from apt_bench.demos.format import Demonstration
from apt_bench.envs.base import AGENTVIEW, WRIST, unmirrored
from apt_bench.models.actions import encode_chunk
from apt_bench.models.inputs import RobotState, fractional_intrinsics
from apt_bench.training.augment import AugmentConfig, augment, view_order
from apt_bench.training.frames import FrameStore, Tick, digest, open_frames

GRIPPER_STILL = 0.005
"""Change of openness per control step below which the gripper rests."""


@dataclass(frozen=True)
class DataConfig:
    """What is learned from.

    data: files or folders of demonstrations, or hub ids. weights: how often each is drawn from; () = equally.
    stride: control steps from one action of a chunk to the next. look_every: only every so many steps is a
    decision, which saves images and features; actions keep all steps. Where demonstrations were recorded with fewer
    looks, only these are. held_out: share of each dataset's episodes kept for validation. reference: the camera in
    whose axes actions are coded; empty = drawn per sample, as the release does. rotate_world: a random world frame per
    sample, as the release has (see `RobotState.recentred`).
    """

    data: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    cameras: tuple[str, ...] = (AGENTVIEW, WRIST)
    stride: int = 1
    look_every: int = 1
    drop_noops: bool = True
    held_out: float = 0.05
    reference: str = ""
    rotate_world: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise UserError(
                f"data.weights {self.weights}: expected one positive number for each of {len(self.data)} datasets."
            )
        if self.reference and self.reference not in self.cameras:
            raise UserError(
                f"data.reference '{self.reference}' is not among data.cameras {', '.join(self.cameras)}."
            )
        if min(self.stride, self.look_every) < 1:
            raise UserError(
                f"data.stride {self.stride}, data.look_every {self.look_every}: both must be at least 1."
            )


@dataclass(frozen=True)
class Episode:
    """A demonstration without its images, at the steps that are kept. Poses to the world, metres.

    ee_pose, target_pose (T, 4, 4), openness, target_open (T,); K (V, 3, 3) in pixels as read, in fractions of
    the image in a `Dataset`; camera_pose (T, V, 4, 4); present (V,) bool. `kept` (T,): the steps of the
    demonstration that these are; `looks` (D,): those among them at which a decision is learned.
    """

    name: str
    instruction: str
    kept: np.ndarray
    looks: np.ndarray
    ee_pose: np.ndarray
    openness: np.ndarray
    target_pose: np.ndarray
    target_open: np.ndarray
    K: np.ndarray
    camera_pose: np.ndarray
    present: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)

    def chunk(self, step: int, horizon: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Commanded poses (horizon, 4, 4) and openness (horizon,) from this step on; beyond the end the last
        repeats."""
        steps = np.minimum(step + stride * np.arange(horizon), len(self) - 1)
        return self.target_pose[steps], self.target_open[steps]


def idle(demo: Demonstration) -> np.ndarray:
    """bool (T,): no-ops, except while the gripper still moves: there the wait is what makes the grasp."""
    change = np.abs(np.diff(demo.openness, append=demo.openness[-1:]))
    return demo.noop & (change < GRIPPER_STILL)


def read_episode(demo: Demonstration, config: DataConfig) -> Episode:
    """Raises UserError for a demonstration without calibrated cameras or without a step to learn from."""
    kept = np.flatnonzero(~idle(demo)) if config.drop_noops else np.arange(len(demo))
    if not len(kept):
        raise UserError(
            f"Demonstration {demo.info.episode} does nothing in any of its {len(demo)} steps. Remove it."
        )
    if not any(c in demo.cameras for c in config.cameras):
        raise UserError(
            f"Demonstration {demo.info.episode} has no calibration (K and pose) of the cameras "
            f"{', '.join(config.cameras)}; actions are coded in a camera's axes. Collect with `apt-bench collect`, "
            "or use files with a `model_file`."
        )
    views, T = len(config.cameras), len(kept)
    K, pose, present = (
        np.tile(np.eye(3), (views, 1, 1)),
        np.tile(np.eye(4), (T, views, 1, 1)),
        np.zeros(views, bool),
    )
    for v, name in enumerate(config.cameras):
        if track := demo.cameras.get(name):
            K[v], pose[:, v], present[v] = track.K, track.pose[kept], True
    arrays = demo.achieved, demo.commanded, K
    if not all(np.isfinite(a).all() for a in arrays):
        raise UserError(f"Demonstration {demo.info.episode} holds NaN or infinity in its poses. Remove it.")
    return Episode(
        name=demo.info.episode,
        instruction=demo.info.instruction,
        kept=kept,
        looks=np.flatnonzero(kept % demo.info.look_every == 0)[
            :: -(-config.look_every // demo.info.look_every)
        ],
        ee_pose=demo.achieved[kept],
        openness=demo.openness[kept].astype(np.float64),
        target_pose=demo.commanded[kept],
        target_open=demo.gripper_target[kept],
        K=K,
        camera_pose=pose,
        present=present,
    )


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
    """One dataset of a mixture: its episodes, and the frame row of each episode's first decision."""

    episodes: tuple[Episode, ...]
    first_row: np.ndarray
    frames: FrameStore
    fingerprint: str


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
        weights = np.array(self.config.weights or [1.0] * len(self.datasets))
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
    config: DataConfig, horizon: int, seed: int, fit: tuple[int, int], cache: Path, tick: Tick | None = None
) -> tuple[Samples, Samples | None]:
    """(training, held out) samples of everything that `config` names; held out is None where nothing was kept
    back.

    fit: (height, width) in pixels of the VLM's images. Raises UserError for what is missing, damaged or
    uncalibrated.
    """
    if not config.data:
        raise UserError(
            "No data to train on. Give --data PATH (demonstrations of `apt-bench collect`, or a hub id)."
        )
    kept: list[Dataset] = []
    out: list[Dataset] = []
    for name in config.data:
        path = find_data(name)
        for part, demos in zip((kept, out), open_demos(path).successes.split(config.held_out), strict=True):
            if len(demos):
                part.append(_dataset(demos, config, fit, cache, _stamp(path), tick))
    if not kept:
        raise UserError(f"{', '.join(config.data)}: no demonstration is left to train on.")
    held_config = dataclasses.replace(
        config, augment=AugmentConfig(enabled=False), weights=(), rotate_world=False
    )
    held = Samples(tuple(out), held_config, horizon, seed) if out else None
    return Samples(tuple(kept), config, horizon, seed), held


def _dataset(
    demos: Demos, config: DataConfig, fit: tuple[int, int], cache: Path, stamp: str, tick: Tick | None
) -> Dataset:
    without, seen = demos.only(()), demos.only(config.cameras)
    episodes = tuple(read_episode(demo, config) for demo in without)
    looked = [e.kept[e.looks] for e in episodes]
    frames = open_frames(
        seen.__getitem__, looked, config.cameras, fit, f"{stamp} {demos.fingerprint}", cache, tick
    )
    height, width = frames.native
    blank = np.empty((height, width, 3), np.uint8)
    upright = [np.stack([unmirrored(blank, K)[1] for K in e.K]) for e in episodes]
    episodes = tuple(
        dataclasses.replace(e, K=fractional_intrinsics(torch.from_numpy(K), width, height).numpy())
        for e, K in zip(episodes, upright, strict=True)
    )
    first = np.cumsum([0, *map(len, looked)])[:-1]
    return Dataset(episodes, first, frames, demos.fingerprint)


def _stamp(path: Path) -> str:
    """Changes when a file below `path` does."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return digest([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()])


def find_data(name: str) -> Path:
    """A local path, or the local copy of a dataset of the Hugging Face hub (`owner/name`)."""
    path = Path(name).expanduser()
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
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
