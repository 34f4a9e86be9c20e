"""The report: one folder with tables, figures and a page that opens offline."""

from __future__ import annotations

import base64
import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

import apt_bench
from apt_bench.core.errors import UserError
from apt_bench.reporting import charts, details
from apt_bench.reporting.ablation import gain_table
from apt_bench.reporting.data import Run, suite_names
from apt_bench.reporting.probes import probe_table
from apt_bench.reporting.table import Table, html_table, write
from apt_bench.reporting.tables import REAL, paper_tables, real_table, suite_tables
from apt_bench.reporting.videos import gather

FOLDED = 24
"""Longer tables are shown up to `SHOWN` rows on the page, whole in their files; from this many rows on they fold."""
SHOWN = 1500


@dataclass
class Section:
    """A part of the page."""

    id: str
    title: str
    text: str = ""
    blocks: list[dict[str, Any]] = field(default_factory=list)


class Report:
    """Collects sections while it writes their files."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.sections: list[Section] = []

    def section(self, id: str, title: str, text: str = "") -> None:
        """Begin a section."""
        self.sections.append(Section(id, title, text))

    def table(self, table: Table | None, folded: bool | None = None) -> None:
        """Write a table and show it; nothing where there is none or it has no rows."""
        if table is None or not table.rows:
            return
        write(table, self.out / "tables")
        notes = list(table.notes)
        shown = table
        if len(table.rows) > SHOWN:
            notes.append(f"The first {SHOWN} of {len(table.rows)} rows; all of them are in the files.")
            shown = Table(table.name, table.title, table.columns, table.rows[:SHOWN], table.notes, table.heat)
        self.sections[-1].blocks.append(
            {
                "kind": "table",
                "name": table.name,
                "title": table.title,
                "html": html_table(shown),
                "notes": notes,
                "rows": len(table.rows),
                "folded": len(table.rows) > FOLDED if folded is None else folded,
            }
        )

    def figure(self, name: str, figure: Figure | None, alt: str) -> None:
        """Save a figure and show it; nothing where there is none."""
        if figure is None:
            return
        inches = figure.get_size_inches()[0]
        paths = charts.save(figure, name, self.out / "figures")
        svg = next(p for p in paths if p.suffix == ".svg")
        data = base64.b64encode(svg.read_bytes()).decode()
        self.sections[-1].blocks.append(
            {
                "kind": "figure",
                "name": name,
                "alt": alt,
                "src": f"data:image/svg+xml;base64,{data}",
                "width": round(inches * 8.4, 1),
            }
        )


def write_report(
    runs: Sequence[Run], out: Path, with_published: bool = True, title: str | None = None
) -> Path:
    """Write the report of these runs (of the paper alone where there are none); returns the path of `report.html`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "report.html").is_file():  # an earlier report: its files must not stand beside the new ones
            for name in ("tables", "figures", "videos"):
                shutil.rmtree(out / name, ignore_errors=True)
        return _write(runs, out, with_published, title)
    except OSError as error:
        raise UserError(f"Cannot write the report to {out}: {error.strerror or error}.") from None


def _write(runs: Sequence[Run], out: Path, with_published: bool, title: str | None) -> Path:
    report = Report(out)
    _headlines(report, runs, with_published)
    filled = [r for r in runs if len(r.frame)]
    if filled:
        for step in (_controls, _language, _outcomes, _tasks, _videos):
            step(report, filled)
    if runs:
        _background(report, runs)
    gaps = details.missing(runs)
    with open(_folder(out / "tables") / "missing.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["missing"], *([g] for g in gaps)])
    (out / "report.html").write_text(_render(report, runs, gaps, title or _title(runs)), encoding="utf-8")
    return out / "report.html"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _title(runs: Sequence[Run]) -> str:
    if not runs:
        return "The paper's results"
    names = list(dict.fromkeys(r.label for r in runs))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _headlines(report: Report, runs: Sequence[Run], with_published: bool) -> None:
    report.section("results", "Results")
    real = {suite for _, suite, _ in REAL.values()}
    suites = [s for s in suite_names(runs) if s not in real]
    tables = [t for s in suites for t in suite_tables(runs, s, with_published)]
    if any(s in real for r in runs for s, _ in r.asked):
        tables.append(real_table(runs, with_published))
    if not runs:
        tables = paper_tables()
    gains = {
        "rigid_pick_place": gain_table(runs, "rigid_pick_place", ("so", "uo", "uc", "uoue"), with_published)
    }
    for suite in suites:
        cells = list(dict.fromkeys(c for r in runs for s, c in r.asked if s == suite))
        gains.setdefault(suite, gain_table(runs, suite, cells, with_published))
    for table in tables:
        report.table(table, folded=False)
        if table.rows:
            report.figure(
                f"success_{table.name}", charts.success_chart(table), f"{table.title}: success in %."
            )
        gain = gains.get(table.name)  # by the suite's name, which other tables of the suite extend
        if gain:
            report.table(gain, folded=False)
            report.figure(
                gain.name, charts.gain_chart(gain), "What the second stage adds, in percentage points."
            )
    if not report.sections[-1].blocks:
        report.sections[-1].text = "There is no episode to report."


def _controls(report: Report, runs: Sequence[Run]) -> None:
    table = details.control_table(runs)
    if table:
        report.section("controls", "Against the controls")
        report.table(table)


def _language(report: Report, runs: Sequence[Run]) -> None:
    table = details.language_table(runs)
    if table:
        report.section("language", "Does it go where it is told?")
        report.figure(
            "language", charts.language_chart(table), "Where the robot goes first, and for which task."
        )
        report.table(table)
    probes = probe_table(runs)
    if probes:
        report.section("probes", "Language probes", "The same initial states under other sentences.")
        report.figure(
            "probes",
            charts.probe_chart(probes),
            "Success under each sentence, and how often episodes change.",
        )
        report.table(probes)


def _outcomes(report: Report, runs: Sequence[Run]) -> None:
    report.section("outcomes", "How episodes end")
    report.figure("outcomes", charts.outcome_chart(runs), "Outcome classes per cell.")
    report.table(details.outcome_table(runs), folded=True)
    report.table(details.defect_table(runs))


def _tasks(report: Report, runs: Sequence[Run]) -> None:
    report.section("tasks", "Per task")
    for i, run in enumerate(runs, 1):
        name = "tasks_heat" if len(runs) == 1 else f"tasks_heat_{i}"
        report.figure(name, charts.heat_map(run), f"{run.label}: success per task.")
    report.table(details.task_table(runs), folded=True)


def _videos(report: Report, runs: Sequence[Run]) -> None:
    found = gather(runs, report.out)
    if found:
        report.section("videos", "Videos", "Failures first; the last frame of each.")
        report.sections[-1].blocks.append({"kind": "videos", "videos": found})


def _background(report: Report, runs: Sequence[Run]) -> None:
    report.section("coverage", "Coverage")
    report.table(details.coverage_table(runs))
    report.table(details.error_table(runs))
    report.section("time", "Time")
    report.table(details.throughput_table(runs))
    report.section("protocol", "Protocol")
    report.table(details.card_table(runs, "protocol"))
    report.table(details.card_table(runs, "run"), folded=True)


def _render(report: Report, runs: Sequence[Run], gaps: Sequence[str], title: str) -> str:
    folder = Path(__file__).parent / "templates"
    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    safe: Callable[[str], str] = jinja2.utils.markupsafe.Markup
    for section in report.sections:
        for block in section.blocks:
            if "html" in block:
                block["html"] = safe(block["html"])
    template = env.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        version=apt_bench.__version__,
        css=safe((folder / "report.css").read_text(encoding="utf-8")),
        runs=[
            {
                "label": r.label,
                "done": int(r.frame.done.sum()),
                "errors": int((~r.frame.done).sum()),
                "protocol": r.protocol_id,
                "when": str(r.info.get("ended") or r.info.get("started") or "")[:10],
            }
            for r in runs
        ],
        missing=gaps,
        sections=[s for s in report.sections if s.blocks or s.text],
    )
