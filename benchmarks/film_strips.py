"""Draw one solved and one failed episode of each cell: `python benchmarks/film_strips.py RUN OUT`.

The run must have videos (`apt-bench run --video all`). A cell without a solved or without a failed video gets the
other one only.
"""

import sys
import textwrap
from pathlib import Path

import imageio.v3 as iio
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from apt_bench.analysis.run import load_run
from apt_bench.analysis.suite_labels import cell_label
from apt_bench.core.wording import in_words

FRAMES = 6  # per episode
SIDE, TITLE = 1.15, 0.34  # of a frame, and above it; inches


def main(run: str, out: str) -> None:
    table = load_run(Path(run)).frame
    table = table[table.video.notna() & table.finished]
    chosen = table.groupby(["cell", "success"], observed=True, sort=False).head(1)
    chosen = chosen.sort_values(["cell", "success"], ascending=[True, False], kind="stable")
    height = len(chosen) * (SIDE + TITLE)
    figure, axes = plt.subplots(
        len(chosen),
        FRAMES,
        figsize=(FRAMES * SIDE, height),
        squeeze=False,
        gridspec_kw={
            "left": 0.01,
            "right": 0.99,
            "bottom": 0.02 / height,
            "top": 1 - TITLE / height,
            "wspace": 0.04,
            "hspace": TITLE / SIDE,
        },
    )
    for row, episode in zip(axes, chosen.itertuples(), strict=True):
        film = iio.imread(Path(run) / str(episode.video))
        for ax, k in zip(row, np.linspace(0, len(film) - 1, FRAMES).round().astype(int), strict=True):
            ax.imshow(film[k][:, : film.shape[1] // 2] if film.shape[2] > 1.5 * film.shape[1] else film[k])
            ax.set_axis_off()
        outcome = "solved" if episode.success else f"failed: {in_words(str(episode.outcome_class))}"
        title = f"{cell_label(str(episode.suite), str(episode.cell))}, {outcome}. “{episode.instruction}”"
        row[0].set_title("\n".join(textwrap.wrap(title, 98)), loc="left", fontsize=7)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
