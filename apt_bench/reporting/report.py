"""Writes a report: one folder with tables, figures, videos and a page that opens without a network."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from matplotlib.figure import Figure

import apt_bench
from apt_bench.analysis.run import Run, suite_names
from apt_bench.core.text import csv_cell, file_name, plain
from apt_bench.reporting import charts, episode_tables, run_tables
from apt_bench.reporting.browser import BROWSER, runs_title, write_browser
from apt_bench.reporting.chart_style import run_colours, save
from apt_bench.reporting.control_table import ABOUT_CONTROLS, CONTROLS, control_table
from apt_bench.reporting.coverage import canary_warnings, coverage_table, error_table, missing, unpinned
from apt_bench.reporting.glossary import linked
from apt_bench.reporting.headline_tables import (
    ABOUT_RESULTS,
    NOT_COMPARABLE,
    REAL,
    paper_tables,
    real_table,
    suite_tables,
)
from apt_bench.reporting.inline_svg import panels
from apt_bench.reporting.opening import opening
from apt_bench.reporting.output_folder import PAGE, replaced
from apt_bench.reporting.probe_table import about_probes, main_columns, probe_table
from apt_bench.reporting.published import PAPER_SUITE
from apt_bench.reporting.subtask_table import subtask_table
from apt_bench.reporting.table import RUN, Table, html_table
from apt_bench.reporting.table_files import write
from apt_bench.reporting.two_stage_gain import gain_table
from apt_bench.reporting.videos import gather
from apt_bench.runs.records import no_collection

FOLDED = 24
"""Rows from which a table on the page is folded."""

SHOWN = 1500
"""Rows of a table that the page shows; the table's files have all of them."""

TWO_STAGE_SUITE = "rigid_pick_place"
"""The suite of the paper's ablation."""


@dataclass
class Section:
    """A section of the page: its tables, figures and videos are `blocks`."""

    id: str
    title: str
    text: str = ""
    blocks: list[dict[str, Any]] = field(default_factory=list)


Step = Callable[[str], None]
"""Shows a text that names the step in progress (`core.status`)."""


def _silent(step: str) -> None:
    """Show nothing."""


class Report:
    """Writes the files of tables and figures, and collects them as sections of the page.

    Args:
        out: The folder to write into.
        runs: The runs, which have the same colours in all figures.
        drawn: Also draw figures and copy videos.
        pdf: Also write figures as PDF.
    """

    def __init__(self, out: Path, runs: Sequence[Run] = (), drawn: bool = True, pdf: bool = False) -> None:
        self.out, self.drawn = out, drawn
        self.kinds = ("png", "svg", *(["pdf"] if pdf else []))
        self.colours = run_colours([r.label for r in runs])
        self.sections: list[Section] = []
        self._waiting: list[tuple[str, Callable[[], Figure | None], dict[str, Any]]] = []
        self._taken: set[tuple[str, str]] = set()

    def section(self, id: str, title: str, text: str = "") -> None:
        """Start a section; the following tables and figures belong to it."""
        self.sections.append(Section(id, title, text))

    def table(self, table: Table | None, folded: bool | None = None, shown: Table | None = None) -> None:
        """Write a table and add it, or `shown` in its place, to the section, unless it is None or has no rows.

        The page leaves out empty columns. Default of `folded`: whether there are more than `FOLDED` rows."""
        if table is None or not table.rows:
            return
        table = dataclasses.replace(table, name=self._name("table", table.name))
        write(table, self.out / "tables")
        shown = shown or table
        more = f"The first {SHOWN} of {len(shown.rows)} rows; all of them are in the files."
        alone = len(self.colours) == 1  # its name is the page's title
        columns = [c for c in shown.columns if shown.filled(c) and not (alone and c is RUN)]
        self.sections[-1].blocks.append(
            {
                "kind": "table",
                "name": table.name,
                "title": table.title,
                "about": shown.about,
                "html": html_table(dataclasses.replace(shown, columns=columns, rows=shown.rows[:SHOWN])),
                "kinds": table.kinds,
                "notes": [*shown.notes, *([more] if len(shown.rows) > SHOWN else [])],
                "rows": len(shown.rows),
                "folded": len(shown.rows) > FOLDED if folded is None else folded,
            }
        )

    def figure(self, name: str, draw: Callable[[], Figure | None], alt: str) -> None:
        """Add a figure to the section. `draw_figures` draws it."""
        if self.drawn:
            block: dict[str, Any] = {"kind": "figure", "alt": alt, "kinds": self.kinds}
            self.sections[-1].blocks.append(block)
            self._waiting.append((name, draw, block))

    def draw_figures(self, step: Step = _silent) -> None:
        """Draw and save the figures, and leave out those whose `draw` returns None."""
        for done, (wanted, draw, block) in enumerate(self._waiting):
            step(f"Drawing figures: {done} of {len(self._waiting)} done")
            figure = draw()
            if figure is None:
                for section in self.sections:
                    section.blocks = [b for b in section.blocks if b is not block]
                continue
            name, folder = self._name("figure", wanted), self.out / "figures"
            boxes = save(figure, name, folder, "pdf" in self.kinds)
            svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
            number = sum(kind == "figure" for kind, _ in self._taken)
            drawn, legends = panels(svg, boxes, f"f{number}"), len(figure.legends)
            block |= {"name": name, "legends": drawn[:legends], "panels": drawn[legends:]}
        self._waiting.clear()

    def _name(self, kind: str, wanted: str) -> str:
        """A file name that no other table or figure of the report has. The wanted name may be that of any suite."""
        base = name = file_name(wanted)
        number = 1
        while (kind, name.casefold()) in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add((kind, name.casefold()))
        return name


def write_report(
    runs: Sequence[Run],
    out: Path,
    with_published: bool = True,
    title: str | None = None,
    browser: bool = True,
    pdf: bool = False,
    step: Step = _silent,
) -> Path:
    """Write the report of some runs.

    An earlier report in `out` is replaced when the new one is complete.

    Args:
        runs: The runs; without any, the report shows the paper's results.
        out: The folder: new, empty, or an earlier report.
        with_published: Show the paper's rows: in the tables of the paper's own suite, and in folded tables beside its
            open equivalents.
        title: Title of the page. Default: the runs' names.
        browser: Also write the episode browser.
        pdf: Also write the figures as PDF.
        step: Gets the name of each step when it begins.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: `out` holds other files or cannot be written; everything stays as it was.
    """
    with replaced(out) as folder:
        fill_folder(folder, runs, with_published, title, browser, pdf, step)
    return out / PAGE


@no_collection()
def fill_folder(
    folder: Path,
    runs: Sequence[Run],
    with_published: bool = True,
    title: str | None = None,
    browser: bool = True,
    pdf: bool = False,
    step: Step = _silent,
    home: str = "",
) -> None:
    """Write the report of some runs into a new folder, as `write_report` does. home: address of the leaderboard."""
    report = Report(folder, runs, pdf=pdf)
    step("Computing and writing tables")
    gaps = _fill(report, runs, with_published)
    report.draw_figures(step)
    title = title or runs_title(runs)
    if browser:
        step("Writing the episode browser")
    episodes = write_browser(runs, folder, title) if browser else BROWSER
    page = render(report, [opening(r) for r in runs], gaps, title, episodes, home)
    (folder / PAGE).write_text(page, encoding="utf-8")


def write_tables(runs: Sequence[Run], out: Path, with_published: bool = True) -> list[str]:
    """Write only the tables, into `out/tables`; returns what limits the runs (`coverage.missing`)."""
    return _fill(Report(out, runs, drawn=False), runs, with_published)


def _fill(report: Report, runs: Sequence[Run], with_published: bool) -> list[str]:
    _headlines(report, runs, with_published)
    filled = [r for r in runs if len(r.frame)]
    if filled:
        for step in (_controls, _language, _outcomes, _tasks, _videos):
            step(report, filled)
    if runs:
        _background(report, runs)
    gaps = [*unpinned(runs), *canary_warnings(runs), *missing(runs)]
    (report.out / "tables").mkdir(parents=True, exist_ok=True)
    with open(report.out / "tables" / "missing.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["missing"], *([csv_cell(g)] for g in gaps)])
    return gaps


def _headlines(report: Report, runs: Sequence[Run], with_published: bool) -> None:
    report.section("results", "Results", ABOUT_RESULTS if runs else "")
    real = {suite for _, suite, _ in REAL.values()}
    for suite in (s for s in suite_names(runs) if s not in real):
        for number, table in enumerate(suite_tables(runs, suite, with_published)):
            _headline(report, table)
            if number == 0:
                report.table(subtask_table(runs, suite), folded=True)
                _gain(report, runs, suite)
        if with_published and suite != PAPER_SUITE:
            _equivalents(report, suite_tables([], suite))
    if any(s in real for r in runs for s, _ in r.requested):
        _headline(report, real_table(runs, with_published))
    for table in () if runs else paper_tables():
        _headline(report, table)
        if table.name == TWO_STAGE_SUITE:
            _gain(report, runs, TWO_STAGE_SUITE)
    if not report.sections[-1].blocks:
        report.sections[-1].text = "There is no episode to report."


def _headline(report: Report, table: Table) -> None:
    report.table(table, folded=False)
    if table.rows:
        chart = partial(charts.success_chart, table, report.colours)
        report.figure(f"success_{table.name}", chart, f"{table.title}: success in %, with 95% intervals.")


def _equivalents(report: Report, tables: Sequence[Table]) -> None:
    """The paper's rows for its own version of a suite, folded."""
    for table in tables:
        title = f"{table.title}: the paper's own figures, not comparable"
        notes = (NOT_COMPARABLE, *table.notes)
        report.table(
            dataclasses.replace(table, name=f"{table.name}_published", title=title, notes=notes), folded=True
        )


def _gain(report: Report, runs: Sequence[Run], suite: str) -> None:
    cells: Sequence[str] = list(dict.fromkeys(c for r in runs for s, c in r.requested if s == suite))
    if suite == TWO_STAGE_SUITE:
        cells = ("so", "uo", "uc", "uoue")
    gain = gain_table(runs, suite, cells, with_published=not runs)
    if gain:
        report.table(gain, folded=False)
        chart = partial(charts.gain_chart, gain)
        report.figure(gain.name, chart, "Success that the second stage adds, in percentage points.")


def _controls(report: Report, runs: Sequence[Run]) -> None:
    table = control_table(runs)
    if table:
        report.section("controls", CONTROLS, ABOUT_CONTROLS)
        report.table(table)


def _language(report: Report, runs: Sequence[Run]) -> None:
    table = episode_tables.language_table(runs)
    if table:
        report.section("language", "Does it follow the instruction?", episode_tables.ABOUT_LANGUAGE)
        report.figure(
            "language",
            partial(charts.language_chart, table, report.colours),
            "What the robot touches and grasps first, and which task it does.",
        )
        report.table(table)
    probes = probe_table(runs)
    if probes:
        report.section("probes", "Language probes", about_probes(probes))
        report.figure(
            "probes",
            partial(charts.probe_chart, probes, report.colours),
            "Success under each instruction, and episodes whose first contact, outcome or final state changes.",
        )
        report.table(probes, shown=main_columns(probes))


def _outcomes(report: Report, runs: Sequence[Run]) -> None:
    outcomes = episode_tables.outcome_table(runs)
    report.section("outcomes", "How episodes end", " ".join(outcomes.notes[1:]))
    report.figure("outcomes", partial(charts.outcome_chart, runs), "Episodes by how they ended.")
    report.table(outcomes, folded=True)
    report.table(episode_tables.defect_table(runs))


def _tasks(report: Report, runs: Sequence[Run]) -> None:
    report.section("tasks", "Per task")
    report.figure("tasks_heat", partial(charts.heat_map, runs), "Success per task.")
    report.table(episode_tables.task_table(runs), folded=True)


def _videos(report: Report, runs: Sequence[Run]) -> None:
    found = gather(runs, report.out) if report.drawn else []
    if found:
        report.section("videos", "Videos", "Failures come first. Each picture is the last frame.")
        report.sections[-1].blocks.append({"kind": "videos", "videos": found})


def _background(report: Report, runs: Sequence[Run]) -> None:
    coverage = coverage_table(runs)
    complete = all(r.values["requested"] == r.values["finished"] for r in coverage.rows)
    report.section("coverage", "Coverage", "Every requested episode has a result." if complete else "")
    report.table(coverage, folded=complete)
    report.table(error_table(runs))
    report.section("time", "Time")
    report.table(run_tables.throughput_table(runs))
    report.section("protocol", "Protocol", run_tables.ABOUT_CARDS)
    report.table(
        run_tables.card_table(runs, "protocol"), folded=True, shown=run_tables.protocol_in_words(runs)
    )
    report.table(
        run_tables.card_table(runs, "run"), folded=True, shown=run_tables.circumstances_in_words(runs)
    )


def render(
    report: Report,
    openings: Sequence[Mapping[str, Any]],
    gaps: Sequence[str],
    title: str,
    episodes: str = "",
    home: str = "",
) -> str:
    """The page of a report.

    Args:
        report: Its sections.
        openings: What the page begins with, one per run (`opening.opening`); `link`: address of the run's own page.
        gaps: Sentences that limit the results.
        title: The page's title.
        episodes: Address of the episode browser; "" = none.
        home: Address of the leaderboard; "" = none.
    """
    folder = Path(__file__).parent / "templates"
    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_plain)
    safe: Callable[[str], str] = markupsafe.Markup
    for section in report.sections:
        for block in section.blocks:
            for key in {"html", "legends", "panels"} & block.keys():
                block[key] = safe(block[key]) if key == "html" else [safe(p) for p in block[key]]
    body, page = (
        env.from_string((folder / name).read_text(encoding="utf-8"))
        for name in ("body.html.j2", "report.html.j2")
    )
    text, terms = linked(
        body.render(
            title=title,
            runs=openings,
            episodes=episodes,
            home=home,
            missing=gaps,
            sections=[s for s in report.sections if s.blocks or s.text],
        )
    )
    return page.render(
        title=title,
        version=apt_bench.__version__,
        css=safe((folder / "report.css").read_text(encoding="utf-8")),
        body=safe(text),
        terms=terms,
    )


def _plain(value: Any) -> Any:
    """Text of the page without control characters and changes of direction; the report's own markup stays."""
    return plain(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value
