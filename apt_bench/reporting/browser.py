"""Writes the episode browser: a page that lists every episode of some runs and opens without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jinja2

import apt_bench
from apt_bench.analysis.run import Run
from apt_bench.core.text import plain
from apt_bench.reporting.browser_data import RECORDS, ROWS, EpisodeData
from apt_bench.reporting.videos import video_file

FOLDER = "browser"
"""The browser's folder in a report."""

BROWSER = f"{FOLDER}/index.html"
"""Address of the browser's page, relative to the report's folder."""

FILM_BYTES = 2 * 2**30
"""Films in a browser's folder, at most, in bytes. Later films stay in their run directory."""

_TEMPLATES = Path(__file__).parent / "templates"


def write_browser(runs: Sequence[Run], out: Path, title: str) -> str:
    """Write the episode browser of some runs into `out/browser`.

    Films are hard links to those of the run where the file system allows it, otherwise copies.

    Args:
        runs: The runs.
        out: Folder of the report.
        title: Title of the page.

    Returns:
        The address of the browser's page, relative to `out`; "" where no episode is recorded.
    """
    folder = out / FOLDER
    films = _Films(runs, folder)
    data = EpisodeData(runs, films.add)
    data.read()
    if not len(data):
        return ""
    (folder / "data").mkdir(parents=True)
    (folder / "index.html").write_text(page(title), encoding="utf-8")
    for name in ("browser.js", "browser.css"):
        (folder / name).write_text(asset(name), encoding="utf-8")
    for start in range(0, len(data), ROWS):
        (folder / "data" / f"rows-{start}.js").write_text(data.rows(start), encoding="utf-8")
    for chunk in range(-(-len(data) // RECORDS)):
        (folder / "data" / f"records-{chunk}.js").write_text(data.records(chunk), encoding="utf-8")
    return BROWSER


def page(title: str) -> str:
    """The browser's page."""
    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return env.from_string(asset("browser.html.j2")).render(title=plain(title), version=apt_bench.__version__)


def runs_title(runs: Sequence[Run]) -> str:
    """The title of a page about these runs: their names."""
    if not runs:
        return "The paper's results"
    names = list(dict.fromkeys(r.label for r in runs))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def asset(name: str) -> str:
    """The text of `browser.js`, `browser.css` or the page's template."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


class _Films:
    """The films in the browser's folder, up to `FILM_BYTES`."""

    def __init__(self, runs: Sequence[Run], folder: Path) -> None:
        self._runs, self._folder, self._number, self._bytes = runs, folder / "films", 0, 0

    def add(self, run: int, name: str) -> str:
        """Link or copy a film; returns its address, or "" where it does not exist or the folder is full."""
        source = video_file(self._runs[run].path, name)
        if source is None:
            return ""
        try:
            size = source.stat().st_size
            if self._bytes + size > FILM_BYTES:
                return ""
            self._folder.mkdir(parents=True, exist_ok=True)
            target = self._folder / f"{self._number + 1}{source.suffix.lower()}"
            _link(source.resolve(), target)
        except FileNotFoundError:  # it was removed meanwhile
            return ""
        self._number, self._bytes = self._number + 1, self._bytes + size
        return f"films/{target.name}"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
