"""The paper's comparison in miniature: stages x VLM mode x redundancy of language x seeds, on rigid_pick_place.

    python benchmarks/two_stage_effect.py --out results/two-stage-effect            # everything; resumable
    python benchmarks/two_stage_effect.py --seeds 0 --splits train_redundant --cells so,uo --episodes 10
    python benchmarks/two_stage_effect.py --table                                   # only print stored results

Rerun the same command to resume: finished demonstrations, VLM, features, stages and episodes are reused. Training takes
one core. On several cores, start the command once per core with other --seeds and with --workers 0. Arms share the
demonstrations and the pretrained VLM, and the two-stage arms of one seed share their prior. One-stage arms have the
steps of Stage 2 (`joint`) or of both stages (`total`).

The table (Markdown) gives for every cell the shares of episodes with success, with the right item touched first, and
with anything lifted. Of the episodes that put the right item into a container it gives the share with the right
container. It also gives the differences between two stages and one in the same scenes (Newcombe, paired). The 95 %
intervals are over the episodes of all seeds. Episodes of one training are not independent, so each seed is listed too.
For every arm it gives the share of nouns that the VLM finds in the robot's sentence after training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from apt_bench.analysis.stats import newcombe_paired, wilson
from apt_bench.envs.tabletop.catalog import CONTAINERS
from apt_bench.models import checkpoint
from apt_bench.models.mini_vlm import MiniVLM
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.runs.records import EpisodeRecord
from apt_bench.training.cache import default_cache
from apt_bench.training.config import OBSERVATIONS_PER_SCENE, SuiteEpisodes
from apt_bench.training.inputs import complete_recipe
from apt_bench.training.progress import Report
from apt_bench.training.recipe import Recipe, load_recipe
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint
from apt_bench.training.vlm_pretraining.loop import grounding
from apt_bench.training.vlm_pretraining.losses import Heads
from apt_bench.training.vlm_pretraining.scenes import open_scene_images
from apt_bench.training.vlm_pretraining.sentences import SentenceMaker
from apt_bench.training.vlm_pretraining.tabletop_scenes import TabletopScenes

ARMS: dict[str, dict[str, Any]] = {
    "two stages, frozen": {"two_stage": True, "vlm_mode": "frozen"},
    "two stages, VLM trained": {"two_stage": True, "vlm_mode": "full"},
    "two stages, frozen, new blocks random": {
        "two_stage": True,
        "vlm_mode": "frozen",
        "new_blocks": "random",
    },
    "one stage, KI, joint steps": {"two_stage": False, "ki": True},
    "one stage, KI, total steps": {"two_stage": False, "ki": True, "budget": "total"},
    "one stage, VLM trained, joint steps": {"two_stage": False, "vlm_mode": "full"},
    "one stage, VLM trained, total steps": {"two_stage": False, "vlm_mode": "full", "budget": "total"},
}
CONTRASTS = [
    (f"two stages, {ours}", f"one stage, {rival}, {budget} steps")
    for ours, rival in (("frozen", "KI"), ("frozen, new blocks random", "KI"), ("VLM trained", "VLM trained"))
    for budget in ("joint", "total")
]
PRIOR = "prior alone"
MEASURES = ("success", "right", "lifted", "container")
ALL = "all cells"
SPLITS = ("train_redundant", "train", "train_ambiguous")
SCENES = 7
"""Seed of the test scenes of training seed 0, which is the suite's own; training seed s has SCENES + s."""
SENTENCE = "move the {} to the plate ."
PROBE_SCENES = 50


@dataclasses.dataclass(frozen=True)
class Job:
    """One training."""

    split: str
    seed: int
    arm: str

    def folder(self, options: argparse.Namespace) -> Path:
        """The folder of its training."""
        steps = f"{options.stage1_steps}+{options.stage2_steps}"
        if options.demos_per_task:
            steps += f"-{options.demos_per_task}demos"
        arm = self.arm.replace(", ", "-").replace(" ", "_")
        return Path(options.out, steps, self.split, f"seed{self.seed}", arm)


def recipe_of(job: Job, options: argparse.Namespace) -> Recipe:
    """The mini recipe with this arm's settings. Two-stage arms after the first use its prior, if that exists."""
    over = {
        **ARMS[job.arm],
        "seed": job.seed,
        "data": {"data": options.demos[job.split]},
        "stage1": {"steps": options.stage1_steps},
        "stage2": {"steps": options.stage2_steps},
    }
    first = dataclasses.replace(job, arm=next(iter(ARMS))).folder(options)
    if over["two_stage"] and job.folder(options) != first and (first / "stage1").is_dir():
        over["prior"] = str(stage_checkpoint(first, 1))
    return load_recipe(options.config, over)


def demonstrations(split: str, options: argparse.Namespace, console: Console) -> list[str]:
    """The demonstrations of a split: collected, or found in the cache.

    Call it once per command, since two processes cannot collect at the same time."""
    collect: dict[str, Any] = {"cells": [split]}
    if options.demos_per_task:
        collect["episodes"] = options.demos_per_task
    recipe = load_recipe(options.config, {"collect": collect})
    return list(
        complete_recipe(recipe, Session(options.out, options.cache, Report(console)), console).data.data
    )


def evaluate(
    policy: Path, seed: int, test: SuiteEpisodes, out: Path, options: argparse.Namespace, console: Console
) -> Sequence[EpisodeRecord]:
    """Episodes of all cells, in the scenes of the training seed. Recorded episodes are not run again."""
    wanted = RunOptions.of(
        suite="rigid_pick_place",
        policy="apt_bench.policies.apt:AptPolicy",
        policy_args=(f"weights={policy}", *test.policy_args),
        cells=tuple(options.cells),
        episodes=options.episodes,
        seed=SCENES + seed,
        execute_horizon=test.execute,
        workers=options.workers,
        out=out,
    )
    return run(wanted, console).records


def probe(vlm: MiniVLM, folder: Path, cache: Path, scenes: int) -> dict[str, float]:
    """Share of nouns that the heads of pretraining find in the robot's sentence, in scenes that it did not use."""
    heads = Heads(vlm.config.width, vlm.config.views)
    heads.load_state_dict(load_file(folder / "heads.safetensors"))
    source = TabletopScenes()
    images = open_scene_images(source, vlm.config, PROBE_SCENES, cache, first=scenes)
    chosen = np.arange(OBSERVATIONS_PER_SCENE * PROBE_SCENES)
    return grounding(vlm, heads, images, chosen, SENTENCE, SentenceMaker(vlm.tokenizer, source))


def do(job: Job, options: argparse.Namespace, console: Console) -> None:
    """Train, evaluate, probe, and write `result.json` into the job's folder."""
    folder = job.folder(options)
    if (folder / "result.json").is_file():
        return
    console.rule(f"{job.split}, seed {job.seed}: {job.arm}")
    session = Session(folder, cache=options.cache, report=Report(console))
    began = time.perf_counter()
    recipe = complete_recipe(recipe_of(job, options), session, console)
    policy = run_recipe(recipe, session)
    weights, scenes = Path(recipe.vlm_weights), recipe.pretrain.scenes
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began),
        "held_out": last_held_out(folder / "stage2" / "metrics.jsonl"),
    }
    records = {job.arm: evaluate(policy, job.seed, recipe.evaluate, folder / "evaluation", options, console)}
    if recipe.two_stage and job.arm == next(iter(ARMS)):
        prior = stage_checkpoint(folder, 1)
        records[PRIOR] = evaluate(
            prior, job.seed, recipe.evaluate, folder / "evaluation_of_prior", options, console
        )
    found["cells"] = {arm: outcomes(rows) for arm, rows in records.items()}
    vlm = checkpoint.load(policy).vlm
    assert isinstance(vlm, MiniVLM)
    found["grounding"] = probe(vlm, weights, options.cache, scenes)
    (folder / "result.json").write_text(json.dumps(found))


def last_held_out(metrics: Path) -> float:
    """The loss on held-out demonstrations at the end of training."""
    value: float = json.loads(metrics.read_text().splitlines()[-1])["held_out"]
    return value


def outcomes(records: Sequence[EpisodeRecord]) -> dict[str, dict[str, list[int | None]]]:
    """1 or 0 per episode, by cell and measure (`MEASURES`), in the order of tasks and episodes, so that arms can be
    paired. `container`: whether the first container into which the item was put is the right one; a success counts
    even if it ended before the item was at rest. The value is None for errors, and for `container` also where the
    item was put into no container."""
    out: dict[str, dict[str, list[int | None]]] = {}
    for r in sorted(records, key=lambda r: (r.key.task, r.key.init)):
        item, *containers = r.events["targets"] if r.outcome != "error" else [""]
        touched = [name for name in r.events["touched"] if name not in containers] if item else []
        put = [
            on
            for placed in (r.events["placements"] if item else [])
            if placed["object"] == item
            for on in placed["on"]
            if on in CONTAINERS
        ]
        found = {
            "success": r.outcome == "success",
            "right": touched[:1] == [item],
            "lifted": bool(item and r.events["lifted"]),
            "container": put[0] in containers if put else (True if r.outcome == "success" else None),
        }
        cell = out.setdefault(r.key.cell, {m: [] for m in MEASURES})
        for measure, value in found.items():
            cell[measure].append(int(value) if item and value is not None else None)
    return out


def table(options: argparse.Namespace) -> str:
    """The stored results in Markdown."""
    lines = []
    for split in options.splits:
        found = {arm: _results(split, arm, options) for arm in (PRIOR, *ARMS)}
        arms = {arm: results for arm, results in found.items() if results}
        if not arms:
            continue
        lines += [
            f"## Trained on {split}, {options.stage1_steps} + {options.stage2_steps} steps"
            + (f", {options.demos_per_task} demonstrations per task" if options.demos_per_task else ""),
            "",
            "Success, % [95 %] / right item first / lifted / right container (success by seed).",
            "",
        ]
        rows = []
        for arm, results in arms.items():
            nouns = [] if arm == PRIOR else [list(r["grounding"].values()) for r in results.values()]
            shown = " ".join(f"{x:.2f}" for x in np.nanmean(nouns, 0)) if nouns else ""
            losses = ", ".join(f"{r['held_out']:.2f}" for r in results.values()) if nouns else ""
            rows.append([arm, *(_rates(arm, results, cell) for cell in options.cells), shown, losses])
        lines += _markdown(
            ["arm", *options.cells, "nouns found: seen, unseen, containers", "held-out loss by seed"], rows
        )
        rows = [
            [
                f"{a} - {b}",
                measure,
                *(_difference(a, b, arms, cell, measure) for cell in (*options.cells, ALL)),
            ]
            for a, b in CONTRASTS
            if a in arms and b in arms
            for measure in MEASURES
        ]
        if rows:
            lines += ["", "Paired by scene: points [95 %] (by seed).", ""]
            lines += _markdown(["difference", "of", *options.cells, ALL], rows)
        lines.append("")
    return "\n".join(lines)


def _results(split: str, arm: str, options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    out = {}
    for seed in options.seeds:
        path = Job(split, seed, next(iter(ARMS)) if arm == PRIOR else arm).folder(options) / "result.json"
        if path.is_file():
            out[seed] = json.loads(path.read_text())
    return out


def _done(results: dict[str, Any], arm: str, cell: str, measure: str) -> list[int | None]:
    found: dict[str, dict[str, list[int | None]]] = results["cells"][arm]
    cells = found if cell == ALL else [cell]
    return [value for name in cells for value in found.get(name, {}).get(measure, [])]


def _rates(arm: str, results: dict[int, dict[str, Any]], cell: str) -> str:
    by_seed = {
        m: [[v for v in _done(r, arm, cell, m) if v is not None] for r in results.values()] for m in MEASURES
    }
    n, won = ({m: sum(map(count, by_seed[m])) for m in MEASURES} for count in (len, sum))
    if not n["success"]:
        return ""
    low, high = wilson(won["success"], n["success"])
    success, *rest = (f"{100 * won[m] / n[m]:.0f}" if n[m] else "-" for m in MEASURES)
    each = ", ".join(f"{100 * np.mean(seed):.0f}" for seed in by_seed["success"] if seed)
    return f"{success} [{100 * low:.0f}, {100 * high:.0f}] / {' / '.join(rest)} ({each})"


def _difference(a: str, b: str, arms: dict[str, dict[int, dict[str, Any]]], cell: str, measure: str) -> str:
    pairs = [
        [
            (x, y)
            for x, y in zip(
                _done(arms[a][seed], a, cell, measure), _done(arms[b][seed], b, cell, measure), strict=True
            )
            if x is not None and y is not None
        ]
        for seed in arms[a]
        if seed in arms[b]
    ]
    count = Counter(pair for seed in pairs for pair in seed)
    if not count:
        return ""
    low, high = newcombe_paired(count[1, 1], count[1, 0], count[0, 1], count[0, 0])
    all_of_them = (count[1, 0] - count[0, 1]) / count.total()
    each = ", ".join(f"{100 * np.mean([x - y for x, y in seed]):+.0f}" for seed in pairs if seed)
    return f"{100 * all_of_them:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}] ({each})"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def main() -> None:
    """Run the selected trainings, seed by seed, so that a part of the table exists early."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/two-stage-effect"))
    parser.add_argument("--config", default="mini")
    parser.add_argument("--stage1-steps", type=int, default=600)
    parser.add_argument("--stage2-steps", type=int, default=600)
    parser.add_argument(
        "--demos-per-task", type=int, default=0, help="demonstrations per task; 0: the recipe's number"
    )
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--cells", default="so,uo,uc,uoue")
    parser.add_argument(
        "--arms",
        default="",
        help="only arms with a name that matches one of these regular expressions, separated by ;",
    )
    parser.add_argument(
        "--episodes", type=int, default=50, help="initial states per task; a cell has two tasks"
    )
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--table", action="store_true", help="only print the stored results")
    options = parser.parse_args()
    options.seeds = [int(s) for s in options.seeds.split(",")]
    options.splits, options.cells = options.splits.split(","), options.cells.split(",")
    torch.set_num_threads(1)
    console = Console(width=200)
    words = [w.strip() for w in options.arms.split(";") if w.strip()]
    if not options.table:
        options.demos = {split: demonstrations(split, options, console) for split in options.splits}
        for seed in options.seeds:
            for split in options.splits:
                for arm in ARMS:
                    if not words or any(re.search(w, arm) for w in words):
                        do(Job(split, seed, arm), options, console)
    print(table(options))


if __name__ == "__main__":
    main()
