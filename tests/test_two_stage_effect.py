"""The two-stage experiment: the plan, the choice of rates, the table with trainings as the unit, and a tiny run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from apt_bench.core.errors import UserError
from apt_bench.envs.tabletop.catalog import EXTRA_CONTAINERS
from apt_bench.envs.tabletop.layouts import CONTAINER_SETS, scene_spec
from apt_bench.models.config import VLMShape
from apt_bench.models.mini_vlm import MiniVLMConfig
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey, load_suite
from apt_bench.training import inputs
from apt_bench.training.config import LabelConfig
from benchmarks import two_stage_effect as effect
from benchmarks import two_stage_libero as libero
from benchmarks import two_stage_tables as tables

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "benchmarks/two_stage_effect.yaml"
RATES = {"low": {"stage2": {"lr": 1e-3}}, "high": {"stage2": {"lr": 1e-2}}}
ARMS = {"one": {"two_stage": False, "ki": True}, "two": {"two_stage": True}}


def plan_file(tmp_path: Path, **changes: Any) -> Path:
    experiment = {"about": "a test", "rates": RATES, "arms": ARMS, "seeds": [0, 1], "episodes": 4}
    raw = {"config": "mini", "suite": "rigid_pick_place", "experiments": {"X": {**experiment, **changes}}}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def store(results: Path, job: effect.Job, right: float, mug: float = 0.0) -> None:
    """A result of four tasks of ten episodes, with these shares of right items first and of named deliveries."""

    def some(share: float) -> list[int]:
        return [int(i < 10 * share) for i in range(10)]

    tasks = {
        t: {m: some(right) for m in effect.MEASURES} for t in ("so/to_bowl", "so/to_plate", "uo/to_plate")
    }
    tasks["uc/to_mug"] = {m: some(mug) for m in effect.MEASURES}
    tasks["uc/to_mug"]["delivered"] = [*some(mug)[:9], None]
    path = effect.stored(results, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"arm": job.arm, "seed": job.seed, "rate": job.rate, "cells": tasks}))


def test_every_arm_of_the_shipped_plan_is_a_valid_recipe() -> None:
    plan, mini = effect.load_plan(SHIPPED), MiniVLMConfig()
    shape = VLMShape(mini.width, mini.layers, mini.heads, mini.width // mini.heads, None)
    for name, experiment in plan.experiments.items():
        for arm in experiment.arms:
            for rate in effect.rates_of(plan, experiment.rates_of or name, arm) or [""]:
                recipe = effect.recipe_of(plan, effect.Job(name, arm, 3, rate))
                assert recipe.seed == 3
                assert recipe.expert_config(2, shape).vlm == shape
                if recipe.collect.suite.endswith(".yaml"):
                    assert load_suite(str(ROOT / recipe.collect.suite)).cell(recipe.collect.cells[0])
        assert not set(experiment.seeds) & set(
            plan.tuning_seeds
        )  # rates are chosen on seeds that are not reported
    assert {"E1", "E2", "E3-50", "E4-2"} <= set(plan.experiments)
    assert effect.rates_of(plan, "E1", "one") == ["r2", "r6", "r15"]  # it has no new blocks
    assert effect.rates_of(plan, "E1", "two") == ["r2", "r6", "r15", "r2new6", "r2new15"]


def test_every_stored_result_belongs_to_the_plan() -> None:
    plan, results = effect.load_plan(SHIPPED), ROOT / "results/two_stage_effect"
    stored = set(results.glob("*/*.json"))
    reported = tables.load_results(plan, results)
    count = sum(len(seeds) for arms in reported.values() for seeds in arms.values())
    tuning = [p for p in stored if json.loads(p.read_text())["seed"] in plan.tuning_seeds]
    assert count + len(tuning) == len(stored) > 0
    table = effect.table(plan, results)
    assert all(f"### {name}: " in table for name in reported)


def test_the_figure_is_drawn_and_the_docs_have_one(tmp_path: Path) -> None:
    effect.main(["--figure", str(tmp_path / "effect.png")])
    assert (tmp_path / "effect.png").stat().st_size > 10_000
    assert "images/two_stage_effect.png" in (ROOT / "docs/two-stage-effect.md").read_text()


def test_the_rate_with_the_most_right_items_is_chosen_before_seeds_are_reported(tmp_path: Path) -> None:
    plan = effect.load_plan(plan_file(tmp_path))
    with pytest.raises(
        UserError, match=r"The rate of X/one is not chosen yet.*one-seed100-low\.json is missing"
    ):
        list(effect.jobs_of(plan, "X", "one", 0, tmp_path))
    jobs = effect.jobs_of(plan, "X", "one", None, tmp_path)
    for share in (0.5, 0.8):
        job = next(jobs)
        assert job.seed == 100
        store(tmp_path, job, share)
    assert [(j.seed, j.rate) for j in jobs] == [(0, "high"), (1, "high")]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("E1/tow", "Experiment 'E1' has no arm 'tow'. Did you mean 'two'?"),
        ("E9", "The plan has no experiment 'E9'. Known: E0-ambiguous, "),
    ],
)
def test_an_unknown_arm_is_named_with_the_known_ones_and_without_a_traceback(arm: str, said: str) -> None:
    script = ROOT / "benchmarks/two_stage_effect.py"
    found = subprocess.run([sys.executable, script, "--arm", arm], capture_output=True, text=True)
    assert found.returncode == UserError.exit_code
    assert said in found.stderr
    assert "Traceback" not in found.stderr


def test_rates_of_one_seed_share_a_prior_and_other_seeds_do_not(tmp_path: Path) -> None:
    plan = effect.load_plan(plan_file(tmp_path, seeds=[1]))
    job = effect.Job("X", "two", 1, "low")
    recipe, folder = effect.recipe_of(plan, job), tmp_path / "X" / job.name

    def finish(name: str) -> Path:
        last = tmp_path / "X" / name / "stage1" / "checkpoints" / f"step_{recipe.stage1.steps:07d}"
        last.mkdir(parents=True)
        return last

    finish("two-seed100-high")
    assert effect._shared_prior(plan, job, folder, recipe) == ""
    last = finish("two-seed1-high")
    assert effect._shared_prior(plan, job, folder, recipe) == str(last)


def test_trainings_are_the_unit_of_intervals() -> None:
    rates = np.array([0.4, 0.6, 0.9])
    mean, low, high = tables.interval([(10 * r, 10) for r in rates])
    half = stats.t.ppf(0.975, 2) * rates.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(
        [mean, low, high], 100 * np.array([rates.mean(), rates.mean() - half, rates.mean() + half])
    )
    np.testing.assert_allclose(tables.interval([(4, 10), (0, 0), (2, 2)])[0], 50.0)  # a ratio of sums
    mean, low, high = tables.interval([(4, 10)])
    assert mean == 40
    assert np.isnan([low, high]).all()
    assert np.isnan(tables.interval([])).all()


def test_differences_are_paired_by_scene() -> None:
    a = {"so/x": {"right": [1, 1, None, 0]}}
    b = {"so/x": {"right": [1, 0, 1, None]}}
    assert tables.difference(a, b, ("so",), "right") == (1.0, 2)
    assert tables.total(a, ("so",), "right") == (2.0, 3)
    assert tables.total(a, ("so/x",), "right") == (2.0, 3)
    assert tables.total(a, ("uo",), "right") == (0.0, 0)


@pytest.mark.parametrize(
    ("right", "mug", "words"),
    [
        (0.9, 0.3, "passed by one (90 % in so; falls by 0 on uo, 57 on to_mug)"),
        (0.9, 0.9, "not passed"),
        (0.8, 0.0, "not passed"),
    ],
)
def test_the_gate_needs_a_good_one_stage_policy_that_fails_on_something_unseen(
    tmp_path: Path, right: float, mug: float, words: str
) -> None:
    plan = effect.load_plan(plan_file(tmp_path))
    for seed in (0, 1):
        store(tmp_path, effect.Job("X", "one", seed, "low"), right, mug)
        store(tmp_path, effect.Job("X", "two", seed, "high"), 1.0, 1.0)
    assert f"Gate: {words}" in effect.table(plan, tmp_path)
    untuned = effect.load_plan(plan_file(tmp_path, rates={}))
    assert "Gate: not passed. Rates were not tuned." in effect.table(untuned, tmp_path)


def test_the_table_has_each_arm_and_the_difference_of_the_stages(tmp_path: Path) -> None:
    plan = effect.load_plan(plan_file(tmp_path))
    for seed in (0, 1):
        store(tmp_path, effect.Job("X", "one", seed, "low"), 0.5, 0.2)
        store(tmp_path, effect.Job("X", "two", seed, "high"), 0.7, 0.5)
    store(tmp_path, effect.Job("X", "one", 100, "low"), 0.0)  # a tuning seed
    rows = [
        r.strip("| ").split(" | ") for r in effect.table(plan, tmp_path).splitlines() if r.startswith("|")
    ]
    head, _, one, two, gain = rows
    place = head.index("to_mug: success")
    assert [r[0] for r in (one, two, gain)] == ["one (low)", "two (high)", "two - one"]
    assert [r[1] for r in (one, two, gain)] == ["2", "2", "2"]
    assert [r[place] for r in (one, two, gain)] == ["20 [20, 20]", "50 [50, 50]", "+30 [+30, +30]"]


def test_the_trainings_that_choose_a_rate_have_a_table(tmp_path: Path) -> None:
    plan = effect.load_plan(plan_file(tmp_path))
    assert tables.rates_table(plan, tmp_path) == ""
    store(tmp_path, effect.Job("X", "one", 100, "low"), 0.3)
    store(tmp_path, effect.Job("X", "one", 0, "high"), 0.9)  # a reported seed
    *_, head, _, row = tables.rates_table(plan, tmp_path).strip().splitlines()
    assert head.strip("| ").split(" | ") == ["arm", "low", "high"]
    assert [c.strip() for c in row.split("|")[1:-1]] == ["one", "6 (6) of 20", ""]


def episode(outcome: str = "timeout", **events: Any) -> EpisodeRecord:
    found = {"targets": ["apple", "mug"], "touched": {"apple": 1}, "lifted": {"apple": 3}, "placements": []}
    return EpisodeRecord(
        key=EpisodeKey("rigid_pick_place", "uc", "to_mug", 0, 7), policy="p", prompt="", prompt_source="text",
        prompts={}, outcome=outcome, steps=1, decisions=1, seconds={}, start_hash="", end_hash="",
        failure=None, events={**found, **events},
    )  # fmt: skip


def test_libero_arms_are_counted_from_their_records() -> None:
    reference = ROOT / "results/reference"
    folders = {f.name for f in reference.glob("base-*")}
    assert folders
    assert [name for name in folders if not libero.NAME.fullmatch(name)] == []
    trainings = {name.removesuffix("_pro") for name in folders}
    assert folders == trainings | {f"{name}_pro" for name in trainings}
    rows = [line.split(" | ") for line in libero.libero_table(reference).splitlines()]
    for arm in (libero.ONE, libero.TWO):
        row = next(row for row in rows if row[:2] == ["| goal", f"{arm} (r2)"])
        for places, measure in ((slice(3, 6), succeeded), (slice(7, 10), touched_the_right_object_first)):
            known = episodes_of(reference, arm, measure)
            shares = [f"{100 * sum(known[c]) / len(known[c]):.0f}" for c in ("goal", "goal_pos", "goal_task")]
            assert [cell.split(" ")[0] for cell in row[places]] == shares


def succeeded(episode: dict[str, Any]) -> bool:
    return bool(episode["outcome"] == "success")


def touched_the_right_object_first(episode: dict[str, Any]) -> bool:
    touched = episode["events"]["touched"]
    return bool(touched) and min(touched, key=touched.get) in episode["events"]["targets"]


def episodes_of(
    reference: Path, arm: str, measure: Callable[[dict[str, Any]], bool]
) -> dict[str, list[bool]]:
    """Cell -> the measure of each episode of Goal."""
    out: dict[str, list[bool]] = {}
    for file in reference.glob(f"base-goal-{arm}-r2-seed*/episodes.jsonl"):
        for episode in map(json.loads, file.read_text().splitlines()):
            out.setdefault(episode["key"]["cell"], []).append(measure(episode))
    return out


def test_libero_arms_are_paired_by_scene(tmp_path: Path) -> None:
    """One of two scenes is solved by both arms, the other one by two stages only."""
    for arm, won in {libero.ONE: (True, False), libero.TWO: (True, True)}.items():
        source = ROOT / f"results/reference/base-goal-{arm}-r2-seed0-libero"
        lines = (source / "episodes.jsonl").read_text().splitlines()[:2]
        episodes = [
            json.loads(line) | {"outcome": "success" if w else "timeout"}
            for line, w in zip(lines, won, strict=True)
        ]
        for seed in (0, 1):
            out = tmp_path / source.name.replace("seed0", f"seed{seed}")
            shutil.copytree(source, out)
            (out / "episodes.jsonl").write_text("".join(json.dumps(e) + "\n" for e in episodes))
    line = next(n for n in libero.libero_table(tmp_path).splitlines() if "goal | two-stages - one-stage" in n)
    assert line.split(" | ")[2:5] == ["2", "+50 [+50, +50]", "-"]


@pytest.mark.parametrize(
    ("record", "container", "delivered"),
    [
        (episode("success"), 1, 1),
        (episode(placements=[{"object": "apple", "on": ["plate"], "within": ["plate"]}]), 0, 0),
        (episode(placements=[{"object": "apple", "on": ["table"], "within": []}]), None, 0),
        (episode(placements=[{"object": "duck", "on": ["mug"], "within": ["mug"]}]), None, 0),
        (episode(lifted={"duck": 2}), None, None),
        (episode("error"), None, None),
    ],
)
def test_deliveries_are_counted_for_lifted_items(
    record: EpisodeRecord, container: int | None, delivered: int | None
) -> None:
    (measures,) = effect.outcomes([record]).values()
    assert (measures["container"], measures["delivered"]) == ([container], [delivered])
    assert measures["right"] == [None if record.outcome == "error" else 1]


@pytest.mark.parametrize(
    ("prompt", "labelled", "other"), [("Move the Red APPLE.", 1, None), ("Grapple it.", None, 1)]
)
def test_nouns_with_and_without_labels_are_counted_apart(
    prompt: str, labelled: int | None, other: int | None
) -> None:
    record = dataclasses.replace(episode("success"), prompt=prompt)
    (measures,) = effect.outcomes([record], LabelConfig(count=3, nouns=("apple", "pear"))).values()
    assert (measures["right_labelled"], measures["right_unlabelled"]) == ([labelled], [other])
    (without,) = effect.outcomes([record], LabelConfig(count=3)).values()
    assert tuple(without) == effect.MEASURES


@pytest.mark.parametrize("which", ["seen4", "seen6"])
def test_scenes_with_more_containers_name_one_of_two(which: str) -> None:
    args = {"layout": "table", "split": "train", "ambiguity": 1.0, "containers": which}
    second = set()
    for name in CONTAINER_SETS[which]:
        for init in range(12):
            spec = scene_spec(args, f"to_{name.replace(' ', '_')}", init, 7)
            first, other = (p.name for p in spec.containers)
            assert (first, spec.destination) == (name, name)
            assert first not in other
            assert other not in first
            second.add(other)
    assert second == set(CONTAINER_SETS[which])


@pytest.mark.sim
def test_the_scripted_expert_fills_the_containers_with_small_openings(tmp_path: Path) -> None:
    suite = str(ROOT / "benchmarks/two_stage_containers.yaml")
    tasks = [f"to_{name.replace(' ', '_')}" for name in EXTRA_CONTAINERS]
    options = RunOptions.of(
        suite=suite, policy="oracle", cells=("train6",), tasks=tasks, episodes=1, workers="0", out=tmp_path
    )
    records = run(options, Console(quiet=True)).records
    assert {r.key.task: r.outcome for r in records} == dict.fromkeys(tasks, "success")


@pytest.mark.sim
@pytest.mark.slow
def test_a_tiny_plan_trains_tests_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = inputs.collect_options
    monkeypatch.setattr(inputs, "collect_options", lambda recipe: options(recipe).replace(workers="0"))
    small = {"batch": 4, "eval_samples": 4, "save_every": 2, "eval_every": 2}
    plan = plan_file(
        tmp_path,
        set={
            "collect": {"cells": ["train_ambiguous"], "episodes": 2},
            "data": {"held_out": 0.3, "word_share": 0.5, "labels": {"count": 1}},
            "stage1": {"steps": 2, **small},
            "stage2": {"steps": 2, **small},
            "vlm": {"plain_words": True},
        },
        rates={"low": RATES["low"]},
        seeds=[0],
        cells=["so", "uc"],
        episodes=1,
    )
    raw = yaml.safe_load(plan.read_text())
    plan.write_text(yaml.safe_dump({**raw, "tuning_episodes": 1}))
    words = ["--plan", str(plan), "--results", "results", "--work", "work", "--cache", "cache"]
    effect.main([*words, "--arm", "X"])
    stored = sorted(p.name for p in Path("results/X").iterdir())
    assert stored == [
        "one-seed0-low.json",
        "one-seed100-low.json",
        "two-seed0-low.json",
        "two-seed100-low.json",
    ]
    found = json.loads(Path("results/X/two-seed0-low.json").read_text())
    assert set(found["cells"]) == {"so/to_bowl", "so/to_plate", "uc/to_mug", "uc/to_plate"}
    monkeypatch.setattr(effect, "run_recipe", lambda *_: pytest.fail("a stored result was run again"))
    effect.main([*words, "--arm", "X/two"])
    capsys.readouterr()
    effect.main([*words, "--table"])
    assert "| two - one | 1 |" in capsys.readouterr().out
