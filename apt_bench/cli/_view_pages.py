"""The pages that `apt-bench view` serves."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from urllib.parse import quote

from apt_bench.analysis.run import load_runs
from apt_bench.core.errors import UserError
from apt_bench.core.files import inside
from apt_bench.reporting.browser import BROWSER, FOLDER, asset, page, runs_title
from apt_bench.reporting.browser_data import EpisodeData
from apt_bench.reporting.output_folder import PAGE
from apt_bench.reporting.videos import video_file
from apt_bench.serving.view import Answer, Text


class Pages:
    """The pages of some runs: the episode browser, and the report, which is written when it is opened.

    Args:
        arguments: The runs, as `load_runs` takes them.
        folder: An empty folder for the report.
    """

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._arguments, self._folder = arguments, folder
        self._runs = load_runs(arguments)
        self._title = runs_title(self._runs)
        self._data = EpisodeData(self._runs, self._film)
        self._data.read()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._reported = -1  # rows when the report was written

    def answer(self, path: str) -> Answer:
        """The answer to a path, see `PageServer`."""
        if path == "/":
            return f"/{BROWSER}"
        if path == f"/{BROWSER}":
            return Text(path, page(self._title))
        if path in (f"/{FOLDER}/browser.js", f"/{FOLDER}/browser.css"):
            return Text(path, asset(Path(path).name))
        if chunk := re.fullmatch(rf"/{FOLDER}/data/(rows|records)-(\d{{1,9}})\.js", path):
            return Text(path, self._chunk(chunk[1], int(chunk[2])))
        if film := re.fullmatch(rf"/{FOLDER}/films/(\d{{1,4}})/(.+)", path):
            number = int(film[1])
            return video_file(self._runs[number].path, film[2]) if number < len(self._runs) else None
        if path == f"/{PAGE}":
            self._write_report()
        return self._written(path)

    def _film(self, run: int, name: str) -> str:
        """The address of a film in the browser."""
        return f"films/{run}/{quote(name)}" if video_file(self._runs[run].path, name) else ""

    def _chunk(self, kind: str, number: int) -> str:
        with self._reading:
            if kind == "rows":
                self._data.read()
                return self._data.rows(number, live=True)
            return self._data.records(number)

    def _write_report(self) -> None:
        """Write the report, unless no record was added since it was written."""
        from apt_bench.reporting.report import write_report  # imports matplotlib

        with self._writing:
            with self._reading:
                self._data.read()
                rows = len(self._data)
            if rows != self._reported:
                write_report(load_runs(self._arguments), self._folder / "report", browser=False)
                self._reported = rows

    def _written(self, path: str) -> Path | None:
        """A file of the report."""
        try:
            file = inside(self._folder / "report", path.lstrip("/"))
            return file if file.is_file() else None
        except (UserError, OSError):
            return None
