"""LaTeX tables fit a paper of two columns."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from runs import add, record, write_run

from apt_bench.analysis.run import load_runs
from apt_bench.reporting.report import write_tables
from apt_bench.reporting.table import Rate, Row, Table, left, right
from apt_bench.reporting.table_files import NARROW, ONE, SEPARATION, TWO, latex

PAPER = r"""\documentclass[10pt,twocolumn]{article}
\setlength{\textwidth}{496pt}\setlength{\columnsep}{20pt}\setlength{\textheight}{630pt}
\usepackage{array,booktabs,graphicx,amssymb}
\begin{document}
"""


def table(columns: int, text: str, rows: int = 2) -> Table:
    names = [
        left("a", "Name"),
        left("b", "Task"),
        *(right(str(i), "Other first contact") for i in range(columns)),
    ]
    values = {"a": text, "b": text, **{str(i): Rate(0.5, 0.4, 0.6, 5, 10) for i in range(columns)}}
    return Table(f"t{columns}-{len(text)}", "T", names, [Row(values)] * rows)


def test_a_small_table_takes_one_column_and_a_wide_one_two() -> None:
    assert r"\begin{table}" in latex(table(1, "x"))
    wide = latex(table(6, "put the black bowl on the plate"))
    assert r"\begin{table*}" in wide
    assert r"\resizebox" not in wide


def test_text_is_broken_into_lines_that_fit() -> None:
    code = latex(table(4, "put the black bowl between the plate and the ramekin " * 5))
    widths = [int(w) for w in re.findall(r"p\{(\d+)pt\}", code)]
    assert len(widths) == 2
    assert min(widths) >= NARROW
    assert sum(widths) + 6 * SEPARATION < TWO
    assert ONE < TWO / 2


def test_what_cannot_fit_is_scaled_and_a_long_table_continues() -> None:
    assert r"\resizebox{\textwidth}{!}{%" in latex(table(30, "x"))
    code = latex(table(2, "x", rows=120))
    assert code.count(r"\begin{table") == code.count(r"\end{table") > 2
    assert "(continued)" in code
    assert len(re.findall(r"x & x", code)) == 120


def test_tables_of_a_run_compile_without_an_overfull_box(tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex is installed")
    path = write_run(
        tmp_path / "run", lambda c, t, i: i < 2, {"goal_pos": 3, "goal_task": 3, "spatial_pos": 3}
    )
    for i in range(3):
        long = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
        events = {"targets": ["bowl_1"], "touched": {"black_bowl_1": 1}, "goal": {"on(bowl_1, plate_1)": {}}}
        change = {"events": events, "prompt": long.replace("_", " ")}
        add(
            path,
            *(
                record("goal_task", long, i, i < 1, prompt_id=p, **change)
                for p in ("default", "null", "repeat")
            ),
        )
    write_tables(load_runs([f"a rather long name of a run={path}"]), tmp_path)
    write_tables([], tmp_path / "paper")
    files = [*(tmp_path / "tables").glob("*.tex"), *(tmp_path / "paper" / "tables").glob("*.tex")]
    assert {"probes", "tasks", "language", "libero_pro"} <= {f.stem for f in files}
    (tmp_path / "wide.tex").write_text(latex(table(30, "x")) + latex(table(5, "word " * 40, rows=60)))
    body = "".join(rf"\input{{{f}}}\clearpage" + "\n" for f in [*sorted(files), tmp_path / "wide.tex"])
    (tmp_path / "paper.tex").write_text(PAPER + body + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.findall(r"^(?:Overfull|.*Float too large).*", done.stdout, re.MULTILINE)
