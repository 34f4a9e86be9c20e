"""Style and file formats of the figures: the colour-blind safe palette of Okabe and Ito, and hatches for grey print."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#222222",
)  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
PAPER, INK, MUTED = "#B8B8B8", "#222222", "#6B6B6B"
WIDTH = 6.9
"""Width of a figure in inches: the text width of a two-column paper."""
KINDS = ("png", "pdf", "svg")

_STYLE: Any = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.fonttype": "path",  # the font need not be installed where the page is read
    "svg.hashsalt": "apt-bench",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name may contain any character, such as $
    "text.usetex": False,
    "figure.constrained_layout.use": True,
}


@cache
def _family() -> str:
    """The first font that is installed; the last one comes with matplotlib. matplotlib would search a list of families
    again for every word."""
    installed = set(font_manager.get_font_names())
    return next((f for f in ("Arial", "Helvetica", "Liberation Sans") if f in installed), "DejaVu Sans")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the figures inside a `with` block; matplotlib's settings are restored after it."""
    with mpl.rc_context({**_STYLE, "font.family": _family()}):
        yield


def save(figure: Figure, name: str, folder: Path) -> list[Path]:
    """Write `NAME.png` (200 dpi), `NAME.pdf` and `NAME.svg` into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in KINDS]
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font's empty box is drawn
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keep the layout of the line above for all formats
        for path in paths:
            stamp = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:], {})
            figure.savefig(path, dpi=200, metadata=stamp)
    return paths
