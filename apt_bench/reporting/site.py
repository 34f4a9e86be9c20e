"""Writes a site of many runs: leaderboards, one page per run, and pages that compare two runs. It opens offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

from apt_bench.analysis.compare import Comparison, compare, unfinished
from apt_bench.analysis.run import Run
from apt_bench.core.errors import UserError
from apt_bench.core.text import file_name
from apt_bench.reporting.charts import success_chart
from apt_bench.reporting.comparisons import comparison_tables, difference_chart
from apt_bench.reporting.leaderboard import Board, board_tables, boards
from apt_bench.reporting.opening import opening
from apt_bench.reporting.output_folder import INDEX, PAGE, SITE, replaced
from apt_bench.reporting.report import Report, Step, fill_folder, render
from apt_bench.reporting.table import Rate, Row, Table, Value, left, pvalue, right

ALL_PAIRS = 8
"""Runs of a leaderboard up to which all pairs are compared. With more runs, each is compared with the first."""

INTRODUCTION = (
    "Each table has the runs of one suite under one protocol. Scores of different tables are not comparable. The name "
    "of a run leads to its page."
)


def write_site(
    runs: Sequence[Run],
    out: Path,
    title: str | None = None,
    with_published: bool = True,
    pdf: bool = False,
    step: Step = lambda text: None,
) -> Path:
    """Write the site of some runs. An earlier site in `out` is replaced when the new one is complete.

    Args:
        runs: The runs.
        out: The folder: new, empty, or an earlier site.
        title: Title of the first page.
        with_published: Show the paper's rows on the runs' pages. The leaderboards have only measured rows.
        pdf: Also write the figures as PDF.
        step: Gets the name of each step when it begins.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: There is no run, or `out` holds other files or cannot be written; everything stays as it was.
    """
    if not runs:
        raise UserError("--publish needs at least one run.")
    with replaced(out, SITE) as folder:
        names = _folders([r.label for r in runs])
        for number, run in enumerate(runs, 1):
            fill_folder(
                folder / "runs" / names[run.label],
                [run],
                with_published,
                pdf=pdf,
                step=partial(_page_step, step, f"Page {number} of {len(runs)} ({run.label})"),
                home=f"../../{INDEX}",
            )
        pages = {label: f"runs/{quote(name)}/{PAGE}" for label, name in names.items()}
        report = Report(folder, runs, pdf=pdf)
        for board in boards(runs):
            _board(report, board, pages, step)
        report.draw_figures(step)
        page = render(report, [], unfinished(*runs), title or "Leaderboard")
        (folder / INDEX).write_text(page, encoding="utf-8")
    return out / INDEX


def _page_step(step: Step, page: str, text: str) -> None:
    step(f"{page}: {text}")


def _board(report: Report, board: Board, pages: Mapping[str, str], step: Step) -> None:
    text = "" if report.sections else INTRODUCTION
    report.section(file_name(f"{board.suite}-{board.settings}"), board.title, text)
    tables = board_tables(board, pages)
    colours = {run.label: report.colours[run.label] for run in board.runs}
    for number, table in enumerate(tables):
        report.table(table, folded=False)
        if number == 0:
            chart = partial(success_chart, table, colours)
            report.figure(f"success_{table.name}", chart, f"{table.title}: success in %, with 95% intervals.")
    order = {str(row.values["method"]): at for at, row in enumerate(tables[0].rows)}
    ranked = sorted(board.runs, key=lambda r: order.get(r.label, len(order)))
    report.table(_comparisons(report, board, ranked, pages, step), folded=False)


def _comparisons(
    report: Report, board: Board, ranked: Sequence[Run], pages: Mapping[str, str], step: Step
) -> Table | None:
    """Write the pages that compare two runs of a leaderboard; returns the table that links them."""
    rows: list[Row] = []
    left_out: list[str] = []
    pairs = [*combinations(ranked, 2)]
    if len(ranked) > ALL_PAIRS:
        pairs = [(ranked[0], other) for other in ranked[1:]]
    for number, (a, b) in enumerate(pairs):
        step(f"Comparing runs: {number} of {len(pairs)} pairs of {board.title} done")
        try:
            found = compare(a, b)
        except UserError as error:
            left_out.append(str(error))
            continue
        name = f"{file_name(board.suite)[:40]}-{board.settings}-{number + 1}"
        _pair(report, report.out / "compare" / name, a, b, found, pages)
        overall = found.overall
        values: dict[str, Value] = {
            "pair": f"{a.label} against {b.label}", "pairs": overall.n_a if overall.paired else "not matched",
            "difference": Rate.of(overall.difference, signed=True), "p": pvalue(overall.p),
            "verdict": overall.words.replace("A better", f"{a.label} better").replace("B better", f"{b.label} better"),
        }  # fmt: skip
        rows.append(Row(values, link=f"compare/{quote(name)}/{INDEX}"))
    columns = [
        left("pair", "Comparison"), right("pairs", "Pairs"), right("difference", "Difference"), right("p", "p"),
        left("verdict", "Verdict"),
    ]  # fmt: skip
    notes = [
        "Difference of the success rates in points, first minus second run, with its 95% interval, over the cells that "
        "both runs have. Pairs: episodes from the same initial state. The p-values are not adjusted for the number of "
        "comparisons in this table.",
        *(["Each run is compared with the first one."] if len(ranked) > ALL_PAIRS else []),
        *left_out,
    ]
    name = f"comparisons_{board.suite}_{board.settings}"
    return Table(name, "Comparisons", columns, rows, notes, paper=False) if rows else None


def _pair(report: Report, folder: Path, a: Run, b: Run, found: Comparison, pages: Mapping[str, str]) -> None:
    """Write the page that compares two runs."""
    page = Report(folder, [a, b], pdf="pdf" in report.kinds)
    page.section("compare", f"{a.label} against {b.label}")
    tables = comparison_tables(found, a.label, b.label)
    page.table(tables[0], folded=False)
    page.figure(
        "compare", partial(difference_chart, tables[0]), "Difference of each cell, with its 95% interval."
    )
    for table in tables[1:]:
        page.table(table, folded=True)
    page.draw_figures()
    openings = [opening(run) | {"link": f"../../{pages[run.label]}"} for run in (a, b)]
    text = render(page, openings, found.cautions, f"{a.label} against {b.label}", home=f"../../{INDEX}")
    (folder / INDEX).write_text(text, encoding="utf-8")


def _folders(labels: Sequence[str]) -> dict[str, str]:
    """Label -> name of the folder of the run's page. No two names are equal, whatever the case of their letters."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        name = next(n for n in _numbered(file_name(label)) if n.casefold() not in taken)
        taken.add(name.casefold())
        found[label] = name
    return found


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
