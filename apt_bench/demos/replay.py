"""Execute a demonstration's actions again, open loop, and compare the result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, reason, try_remove
from apt_bench.demos.dataset import Entry
from apt_bench.demos.video import Mp4Writer
from apt_bench.envs.base import Env
from apt_bench.suites import load_suite, suite_names

FRAME_EVERY = 2
"""Control steps per video frame."""


@dataclass(frozen=True)
class Replay:
    """Result of replaying one demonstration.

    Attributes:
        episode: Name of the episode.
        success: Whether the replay succeeded.
        recorded_success: Whether the recording succeeded.
        same_start: Whether qpos after settling is equal, bit for bit.
        same_end: Whether qpos after the last action is equal, bit for bit.
        steps: Control steps of the replay.
        recorded_steps: Control steps of the recording.
    """

    episode: str
    success: bool
    recorded_success: bool
    same_start: bool
    same_end: bool
    steps: int
    recorded_steps: int

    @property
    def reproduced(self) -> bool:
        """Whether outcome, number of steps and states are equal."""
        same = self.success == self.recorded_success and self.steps == self.recorded_steps
        return same and self.same_start and self.same_end


class Replayer:
    """Replays demonstrations; environments are kept between replays.

    Args:
        suite: Name or file of the demonstrations' suite. None = the suite that a demonstration names, which must be a
            shipped one: a suite names modules that are imported, and a data file must not choose those.
    """

    def __init__(self, suite: str | None = None) -> None:
        self._suite = suite
        self._envs: dict[str, Env] = {}

    def replay(self, entry: Entry, video: Path | None = None) -> Replay:
        """Reset to the demonstration's episode and execute its actions.

        Args:
            entry: The demonstration.
            video: Path of an mp4 to write; None = no video.

        Raises:
            UserError: The demonstration was made by others, so its initial state is unknown; its suite is neither
                given nor shipped; or the video cannot be written.
        """
        info = entry.info
        if info.key is None:
            raise UserError(
                f"'{info.episode}' names no episode of a suite. Only demonstrations of `apt-bench collect` can be "
                "replayed."
            )
        if self._suite is None and info.key.suite not in suite_names():
            raise UserError(
                f"'{info.episode}' is of the suite '{info.key.suite}', which is not shipped. Give its file with "
                "--suite."
            )
        spec = load_suite(self._suite or info.key.suite).episode(info.key)
        actions = entry.load(cameras=()).actions
        if spec.env not in self._envs:
            self._envs[spec.env] = load_object(spec.env)()
        env = self._envs[spec.env]
        env.reset(spec)
        start = env.outcome().start_hash
        frames = [env.frame()] if video else []
        for t in range(0, len(actions), FRAME_EVERY):
            env.step_chunk(actions[t : t + FRAME_EVERY], render=False)
            if video:
                frames.append(env.frame())
            if env.outcome().done:
                break
        if video:
            self._film(video, frames, max(1, info.control_hz // FRAME_EVERY))
        outcome = env.outcome()
        return Replay(
            episode=info.episode,
            success=outcome.success,
            recorded_success=info.success,
            same_start=start == info.start_hash,
            same_end=outcome.end_hash == info.end_hash,
            steps=outcome.steps,
            recorded_steps=info.steps,
        )

    @staticmethod
    def _film(path: Path, frames: list[np.ndarray], fps: int) -> None:
        part = path.with_name(f"{path.stem}.{os.getpid()}{PART}{path.suffix}")  # the suffix names the format
        try:
            film = Mp4Writer(part, frames[0].shape[:2], fps)
            try:
                film.add(np.stack(frames))
                film.close()
            finally:
                film.abort()
            part.replace(path)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {reason(error).replace(str(part), str(path))}.") from None
        finally:
            try_remove(part)

    def close(self) -> None:
        """Free the environments."""
        for env in self._envs.values():
            env.close()
