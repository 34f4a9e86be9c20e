"""The paper's comparison in miniature: stages x VLM mode x redundancy of language x seeds, on rigid_pick_place.

    python benchmarks/two_stage_effect.py --out results/two-stage-effect            # everything; resumable
    python benchmarks/two_stage_effect.py --seeds 0 --splits train_redundant --cells so,uo --episodes 10
    python benchmarks/two_stage_effect.py --table                                   # only what is there

Killed at any point, the same command goes on: demonstrations, VLM, features, stages and episodes are each found
again. Training takes one core: on several, start it once per core with other --seeds, and --workers 0. Arms share
demonstrations and the pretrained VLM; the two-stage arms of one seed share their prior. One-stage arms come with
Stage 2's steps (`joint`) and with those of both stages (`total`).

Of every cell the table gives, with 95 % intervals over the episodes of all seeds (Wilson; seeds are listed apart, since
episodes of one training are not independent of each other): success, the right item touched first, anything lifted.
Of every arm: the share of nouns that the VLM finds in the robot's sentence before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from apt_bench.models import checkpoint
from apt_bench.models.mini_vlm import MiniVLM
from apt_bench.records import EpisodeRecord
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.stats import wilson
from apt_bench.training.complete import completed
from apt_bench.training.config import Episodes, Recipe, load_recipe
from apt_bench.training.frames import default_cache
from apt_bench.training.pairs import LOOKS, open_pictures
from apt_bench.training.pretrain import Heads, grounding
from apt_bench.training.progress import Report
from apt_bench.training.stages import Session, run_recipe, stage_checkpoint

ARMS: dict[str, dict[str, Any]] = {
    "two stages, frozen": {"two_stage": True, "vlm_mode": "frozen"},
    "two stages, VLM trained": {"two_stage": True, "vlm_mode": "full"},
    "one stage, KI, joint steps": {"two_stage": False, "ki": True},
    "one stage, KI, total steps": {"two_stage": False, "ki": True, "budget": "total"},
    "one stage, VLM trained, joint steps": {"two_stage": False, "vlm_mode": "full"},
    "one stage, VLM trained, total steps": {"two_stage": False, "vlm_mode": "full", "budget": "total"},
}
PRIOR = "prior alone"
SPLITS = ("train_redundant", "train", "train_ambiguous")
SCENES = 7
"""Seed of the scenes that training seed 0 is tested in, the suite's own; seed s has those of SCENES + s."""
SENTENCE = "move the {} to the plate ."
PROBE_SCENES = 50


@dataclasses.dataclass(frozen=True)
class Job:
    """One training."""

    split: str
    seed: int
    arm: str

    def folder(self, out: Path) -> Path:
        """Where its run lies."""
        return out / self.split / f"seed{self.seed}" / self.arm.replace(", ", "-").replace(" ", "_")


def recipe_of(job: Job, options: argparse.Namespace) -> Recipe:
    """The mini recipe with this arm's switches. Two-stage arms after the first take its prior, if it is there."""
    over = {
        **ARMS[job.arm],
        "seed": job.seed,
        "collect": {"cells": [job.split]},
        "stage1": {"steps": options.stage1_steps},
        "stage2": {"steps": options.stage2_steps},
    }
    first = dataclasses.replace(job, arm=next(iter(ARMS))).folder(options.out)
    if over["two_stage"] and job.folder(options.out) != first and (first / "stage1").is_dir():
        over["prior"] = str(stage_checkpoint(first, 1))
    return load_recipe(options.config, over)


def evaluate(
    policy: Path, seed: int, look: Episodes, out: Path, options: argparse.Namespace, console: Console
) -> list[EpisodeRecord]:
    """Episodes of all cells, in scenes that belong to the training seed; those that are there are not run again."""
    wanted = RunOptions(
        suite="rigid_pick_place",
        policy="apt_bench.policies.apt:AptPolicy",
        policy_args=(f"weights={policy}", *look.policy_args),
        cells=tuple(options.cells),
        episodes=options.episodes,
        seed=SCENES + seed,
        execute=look.execute,
        workers=options.workers,
        out=out,
    )
    return run(wanted, console).records


def probe(vlm: MiniVLM, folder: Path, cache: Path, scenes: int) -> dict[str, float]:
    """Nouns found in the robot's sentence, by the heads of pretraining, on scenes that come after its `scenes`."""
    heads = Heads(vlm.config.width, vlm.config.views)
    heads.load_state_dict(load_file(folder / "heads.safetensors"))
    pictures = open_pictures(vlm.config, PROBE_SCENES, cache, first=scenes)
    return grounding(vlm, heads, pictures, np.arange(LOOKS * PROBE_SCENES), SENTENCE)


def do(job: Job, options: argparse.Namespace, console: Console) -> None:
    """Train, evaluate, probe; writes `result.json` into the job's folder."""
    folder = job.folder(options.out)
    if (folder / "result.json").is_file():
        return
    console.rule(f"{job.split}, seed {job.seed}: {job.arm}")
    session = Session(folder, cache=options.cache, report=Report(console))
    began = time.perf_counter()
    recipe = completed(recipe_of(job, options), session, console)
    policy = run_recipe(recipe, session)
    weights, scenes = Path(recipe.vlm_weights), recipe.pretrain.scenes
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - began)}
    records = {job.arm: evaluate(policy, job.seed, recipe.evaluate, folder / "evaluation", options, console)}
    if recipe.two_stage and job.arm == next(iter(ARMS)):
        prior = stage_checkpoint(folder, 1)
        records[PRIOR] = evaluate(
            prior, job.seed, recipe.evaluate, folder / "evaluation_of_prior", options, console
        )
    found["cells"] = {arm: counts(rows) for arm, rows in records.items()}
    vlm = checkpoint.load(policy).vlm
    assert isinstance(vlm, MiniVLM)
    found["grounding"] = probe(vlm, weights, options.cache, scenes)
    (folder / "result.json").write_text(json.dumps(found, indent=2))


def counts(records: Sequence[EpisodeRecord]) -> dict[str, dict[str, int]]:
    """By cell: episodes, successes, right item touched first, any item lifted. Errors are missing data."""
    out: dict[str, dict[str, int]] = {}
    for r in records:
        if r.outcome == "error":
            continue
        cell = out.setdefault(r.key.cell, dict.fromkeys(("episodes", "success", "right", "lifted"), 0))
        item, *containers = r.events["targets"]
        touched = [name for name in r.events["touched"] if name not in containers]
        cell["episodes"] += 1
        cell["success"] += r.outcome == "success"
        cell["right"] += bool(touched) and touched[0] == item
        cell["lifted"] += bool(r.events["lifted"])
    return out


def table(options: argparse.Namespace, console: Console) -> None:
    """What is there."""
    for split in options.splits:
        shown = Table(title=f"rigid_pick_place, trained on {split}: success / right item / lifted, %")
        shown.add_column("arm")
        shown.add_column("seeds", justify="right")
        for cell in options.cells:
            shown.add_column(cell, justify="right")
        shown.add_column("nouns found: seen, unseen, containers")
        for arm in (PRIOR, *ARMS):
            results = list(_results(split, arm, options))
            if not results:
                continue
            row = [arm, str(len(results))]
            for cell in options.cells:
                rows = [r["cells"][arm][cell] for r in results if cell in r["cells"].get(arm, {})]
                row.append(_rates(rows))
            found = [r["grounding"] for r in results] if arm != PRIOR else []
            row.append(
                " ".join(f"{np.nanmean([f[k] for f in found]):.2f}" for k in found[0]) if found else ""
            )
            shown.add_row(*row)
        if shown.row_count:
            console.print(shown)


def _results(split: str, arm: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in options.seeds:
        path = Job(split, seed, next(iter(ARMS)) if arm == PRIOR else arm).folder(options.out) / "result.json"
        if path.is_file():
            yield json.loads(path.read_text())


def _rates(rows: list[dict[str, int]]) -> str:
    n = sum(r["episodes"] for r in rows)
    if not n:
        return ""
    won = sum(r["success"] for r in rows)
    low, high = wilson(won, n)
    rest = " / ".join(f"{100 * sum(r[k] for r in rows) / n:.0f}" for k in ("right", "lifted"))
    each = ", ".join(f"{100 * r['success'] / r['episodes']:.0f}" for r in rows)
    return f"{100 * won / n:.0f} [{100 * low:.0f}, {100 * high:.0f}] / {rest}\n({each})"


def main() -> None:
    """Run what is asked for, seed by seed, so that a part of the table is there early."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/two-stage-effect"))
    parser.add_argument("--config", default="mini")
    parser.add_argument("--stage1-steps", type=int, default=600)
    parser.add_argument("--stage2-steps", type=int, default=600)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--cells", default="so,uo,uc,uoue")
    parser.add_argument(
        "--arms", default="", help="only arms whose names hold one of these words, divided by ;"
    )
    parser.add_argument("--episodes", type=int, default=50, help="per task, two tasks a cell")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--table", action="store_true", help="only print")
    options = parser.parse_args()
    options.seeds = [int(s) for s in options.seeds.split(",")]
    options.splits, options.cells = options.splits.split(","), options.cells.split(",")
    torch.set_num_threads(1)
    console = Console(width=200)
    words = [w.strip() for w in options.arms.split(";") if w.strip()]
    if not options.table:
        for seed in options.seeds:
            for split in options.splits:
                for arm in ARMS:
                    if not words or any(w in arm for w in words):
                        do(Job(split, seed, arm), options, console)
    table(options, console)


if __name__ == "__main__":
    main()
