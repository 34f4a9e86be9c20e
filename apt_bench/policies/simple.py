"""Policies that need no model: the floor (`random`, `zero`) and open-loop `replay`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.envs.base import ACTION_DIM, Observation
from apt_bench.policies.base import PolicySpec, noise_seed


class ZeroPolicy:
    """Stands still."""

    spec = PolicySpec("zero", placement="worker")

    def reset(self, episodes: Sequence[str]) -> None:
        """Keeps nothing."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Ten zero actions each."""
        return [np.zeros((self.spec.horizon, ACTION_DIM)) for _ in observations]


class RandomPolicy:
    """Uniform actions in [-1, 1], a function of the scene, the step and `seed` alone."""

    spec = PolicySpec("random", placement="worker")

    def __init__(self, seed: int = 0) -> None:
        self._seed = build(Natural, seed, "seed")

    def reset(self, episodes: Sequence[str]) -> None:
        """Keeps nothing."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Ten random actions each."""
        return [self._one(np.random.default_rng(noise_seed(o, self._seed))) for o in observations]

    def _one(self, noise: np.random.Generator) -> np.ndarray:
        return noise.uniform(-1, 1, (self.spec.horizon, ACTION_DIM))


class ReplayPolicy:
    """Executes stored actions open loop, then stands still.

    path: a folder that `--save-actions` wrote (each episode gets its own actions), or one .npz of it (every episode
    gets these).
    """

    spec = PolicySpec("replay", placement="worker")

    def __init__(self, path: str) -> None:
        source = Path(path)
        files = sorted(source.rglob("*.npz")) if source.is_dir() else [source]
        if not files or not all(f.is_file() for f in files):
            raise UserError(
                f"No stored actions (.npz) at '{path}'. `apt-bench run --save-actions` writes them."
            )
        digest = hashlib.sha256()
        self._actions: dict[str, np.ndarray] = {}
        self._only: np.ndarray | None = None
        for file in files:
            digest.update(file.read_bytes())
            episode, self._only = load_actions(file)
            self._actions[episode] = self._only
        if source.is_dir():
            self._only = None
        self.spec = dataclasses.replace(
            ReplayPolicy.spec, weights=str(source), weights_sha256=digest.hexdigest()
        )

    def reset(self, episodes: Sequence[str]) -> None:
        """Keeps nothing."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """The next ten stored actions each."""
        return [self._next(o) for o in observations]

    def _next(self, observation: Observation) -> np.ndarray:
        actions = self._only if self._only is not None else self._actions.get(observation.episode)
        if actions is None:
            raise UserError(
                f"'{self.spec.weights}' has no actions for episode {observation.episode}. "
                "Choose the cells, tasks and episodes of the run that stored them."
            )
        chunk = actions[observation.step : observation.step + self.spec.horizon]
        return chunk if len(chunk) else np.zeros((self.spec.horizon, ACTION_DIM))


def save_actions(path: Path, episode: str, actions: np.ndarray) -> None:
    """Store the executed actions (steps, 7) of one episode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, actions=actions, meta=np.array(json.dumps({"episode": episode})))
    part.replace(path)


def load_actions(path: Path) -> tuple[str, np.ndarray]:
    """The episode's id and its actions (steps, 7) float64. Raises UserError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            episode = str(json.loads(str(stored["meta"]))["episode"])
            actions = np.asarray(stored["actions"], dtype=np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no stored actions: {error}.") from None
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not np.isfinite(actions).all():
        raise UserError(f"{path}: expected finite actions of shape (n, {ACTION_DIM}), found {actions.shape}.")
    return episode, actions
