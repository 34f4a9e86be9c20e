"""Output for people: plain text, and a smoothed curve that follows the data."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from apt_bench.core.text import plain_console
from apt_bench.training.metrics import Metrics, plot_losses, read_metrics, smoothed
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe

MARKUP = "cannot open [/dev/dri/renderD128] [red]x[/red] :smile: \x1b[31m \u202e"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("rich_console", [False, True])
def test_text_from_outside_is_never_markup(terminal: bool, rich_console: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=300, force_terminal=terminal) if rich_console else plain_console(out)
    report = Report(console)
    report.say(MARKUP)
    with report.bar(MARKUP, 2) as bar:
        bar.to(1, MARKUP)
        bar.to(2, MARKUP)
    with report.ticking(MARKUP) as tick:
        tick(1, 1)
    text = out.getvalue()
    assert "[/dev/dri/renderD128] [red]x[/red] :smile: \\x1b[31m \\u202e" in text
    assert "\u202e" not in text


def test_the_smoothed_curve_lies_on_the_one_it_smooths() -> None:
    steps = np.arange(200)
    clean = 40 * np.exp(-steps / 20) + 0.5
    noisy = clean * np.exp(0.2 * np.random.default_rng(0).standard_normal(200))
    found = np.array(smoothed(noisy.tolist()))
    assert np.abs(np.log(found / clean)).mean() < 0.5 * np.abs(np.log(noisy / clean)).mean()
    assert abs(np.log(found / clean).mean()) < 0.02  # neither above nor below
    assert found.min() >= noisy.min()
    assert found.max() <= noisy.max()
    assert smoothed([3.0]) == pytest.approx([3.0])
    assert smoothed([-1.0, 0.0, 1.0]) == pytest.approx([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"expert": {"prediction": "sample"}}, "weighted L1 on action codes"),
        ({"expert": {"prediction": "noise"}}, "weighted L1 on noise"),
        ({"recipe": "langforce", "vlm": {"queries": 4}}, "LangForce"),
    ],
)
def test_the_axis_says_what_the_loss_is(
    config: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    over: dict[str, Any],
    says: str,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "apt_bench.training.trainer.plot_losses", lambda folder, title, what: said.append(what)
    )
    base = {"two_stage": False, "stage2": {"steps": 1}}
    run_recipe(load_recipe(str(config), base | over), Session(tmp_path, cache, Report(None)))
    assert says in said[0]


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1.0 / n} for n in range(1, 6)]
    lines = [json.dumps(row) for row in rows]
    strange = ['{"step": 2, "lo', "[]", "null", '{"loss": 1}', '{"step": "x"}', '{"step": 1e400}', "\udcff"]
    text = "\n".join([lines[0], *strange, *lines[1:], lines[0][:5]])
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_metrics(tmp_path) == rows
    metrics = Metrics(tmp_path, 3)
    metrics.write(4, {"loss": 9.0})
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert plot_losses(tmp_path, MARKUP.replace("\x1b", ""), "loss")


def test_a_disk_that_takes_no_metrics_does_not_end_the_training(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = Metrics(tmp_path, 0, said.append)
    file = metrics._file

    class Full:
        def write(self, line: bytes) -> None:
            file.write(line[:4])  # half a line goes to the disk
            raise OSError(errno.ENOSPC, "No space left on device")

    metrics.write(1, {"loss": 1.0})
    metrics._file = Full()  # type: ignore[assignment]
    metrics.write(2, {"loss": 1.0})
    metrics.write(3, {"loss": 1.0})
    metrics._file = file
    metrics.write(4, {"loss": 1.0})
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 4]
    assert len(said) == 1
    assert "No space left on device. Training continues" in said[0]
