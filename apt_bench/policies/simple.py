"""Policies that need no model: the lower bounds (`random`, `zero`) and open-loop `replay`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import parse_json, read_bytes, write_whole
from apt_bench.core.text import one_line
from apt_bench.envs.base import ACTION_DIM, Observation
from apt_bench.policies.base import PolicySpec, Provenance, Resources, noise_seed
from apt_bench.suites import EpisodeSpec


class ZeroPolicy:
    """Answers zero actions: the arm keeps its pose."""

    spec = PolicySpec("zero", resources=Resources(placement="worker"))

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept between decisions."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Ten zero actions each."""
        return [np.zeros((self.spec.horizon, ACTION_DIM)) for _ in observations]


class RandomPolicy:
    """Uniform actions in [-1, 1]. They depend on the scene, the control step and `seed`, and on nothing else.

    Args:
        seed: Seed of the actions.

    Raises:
        UserError: `seed` is not a whole number from 0.
    """

    spec = PolicySpec("random", resources=Resources(placement="worker"))

    def __init__(self, seed: int = 0) -> None:
        self._seed = build(Natural, seed, "seed")

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept between decisions."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Ten random actions each."""
        return [self._one(np.random.default_rng(noise_seed(o, self._seed))) for o in observations]

    def _one(self, noise: np.random.Generator) -> np.ndarray:
        return noise.uniform(-1, 1, (self.spec.horizon, ACTION_DIM))


class ReplayPolicy:
    """Executes stored actions open loop, then zero actions.

    Args:
        path: A folder that `--save-actions` wrote (each episode gets its own actions), or one .npz file of it (every
            episode gets these).

    Raises:
        UserError: There are no stored actions at `path`, or two files differ for the same episode.
    """

    spec = PolicySpec("replay", resources=Resources(placement="worker"))

    def __init__(self, path: str) -> None:
        source = Path(path)
        self._actions: dict[str, np.ndarray] = {}
        self._only: np.ndarray | None = None
        for file in _stored(source):
            episode, actions = load_actions(file)
            if not np.array_equal(self._actions.setdefault(episode, actions), actions):
                raise UserError(
                    f"{file} has other actions for episode {episode} than another file in '{path}'."
                )
            self._only = None if source.is_dir() else actions
        self.spec = dataclasses.replace(
            ReplayPolicy.spec, provenance=Provenance(str(source), ReplayPolicy.digest(path))
        )

    @staticmethod
    def digest(path: str) -> str:
        """Hash of the stored actions' files."""
        found = hashlib.sha256()
        for file in _stored(Path(path)):
            found.update(read_bytes(file))
        return found.hexdigest()

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept between decisions."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """The next ten stored actions each."""
        return [self._next(o) for o in observations]

    def _next(self, observation: Observation) -> np.ndarray:
        actions = self._only if self._only is not None else self._actions.get(observation.episode)
        if actions is None:
            raise UserError(
                f"'{self.spec.provenance.weights}' has no actions for episode {observation.episode}. "
                "Choose the cells, tasks and episodes of the run that stored them."
            )
        chunk = actions[observation.step : observation.step + self.spec.horizon]
        return chunk if len(chunk) else np.zeros((self.spec.horizon, ACTION_DIM))


def _stored(source: Path) -> list[Path]:
    try:
        files = sorted(source.rglob("*.npz")) if source.is_dir() else [source]
        if files and all(f.is_file() for f in files):
            return files
    except (OSError, ValueError):  # no permission; a null byte in the name
        pass
    raise UserError(f"No stored actions (.npz) at '{source}'. `apt-bench run --save-actions` writes them.")


STEPS = 10**6
"""Control steps in one file of stored actions, at most."""


def packed_actions(episode: str, actions: np.ndarray) -> bytes:
    """The content of an .npz file with the executed actions (steps, 7) of one episode."""
    file = io.BytesIO()
    np.savez_compressed(file, actions=actions, meta=np.array(json.dumps({"episode": episode})))
    return file.getvalue()


def save_actions(path: Path, episode: str, actions: np.ndarray) -> None:
    """Write the executed actions (steps, 7) of one episode. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, packed_actions(episode, actions))


def load_actions(path: Path) -> tuple[str, np.ndarray]:
    """Read an episode's id and its actions (steps, 7), float64. Raises UserError where the file is damaged."""
    content = read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as stored:
            meta = _array(stored, "meta.npy", 2**16)
            actions = _array(stored, "actions.npy", STEPS * ACTION_DIM * 8 + 2**12)
        if meta.dtype.kind != "U" or meta.shape != () or actions.dtype.kind not in "fiu":
            raise ValueError(f"its arrays are of types {meta.dtype} and {actions.dtype}")
        episode = parse_json(str(meta))["episode"]
        if not isinstance(episode, str):
            raise ValueError("it does not name its episode")
    except Exception as error:  # zipfile and numpy raise many types for damaged files
        raise UserError(f"{path} is not a file of stored actions: {one_line(error, 300)}.") from None
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not np.isfinite(actions).all():
        raise UserError(f"{path}: expected finite actions of shape (n, {ACTION_DIM}), found {actions.shape}.")
    return episode, actions.astype(np.float64)


def _array(stored: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """One array of an .npz file, of at most `limit` bytes, whatever its header claims. Raises ValueError and others."""
    with stored.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name} is longer than {limit:,} bytes")
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > limit:
        raise ValueError(f"{name} claims the shape {shape} of {dtype}")
    file.seek(0)
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array
