"""Draw the first scenes of each cell: `python -m apt_bench.envs.scene_gallery SUITE OUT.png [CELL ...] [--run DIR]`.

`--run` names a run directory with stored actions (`apt-bench run --save-actions`). Five of its successes are then
replayed instead. Each column shows one episode: its start, and the state in which each subtask was done.
"""

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
BITS = 5  # bits per colour channel, for a small file


def scene_gallery(suite_name: str, cells: list[str], run: Path | None = None) -> Image.Image:
    """Draw one row per cell and one column per episode, taking the tasks in turn. With `run`: one row per subtask."""
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
            columns = []
            for record in done[:: max(1, len(done) // COLUMNS)][:COLUMNS]:
                spec = suite.episode(record.key)
                name = f"{cell}/{record.key.task}_init{record.key.init}.npz"
                actions = np.load(run / "actions" / name)["actions"]
                columns.append(_replayed(env, spec, actions, record.events.get("part_steps", ())))
            rows += [list(row) for row in zip(*columns, strict=True)]
    env.close()
    return _paste(rows)


def _sentence(spec: EpisodeSpec) -> str:
    return " / ".join(s for s in (spec.prompt, spec.prompts.get("second")) if s)


def _start(env: Env, spec: EpisodeSpec) -> Image.Image:
    env.reset(spec)
    return _image(env)


def _image(env: Env) -> Image.Image:
    return Image.fromarray(env.frame(size=2 * SIZE)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _replayed(
    env: Env, spec: EpisodeSpec, actions: np.ndarray, stops: list[int]
) -> list[tuple[Image.Image, str]]:
    """The start, captioned with the instruction, and the state at each of the control steps `stops`."""
    found = [(_start(env, spec), _sentence(spec))]
    for number, (a, b) in enumerate(zip([0, *stops], stops, strict=False), 1):
        env.step_chunk(actions[a:b], render=False)
        found.append((_image(env), f"T{number} done, step {b}"))
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
    scene_gallery(args.suite, args.cells, args.run).save(args.out, optimize=True)
