"""Copies the videos of runs into a report, each with its last frame as a poster."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label
from apt_bench.core.errors import UserError
from apt_bench.core.files import inside
from apt_bench.core.text import file_name, one_line
from apt_bench.core.wording import in_words

MOST = 24
"""Videos in a report, at most."""


def gather(runs: Sequence[Run], out: Path) -> list[dict[str, str]]:
    """Copy up to `MOST` videos into `out/videos`: failures first, and each cell in turn.

    Args:
        runs: The runs.
        out: Folder of the report.

    Returns:
        For each copied video its `href`, `poster` (a data URI; "" where no frame can be read), `outcome` and `caption`.
        A video file that does not exist is left out.
    """
    rows = []
    for number, run in enumerate(runs, 1):
        recorded = run.frame[run.frame.video.notna() & run.frame.finished]
        turn = recorded.groupby(["cell", "success"], observed=True).cumcount()
        rows += [(t.success, int(turn[t.Index]), number, run, t) for t in recorded.itertuples()]
    found: list[dict[str, str]] = []
    for *_, run, t in sorted(rows, key=lambda r: r[:3]):
        source = video_file(run.path, str(t.video))
        if len(found) == MOST or source is None:
            continue
        stem = f"{len(found) + 1:02d}_{file_name(source.stem)}"  # cells and runs may have videos of the same name
        target = out / "videos" / (stem + source.suffix.lower())
        target.parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError:  # it was removed meanwhile
            continue
        task = f"“{one_line(t.instruction, 120)}”" if t.instruction else in_words(str(t.task))
        label = f"{run.label}, {cell_label(str(t.suite), str(t.cell))}, initial state {t.init}: {task}"
        found.append(
            {
                "href": f"videos/{target.name}",
                "poster": poster(target),
                "outcome": in_words(str(t.outcome_class)),
                "caption": label,
            }
        )
    return found


FORMATS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska"}
"""Suffix of a video file -> ffmpeg's input format. If ffmpeg chose the format, it would follow playlists to other
files."""

BYTES = 2**29
"""Largest video file that is copied. The copy of a sparse file could fill the disk."""

PIXELS = 4096 * 4096
"""Largest frame that is decoded."""


def video_file(run: Path, name: str) -> Path | None:
    """The path of the video that a record names, or None.

    Only a regular file of at most `BYTES` inside the run's own `videos/` counts: a record must not make a report copy
    another file of this machine.
    """
    try:
        path = inside(inside(run, "videos"), PurePosixPath(name).relative_to("videos").as_posix())
        whole = path.suffix.lower() in FORMATS and path.is_file() and path.stat().st_size <= BYTES
        return path if whole else None
    except (UserError, ValueError, OSError):
        return None


def poster(video: Path) -> str:
    """The last frame as a JPEG data URI, at most 320 pixels wide; "" where it cannot be read."""
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-protocol_whitelist", "file",
        "-max_pixels", str(PIXELS), "-f", FORMATS[video.suffix.lower()], "-sseof", "-1", "-i", f"file:{video}",
        "-vf", "scale='min(320,iw)':-2", "-update", "1", "-q:v", "5", "-f", "image2pipe", "-c:v", "mjpeg", "-",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    last = done.stdout.rfind(b"\xff\xd8\xff")  # ffmpeg wrote several frames
    return f"data:image/jpeg;base64,{base64.b64encode(done.stdout[last:]).decode()}" if last >= 0 else ""
