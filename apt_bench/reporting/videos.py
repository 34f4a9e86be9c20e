"""Videos of a report: copied beside it, each with its last frame as a poster."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from apt_bench.reporting.data import Run, cell_label

MOST = 24


def gather(runs: Sequence[Run], out: Path) -> list[dict[str, str]]:
    """Up to `MOST` videos in `out/videos`: failures first, then one cell after the other. Each with `href`, `poster`
    (a data URI, empty where no frame can be read), `outcome` and `caption`. A video that is not there is left out."""
    rows = []
    for number, run in enumerate(runs, 1):
        there = run.frame[run.frame.video.notna() & run.frame.done]
        turn = there.groupby(["cell", "success"], observed=True).cumcount()
        rows += [(t.success, int(turn[t.Index]), number, run, t) for t in there.itertuples()]
    found: list[dict[str, str]] = []
    for *_, run, t in sorted(rows, key=lambda r: r[:3]):
        source = run.path / str(t.video)
        if (
            len(found) == MOST
            or not source.is_file()
            or not source.resolve().is_relative_to(run.path.resolve())
        ):
            continue
        target = out / "videos" / f"{len(found) + 1:02d}_{source.name}"  # names repeat over cells and runs
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        label = f"{run.label}, {cell_label(str(t.suite), str(t.cell))}: {str(t.task).replace('_', ' ')}, init {t.init}"
        found.append(
            {
                "href": f"videos/{target.name}",
                "poster": poster(target),
                "outcome": str(t.klass).replace("_", " "),
                "caption": label,
            }
        )
    return found


def poster(video: Path) -> str:
    """The last frame as a JPEG data URI, at most 320 pixels wide; empty where it cannot be read."""
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-sseof", "-1", "-i", str(video),
        "-vf", "scale='min(320,iw)':-2", "-update", "1", "-q:v", "5", "-f", "image2pipe", "-c:v", "mjpeg", "-",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    last = done.stdout.rfind(b"\xff\xd8\xff")  # several frames come one behind the other
    return f"data:image/jpeg;base64,{base64.b64encode(done.stdout[last:]).decode()}" if last >= 0 else ""
