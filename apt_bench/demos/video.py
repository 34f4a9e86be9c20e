"""mp4 in and out, through the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from apt_bench.core.errors import UserError

CODEC, PIXELS = "h264", "yuv420p"
_ENCODE = ["-c:v", "libx264", "-pix_fmt", PIXELS, "-preset", "veryfast", "-crf", "18", "-g", "2", "-bf", "0"]
"""A key frame every second frame, so that any one can be read quickly (LeRobot's choice), and no reordered frames, so
that frame i is at i / fps exactly."""


class Mp4Writer:
    """Frames uint8 (H, W, 3), H and W even, into one file. The file is whole once closed."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        height, width = size
        if height % 2 or width % 2:
            raise UserError(f"Images of {width}x{height} do not fit mp4: both numbers must be even.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames, self._size = path, 0, (height, width, 3)
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        command = [get_ffmpeg_exe(), "-y", "-v", "error", "-threads", "1", *source, *_ENCODE, "-threads", "1"]
        self._process = subprocess.Popen([*command, str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def add(self, frames: np.ndarray) -> None:
        """Append (T, H, W, 3)."""
        if frames.shape[1:] != self._size:
            raise UserError(f"{self.path}: images of shape {frames.shape[1:]} among others of {self._size}.")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
        except BrokenPipeError:
            self.close()
        self.frames += len(frames)

    def close(self) -> None:
        """Finish the file. Raises OSError where ffmpeg could not write it."""
        _, error = self._process.communicate()
        if self._process.returncode:
            raise OSError(f"ffmpeg could not write {self.path}: {error.decode().strip()}")


def read_mp4(path: Path, start: float, count: int, size: tuple[int, int]) -> np.ndarray:
    """`count` frames from `start` seconds on, uint8 (count, H, W, 3); size = (H, W). Raises UserError where the file is
    missing or shorter."""
    if not path.is_file():
        raise UserError(f"No file {path}. The data set is incomplete: copy or download it again.")
    command = [get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-ss", f"{start:.6f}", "-i", str(path)]
    command += [
        "-frames:v",
        str(count),
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    wanted = count * size[0] * size[1] * 3
    if len(done.stdout) != wanted:
        why = done.stderr.decode().strip().splitlines()
        raise UserError(
            f"{path} is damaged or shorter than its index says: {len(done.stdout)} of {wanted} bytes "
            f"({why[-1] if why else 'no further word'}). Copy or download it again."
        )
    return np.frombuffer(done.stdout, np.uint8).reshape(count, *size, 3)
