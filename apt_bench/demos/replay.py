"""Execute a demonstration's actions again, open loop, and compare."""

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
    """How one demonstration came out the second time."""

    episode: str
    success: bool
    recorded_success: bool
    same_start: bool  # qpos after settling, bit for bit
    same_end: bool  # qpos after the last action, bit for bit
    steps: int
    recorded_steps: int

    @property
    def reproduced(self) -> bool:
        """The same outcome, after the same number of steps, in the same state."""
        same = self.success == self.recorded_success and self.steps == self.recorded_steps
        return same and self.same_start and self.same_end


class Replayer:
    """Keeps environments between replays.

    suite: name or file of the demonstrations' suite. Without it they may name a shipped one and nothing else: a suite
    names modules that are imported, and no data file chooses those."""

    def __init__(self, suite: str | None = None) -> None:
        self._suite = suite
        self._envs: dict[str, Env] = {}

    def replay(self, entry: Entry, video: Path | None = None) -> Replay:
        """Reset to the demonstration's episode and execute its actions; `video`: an mp4 to write.

        Raises UserError for demonstrations that others made, whose initial states are not known here, and for those of
        a suite that is neither given nor shipped."""
        info = entry.info
        if info.key is None:
            raise UserError(
                f"'{info.episode}' names no episode of a suite; only demonstrations made by `apt-bench collect` replay."
            )
        if self._suite is None and info.key.suite not in suite_names():
            raise UserError(
                f"'{info.episode}' is of the suite '{info.key.suite}', which does not ship. Give its file with --suite."
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
        part = path.with_name(f"{path.stem}.{os.getpid()}{PART}{path.suffix}")  # whose end names the format
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
