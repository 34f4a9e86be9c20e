"""Style and file formats of the figures: the colour-blind safe palette of Okabe and Ito, and hatches for grey print."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#222222",
)  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
PAPER, INK, MUTED = "#B8B8B8", "#222222", "#6B6B6B"
LINE = "#D9D9D9"
ON_COLOUR = "#111111"
"""Text on a coloured square: dark on every background, also on the page's dark one."""
WIDTH = 6.9
"""Width of a figure in inches: the text width of a two-column paper."""

_STYLE: Any = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # else matplotlib lays out all tick labels several times to place a title
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
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
    "text.hinting": "none",  # else a text is up to 5% wider at one resolution than at another, and drawn more slowly
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


def run_colours(labels: Sequence[str]) -> dict[str, str]:
    """Run -> its colour, the same in every figure of a report."""
    return dict(zip(labels, SERIES * (len(labels) // len(SERIES) + 1), strict=False))


_METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
"""No file has the time at which it was written."""

Box = tuple[float, float, float, float]
"""Left, top, width and height in points from the top left corner."""


def save(figure: Figure, name: str, folder: Path, pdf: bool = False) -> list[Box]:
    """Write `NAME.svg` and `NAME.png` (200 dpi) into a folder, and `NAME.pdf` on request.

    Args:
        figure: The figure. It is laid out once, and nothing of it is cut off.
        name: The files' name.
        folder: Where to write; it is made where it does not exist.
        pdf: Also write a PDF.

    Returns:
        Where the figure's legends and panels are, in the SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # All formats have one layout. With a layout engine, matplotlib would draw the figure once more for each.
    with style(), mpl.rc_context({"figure.constrained_layout.use": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font's empty box is drawn
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
        figure.set_layout_engine(None)
        parts: list[Any] = [part.get_tightbbox() for part in (*figure.legends, *figure.axes)]
        whole = Bbox.union(parts).transformed(figure.dpi_scale_trans.inverted()).padded(0.04)
        boxes = [_box(part, figure.dpi, whole) for part in parts]
        for kind in ("svg", "png", *(["pdf"] if pdf else [])):
            figure.savefig(folder / f"{name}.{kind}", dpi=200, metadata=_METADATA[kind], bbox_inches=whole)
    return boxes


def _box(part: Any, dpi: float, whole: Any) -> Box:
    """A bounding box in pixels as a box of the saved SVG."""
    left, top = 72 * (part.x0 / dpi - whole.x0), 72 * (whole.y1 - part.y1 / dpi)
    return left - 3, top - 3, 72 * part.width / dpi + 6, 72 * part.height / dpi + 6
