"""`python -m apt_bench.envs.scene_gallery SUITE OUT.png [CELL ...] [--run DIR]`: the first scenes of each cell.

With `--run`, a run directory with stored actions (`apt-bench run --save-actions`), five of its successes are replayed
instead, each in a column: the start, and the state in which each part of the task was done."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from apt_bench.core.config import load_object
from apt_bench.envs.base import Env
from apt_bench.runs.records import RunStore
from apt_bench.suites import EpisodeSpec, load_suite

COLUMNS, SIZE, TEXT = 5, 192, 50
BITS = 5  # per channel, to keep the file small


def contact_sheet(suite_name: str, cells: list[str], run: Path | None = None) -> Image.Image:
    """One row per cell, one column per initial state, tasks in turn; with `run`, one row per part of the task."""
    suite = load_suite(suite_name)
    env: Env = load_object(suite.env)()
    rows = []
    for cell in cells or [c.name for c in suite.cells if c.headline]:
        tasks = len(suite.cell_tasks(suite.cell(cell)))
        if run is None:
            specs = suite.select([cell], episodes=COLUMNS)
            chosen = [specs[column // tasks + (column % tasks) * COLUMNS] for column in range(COLUMNS)]
            rows.append([(_start(env, spec), f"[{cell}] {_sentence(spec)}") for spec in chosen])
        else:
            done = [r for r in RunStore(run).episodes() if r.key.cell == cell and r.outcome == "success"]
            played = []
            for record in done[:: max(1, len(done) // COLUMNS)][:COLUMNS]:
                spec = suite.episode(record.key)
                name = f"{cell}/{record.key.task}_init{record.key.init}.npz"
                actions = np.load(run / "actions" / name)["actions"]
                played.append(_played(env, spec, actions, record.events.get("part_steps", ())))
            rows += [list(row) for row in zip(*played, strict=True)]
    env.close()
    return _paste(rows)


def _sentence(spec: EpisodeSpec) -> str:
    return " / ".join(s for s in (spec.prompt, spec.prompts.get("second")) if s)


def _start(env: Env, spec: EpisodeSpec) -> Image.Image:
    env.reset(spec)
    return _picture(env)


def _picture(env: Env) -> Image.Image:
    return Image.fromarray(env.frame(size=2 * SIZE)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _played(
    env: Env, spec: EpisodeSpec, actions: np.ndarray, stops: list[int]
) -> list[tuple[Image.Image, str]]:
    """The start under the sentence, then the state at each of these control steps."""
    found = [(_start(env, spec), _sentence(spec))]
    for number, (a, b) in enumerate(zip([0, *stops], stops, strict=False), 1):
        env.step_chunk(actions[a:b], render=False)
        found.append((_picture(env), f"T{number} done, step {b}"))
    return found


def _paste(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    sheet = Image.new("RGB", (COLUMNS * SIZE, len(rows) * (SIZE + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (frame, text) in enumerate(row):
            corner = (x * SIZE, y * (SIZE + TEXT))
            sheet.paste(frame, corner)
            lines = textwrap.wrap(text, SIZE // 6 + 2)[:4]
            draw.multiline_text((corner[0] + 3, corner[1] + SIZE + 1), "\n".join(lines), "black", spacing=1)
    return ImageOps.posterize(sheet, BITS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("out")
    parser.add_argument("cells", nargs="*")
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    contact_sheet(args.suite, args.cells, args.run).save(args.out, optimize=True)
