"""Which episodes are filmed, and how: by replaying their actions afterwards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.core.temporary_folders import temporary_folder
from apt_bench.envs.base import Env
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeSpec

VIDEO_EVERY = 2
"""Control steps per frame: 10 frames per second at 20 Hz control."""


@dataclass(frozen=True)
class Video:
    """Which episodes to film.

    Args:
        which: `none`, `failures` (with timeouts), `all`, or `first`.
        first: With `first`: how many initial states of each task.
    """

    which: str = "none"
    first: int = 0

    @staticmethod
    def parse(text: str) -> Video:
        """Parse `none|failures|first:K|all`. Raises UserError for other text."""
        which, _, number = text.partition(":")
        if which in ("none", "failures", "all") and not number:
            return Video(which)
        if which == "first" and re.fullmatch(r"[1-9][0-9]{0,8}", number):
            return Video(which, int(number))
        raise UserError(f"--video is none, failures, first:K (K at least 1) or all, not '{text}'.")

    def wants(self, record: EpisodeRecord) -> bool:
        """Whether this episode is filmed."""
        if self.which == "failures":
            return record.outcome in ("failure", "timeout")
        return self.which == "all" or (self.which == "first" and record.key.init < self.first)


def film(
    env: Env,
    spec: EpisodeSpec,
    record: EpisodeRecord,
    actions: np.ndarray,
    control_hz: int,
    heartbeat: Callable[[str], None],
) -> tuple[EpisodeRecord, bytes | None]:
    """Replay an episode's actions with rendering, and encode the frames.

    Args:
        env: The environment.
        spec: The episode.
        record: Its record.
        actions: Its executed actions, (steps, 7).
        control_hz: Control steps per second.
        heartbeat: Called with the phase `env` between frames.

    Returns:
        The record and an mp4. The simulator is deterministic; where the replay ends in another state, there is no mp4
        and the record's error states it.
    """

    def frames() -> Iterator[np.ndarray]:
        env.reset(spec)
        yield env.frame()
        for start in range(0, len(actions), VIDEO_EVERY):
            heartbeat("env")
            env.step_chunk(actions[start : start + VIDEO_EVERY], render=False)
            yield env.frame()

    video = encode(frames(), control_hz / VIDEO_EVERY)
    if (end := env.outcome().end_hash) != record.end_hash:
        note = f"video: the replay ended in another state ({end}) than the episode ({record.end_hash})"
        return dataclasses.replace(record, error="; ".join(filter(None, (record.error, note)))), None
    return record, video


def encode(frames: Iterator[np.ndarray], fps: float) -> bytes:
    """Encode frames as H.264 in mp4. Frames: uint8 RGB, (H, W, 3), all of one size, H and W even."""
    import imageio.v2 as imageio

    with temporary_folder("film") as folder:
        path = folder / "video.mp4"
        writer: Any
        with imageio.get_writer(path, fps=fps, macro_block_size=2, ffmpeg_params=["-threads", "1"]) as writer:
            for frame in frames:
                writer.append_data(frame)
        return path.read_bytes()
