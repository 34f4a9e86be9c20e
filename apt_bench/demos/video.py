"""Reading and writing of mp4, with the ffmpeg of imageio-ffmpeg."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import IO

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.demos.limits import MAX_SIDE
from apt_bench.demos.value_checks import check_total

CODEC, PIXELS = "h264", "yuv420p"
_ENCODE = ["-c:v", "libx264", "-pix_fmt", PIXELS, "-preset", "veryfast", "-crf", "18", "-g", "2", "-bf", "0"]
"""A key frame every second frame, so that single frames can be read quickly (LeRobot's choice), and no reordered
frames, so that frame i is at i / fps exactly."""

_ONLY_MP4 = ["-protocol_whitelist", "file", "-f", "mov", "-max_pixels", str(MAX_SIDE**2), "-an", "-sn", "-dn"]
"""ffmpeg detects formats from content, and some formats (play lists) name other files and addresses. These options
disable detection."""

SECONDS, PER_FRAME = 60.0, 0.5
"""Time limit of reading: seconds, plus seconds per frame."""


class Mp4Writer:
    """Writes frames uint8 (H, W, 3), H and W even, into one file. The file is complete after `close`."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        height, width = size
        if height % 2 or width % 2:
            raise UserError(f"Images of {width}x{height} do not fit mp4: both sides must be even.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames, self._size = path, 0, (height, width, 3)
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        command = [get_ffmpeg_exe(), "-y", "-v", "error", "-threads", "1", *source, *_ENCODE, "-threads", "1"]
        self._process = subprocess.Popen(
            [*command, _file(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def add(self, frames: np.ndarray) -> None:
        """Append frames (T, H, W, 3)."""
        if frames.shape[1:] != self._size:
            raise UserError(f"{self.path}: images of shape {frames.shape[1:]} in a video of {self._size}.")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
        except BrokenPipeError:
            self.close()
        self.frames += len(frames)

    def close(self) -> None:
        """Finish the file. Raises OSError if ffmpeg could not write it."""
        _, error = self._process.communicate()
        if self._process.returncode:
            raise OSError(f"ffmpeg could not write {self.path}: {_said(error)}")

    def abort(self) -> None:
        """Stop writing; the file is incomplete."""
        self._process.kill()
        self._process.communicate()


def _file(path: Path) -> str:
    """The path in a form that ffmpeg always reads as a path."""
    return f"file:{path.absolute()}"


def _said(error: bytes) -> str:
    lines = error.decode(errors="backslashreplace").strip().splitlines()
    return one_line(lines[-1], 300) if lines else "no message"


def read_mp4(path: Path, start: float, count: int, size: tuple[int, int]) -> np.ndarray:
    """Read frames of an mp4 file.

    Args:
        path: The file.
        start: Time of the first frame, in seconds.
        count: Number of frames.
        size: Their (H, W).

    Returns:
        uint8 (count, H, W, 3).

    Raises:
        UserError: The file is missing, too short, or of another size.
    """
    if not path.is_file():
        raise UserError(f"No file {path}. The dataset is incomplete: copy or download it again.")
    wanted = count * size[0] * size[1] * 3
    check_total(wanted, str(path))
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", *_ONLY_MP4]
    command += ["-ss", f"{start:.6f}", "-i", _file(path), "-frames:v", str(count), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.stdout, process.stderr
        assert out is not None
        assert err is not None
        late = threading.Timer(SECONDS + PER_FRAME * count, process.kill)
        late.start()
        words: list[bytes] = []
        listener = threading.Thread(target=lambda: words.append(_tail(err)), daemon=True)
        listener.start()
        try:
            frames = out.read(wanted + 1)  # one more byte shows that images are larger than declared
            process.kill() if len(frames) > wanted else process.wait()
        finally:
            late.cancel()
            process.kill()
            listener.join()
    if len(frames) != wanted:
        more = "larger" if len(frames) > wanted else "damaged or shorter"
        raise UserError(
            f"{path} is {more} than its index declares: {count} frames of {size[1]}x{size[0]} have {wanted:,} bytes, "
            f"it gave {'more' if len(frames) > wanted else f'{len(frames):,}'} ({_said(b''.join(words))}). If it was "
            "downloaded or copied, do that again."
        )
    return np.frombuffer(frames, np.uint8).reshape(count, *size, 3)


def _tail(stream: IO[bytes]) -> bytes:
    """The last 4096 bytes of the stream; ffmpeg prints many messages for damaged files."""
    end = b""
    while some := stream.read(65536):
        end = (end + some)[-4096:]
    return end
