"""`python -m apt_bench.envs.tabletop.contact_sheet SUITE OUT.png [CELL ...]`: the first scenes of each cell."""

from __future__ import annotations

import sys
import textwrap

from PIL import Image, ImageDraw, ImageOps

from apt_bench.envs.tabletop.env import TabletopEnv
from apt_bench.suites import load_suite

COLUMNS, SIZE, TEXT = 5, 192, 50
BITS = 5  # per channel, to keep the file small


def contact_sheet(suite_name: str, cells: list[str]) -> Image.Image:
    """One row per cell, one column per initial state, tasks in turn."""
    suite = load_suite(suite_name)
    chosen = cells or [c.name for c in suite.cells if c.headline]
    sheet = Image.new("RGB", (COLUMNS * SIZE, len(chosen) * (SIZE + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    env = TabletopEnv()
    for row, cell in enumerate(chosen):
        tasks = len(suite.cell_tasks(suite.cell(cell)))
        specs = suite.select([cell], episodes=COLUMNS)
        for column in range(COLUMNS):
            spec = specs[column // tasks + (column % tasks) * COLUMNS]
            env.reset(spec)
            corner = (column * SIZE, row * (SIZE + TEXT))
            frame = Image.fromarray(env.frame(size=2 * SIZE)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            sheet.paste(frame, corner)
            sentence = " ".join(s for s in (spec.prompt, spec.prompts.get("second")) if s)
            lines = textwrap.wrap(f"[{cell}] {sentence}", SIZE // 6 + 2)[:4]
            draw.multiline_text((corner[0] + 3, corner[1] + SIZE + 1), "\n".join(lines), "black", spacing=1)
    env.close()
    return ImageOps.posterize(sheet, BITS)


if __name__ == "__main__":
    contact_sheet(sys.argv[1], sys.argv[3:]).save(sys.argv[2], optimize=True)
