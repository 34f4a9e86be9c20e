"""`apt-bench compare`, `check` and `power`: compare two runs, check for a regression, plan the number of episodes."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apt_bench.cli._grid import print_table
from apt_bench.cli._json import AsJson, print_json
from apt_bench.core.config import Count, Range, checked
from apt_bench.core.errors import UserError
from apt_bench.core.files import reason, require_writable
from apt_bench.core.status import status
from apt_bench.core.text import plain_console, say

if TYPE_CHECKING:
    from apt_bench.analysis.contrasts import Contrast

Percent = Annotated[float, Range(least=0, most=100)]
Margin = Annotated[float, Range(least=0.01, below=100)]
Chance = Annotated[float, Range(least=0.1, most=99.99)]
Size = Annotated[float, Range(least=1e-6, most=0.5)]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("compare")(compare_command)
    app.command("check")(check_command)
    app.command("power")(power_command)


def compare_command(
    a: Annotated[str, typer.Argument(metavar="A", help="Run directory A (or NAME=DIR).")],
    b: Annotated[str, typer.Argument(metavar="B", help="Run directory B (or NAME=DIR).")],
    force: Annotated[bool, typer.Option("--force", help="Compare although the protocols differ.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write tables and a figure here: a new folder, or an earlier comparison's."),
    ] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="Print the per-task table too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, matched episode by episode.

    Prints the difference with its 95% interval, the p-value and the verdict, for each cell and overall."""
    with status("Reading two runs") as step:
        from apt_bench.analysis.compare import compare
        from apt_bench.analysis.run import load_runs
        from apt_bench.reporting.chart_style import save
        from apt_bench.reporting.comparisons import comparison_tables, difference_chart
        from apt_bench.reporting.output_folder import COMPARISON, replaced
        from apt_bench.reporting.table_files import write

        with replaced(out, COMPARISON) if out else nullcontext() as folder:
            first, second = load_runs([a, b])
            step("Matching episodes and computing intervals")
            found = compare(first, second, force)
            tables = comparison_tables(found, first.label, second.label)
            if folder:
                step("Drawing the figure")
                for table in tables:
                    write(table, folder / "tables")
                figure = difference_chart(tables[0])
                if figure:
                    save(figure, "compare", folder / "figures")
    if as_json:
        parts = {
            k: [contrast_card(c) for c in v] for k, v in (("cells", found.cells), ("tasks", found.tasks))
        }
        card = vars(found) | parts | {"overall": contrast_card(found.overall)}
        print_json({"a": first.label, "b": second.label} | card)
        return
    for table in tables if tasks else tables[:1]:
        print_table(table, plain_console())
    if out:
        _print(str(out))


def contrast_card(contrast: Contrast) -> dict[str, Any]:
    """A contrast as `compare --json` prints it."""
    return vars(contrast) | {"verdict": contrast.verdict, "holds_for": contrast.holds_for}


def check_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory to check.")],
    against: Annotated[str, typer.Option(help="Run directory of the baseline.")],
    margin: Annotated[
        float,
        typer.Option(callback=checked(Margin, "--margin"), help="Largest drop that still passes, in points."),
    ] = 5.0,
    coverage: Annotated[
        float,
        typer.Option(
            callback=checked(Percent, "--coverage"), help="Smallest share of finished episodes, in %."
        ),
    ] = 98.0,
    force: Annotated[bool, typer.Option("--force", help="Check although the protocols differ.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help="Append Markdown to this file. Default: $GITHUB_STEP_SUMMARY where it is set."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether a run is worse than its baseline.

    Exit code: 0 pass, 1 regressed, 3 inconclusive; 2 is bad input."""
    with status("Reading two runs") as show:
        from apt_bench.analysis.check import check
        from apt_bench.analysis.run import load_runs
        from apt_bench.reporting import comparisons

        step = summary or (
            Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None
        )
        for path in filter(None, (junit, step)):
            require_writable(path)
        this, base = load_runs([run, against])
        show("Matching episodes and computing intervals")
        found = check(this, base, margin / 100, force, coverage / 100)
    code = found.exit_code
    if as_json:
        print_json({"run": this.label, "baseline": base.label} | vars(found) | {"exit_code": code})
    else:
        print_table(comparisons.check_table(found, this.label, base.label), plain_console())
        for sentence in found.reasons:
            _print(sentence)
        _print(f"Verdict: {found.verdict}")
    try:
        if junit:
            junit.write_text(comparisons.junit(found, this.label, base.label), encoding="utf-8")
        if step:
            with open(step, "a", encoding="utf-8") as file:
                file.write(comparisons.summary(found, this.label, base.label))
    except OSError as error:  # the disk is full by now: only a pass changes its exit code
        say(f"Cannot write {error.filename or junit or step}: {reason(error)}.")
        code = code or UserError.exit_code
    raise typer.Exit(code)


def power_command(
    a: Annotated[
        float,
        typer.Argument(metavar="A", callback=checked(Percent, "A"), help="Success rate of one policy, in %."),
    ],
    b: Annotated[
        float,
        typer.Argument(metavar="B", callback=checked(Percent, "B"), help="Success rate of the other, in %."),
    ],
    discordance: Annotated[
        float | None,
        typer.Option(
            callback=checked(Percent, "--discordance"),
            help="Share of matched episodes in which they differ, in %. Default: as if they were independent.",
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            callback=checked(Count, "--episodes"),
            help="Print the power with this number, instead of the number that is needed.",
        ),
    ] = None,
    power: Annotated[
        float, typer.Option(callback=checked(Chance, "--power"), help="Power to reach, in %.")
    ] = 80.0,
    alpha: Annotated[
        float,
        typer.Option(callback=checked(Size, "--alpha"), help="Significance level of the two-sided test."),
    ] = 0.05,
    margin: Annotated[
        float | None,
        typer.Option(
            callback=checked(Margin, "--margin"),
            help="Compute the numbers for `check` with this margin, in points: run A against baseline B.",
        ),
    ] = None,
) -> None:
    """Compute how many episodes show that two success rates differ.

    The numbers hold for the same tasks, with matched and with independent episodes. With --episodes, compute the power
    of that number."""
    from apt_bench.analysis import stats

    p, q = a / 100, b / 100
    independent = p * (1 - q) + q * (1 - p)
    share = independent if discordance is None else discordance / 100
    if not abs(p - q) - 1e-9 <= share <= min(1.0, p + q, 2 - p - q) + 1e-9:
        raise UserError(
            f"With {a:g}% and {b:g}% between {abs(a - b):g}% and {100 * min(1.0, p + q, 2 - p - q):g}% of matched "
            f"episodes can differ, not {100 * share:g}%."
        )
    share = max(share, abs(p - q))
    if margin is not None:
        _power_of_check(p - q, share, margin / 100, episodes, power / 100)
        return
    if episodes is not None:
        _print(f"Power with {episodes} matched episodes ({100 * share:.3g}% differ): "
               f"{100 * stats.paired_power(episodes, p - q, share, alpha):.1f}%")  # fmt: skip
        _print(f"Power with {episodes} episodes each, not matched: "
               f"{100 * stats.unpaired_power(episodes, p, q, alpha):.1f}%")  # fmt: skip
        return
    if p == q:
        raise UserError("Equal rates never differ significantly. Give two different rates, or --episodes.")
    matched = stats.paired_sample_size(p - q, share, power / 100, alpha)
    apart = stats.unpaired_sample_size(p, q, power / 100, alpha)
    _print(f"Matched episodes ({100 * share:.3g}% differ), exact McNemar: {matched}")
    _print(f"Episodes each, not matched: {int(-(-apart // 1))}")


def _power_of_check(
    difference: float, share: float, margin: float, episodes: int | None, chance: float
) -> None:
    from apt_bench.analysis.check import MOST, pairs_to_pass, pass_chance

    if episodes is not None and episodes > MOST:
        raise UserError(f"--episodes must be at most {MOST} with --margin, not {episodes}.")
    which = f"`check --margin {100 * margin:g}` of one cell, {100 * share:.3g}% of matched episodes differ"
    if episodes is not None:
        passes = pass_chance(episodes, margin, share, difference)
        _print(f"Chance to pass with {episodes} matched episodes ({which}): {100 * passes:.1f}%")
    elif difference:
        raise UserError("Equal rates, or --episodes: the number to pass is that of a rerun without change.")
    else:
        needed = pairs_to_pass(margin, share, chance)
        _print(
            f"Matched episodes for a rerun without change to pass in {100 * chance:g}% ({which}): {needed}"
        )


def _print(text: str) -> None:
    plain_console().print(text, markup=False, soft_wrap=True)
