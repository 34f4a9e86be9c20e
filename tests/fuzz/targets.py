"""What is fuzzed: for each kind of input a valid example, and the function that reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from apt_bench.core.config import parse_yaml
from apt_bench.core.errors import UserError
from apt_bench.core.paths import data_dir
from apt_bench.models.vla import VLA, VLMSpec
from tests.demos.samples import sample
from tests.runs import add, record, write_run


@dataclass(frozen=True)
class Target:
    """make: writes a valid example into an empty folder. read: reads what is there; it may raise UserError only.
    damaged: which files, as glob patterns."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    damaged: tuple[str, ...] = ("**/*",)

    def files(self, folder: Path) -> list[Path]:
        """The files to damage, in order."""
        found = {p for pattern in self.damaged for p in folder.glob(pattern) if p.is_file()}
        return sorted(found)


def _run(folder: Path) -> None:
    write_run(
        folder / "run", lambda c, t, i: (i + len(t)) % 3 > 0, {"spatial_task": 2, "object_pos": 2}, tasks=2
    )
    add(folder / "run", record("spatial_task", "task_0", 0, False, prompt_id="null"))


def _read_run(folder: Path) -> None:
    from apt_bench.analysis.cell_summary import cell_summaries
    from apt_bench.analysis.run import load_run
    from apt_bench.runs.records import RunStore

    store = RunStore.open(folder / "run")
    store.run(), store.protocol(), store.episodes()
    cell_summaries(load_run(folder / "run"))


def _read_report(folder: Path) -> None:
    from apt_bench.analysis.run import load_runs
    from apt_bench.reporting.headline_tables import suite_tables
    from apt_bench.reporting.table_files import write

    runs = load_runs([str(folder / "run")])
    for table in suite_tables(runs, "libero_pro"):
        write(table, folder / "tables")


def _compare(folder: Path) -> None:
    from apt_bench.analysis.check import check
    from apt_bench.analysis.compare import compare
    from apt_bench.analysis.run import load_run

    a, b = load_run(folder / "run", "a"), load_run(folder / "other", "b")
    compare(a, b, force=True)
    check(a, b, force=True)


def _two_runs(folder: Path) -> None:
    _run(folder)
    shutil.copytree(folder / "run", folder / "other")


def _suite(folder: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "toy_suite.yaml", folder / "suite.yaml")


def _read_suite(folder: Path) -> None:
    from apt_bench.suites import load_suite

    load_suite(str(folder / "suite.yaml")).select(episodes=1)


def _baseline(folder: Path) -> None:
    shutil.copy(data_dir("baselines") / "random.yaml", folder / "mine.yaml")


def _read_baseline(folder: Path) -> None:
    from apt_bench.policies.registry import find_policy

    find_policy(str(folder / "mine.yaml"), ["seed=1"]).load()


def _recipe(folder: Path) -> None:
    from apt_bench.training.recipe import load_recipe

    (folder / "recipe.yaml").write_text(load_recipe("mini").to_yaml(), encoding="utf-8")


def _read_recipe(folder: Path) -> None:
    from apt_bench.training.recipe import load_recipe

    load_recipe(str(folder / "recipe.yaml"))


def _eval_info(folder: Path) -> None:
    metrics = {"successes": [True, False], "video_paths": ["a.mp4", "b.mp4"], "sum_rewards": [1.0, 0.0]}
    info = {
        "per_task": [{"task_group": "libero_spatial", "task_id": t, "metrics": metrics} for t in range(2)]
    }
    (folder / "eval_info.json").write_text(json.dumps(info), encoding="utf-8")


def _read_eval_info(folder: Path) -> None:
    from apt_bench.runs.eval_info import import_eval_info

    out = folder / "imported"
    import_eval_info(folder / "eval_info.json", out, "mine")


def _trials(folder: Path) -> None:
    from apt_bench.runs.robot_trials import new_sheet, read_plan, write_csv

    plan = "cell,task,instruction,trials\nso,block,move the block,2\nuo,cup,move the cup,1\n"
    (folder / "plan.csv").write_text(plan, encoding="utf-8")
    sheet, key = new_sheet(read_plan(folder / "plan.csv"), ["a", "b"], "bench", 3, ["t1"])
    write_csv(folder / "sheet.csv", [{**row, "outcome": "success", "score_t1": "1"} for row in sheet])
    write_csv(folder / "key.csv", key)


def _read_trials(folder: Path) -> None:
    from apt_bench.runs.robot_trials import import_sheet, read_plan

    read_plan(folder / "plan.csv")
    import_sheet(folder / "sheet.csv", folder / "key.csv", folder / "imported")


def _hdf5(folder: Path) -> None:
    from apt_bench.demos.hdf5_writer import write_hdf5

    write_hdf5(folder / "bowl_demo.hdf5", [sample(0, steps=6, size=16), sample(1, steps=6, size=16)])


def _read_demos(folder: Path) -> None:
    from apt_bench.demos.dataset import open_demos

    (path,) = folder.iterdir()
    for demo in open_demos(path):
        assert len(demo) > 0


def _lerobot(folder: Path) -> None:
    from apt_bench.demos.lerobot_writer import LeRobotWriter

    writer = LeRobotWriter(folder / "set")
    for i in range(2):
        writer.add(sample(i, steps=6, size=32))
    writer.close()


def _actions(folder: Path) -> None:
    import numpy as np

    from apt_bench.policies.simple import save_actions

    save_actions(folder / "a.npz", "toy/push/x/init0/seed7/default", np.zeros((5, 7)))


def _read_actions(folder: Path) -> None:
    from apt_bench.policies.simple import load_actions

    load_actions(folder / "a.npz")


def _tiny() -> VLA:
    from tests.models.tiny import vla

    torch.set_num_threads(1)
    net = vla("mini", "apt", 2)
    return VLA(net.vlm, net.expert, VLMSpec(name="mini", mini=net.vlm.config))


def _checkpoint(folder: Path) -> None:
    from apt_bench.models import checkpoint

    checkpoint.save(folder / "c", _tiny(), {"cameras": ["agentview"], "step": 3})


def _read_checkpoint(folder: Path) -> None:
    from apt_bench.models import checkpoint

    checkpoint.provenance(folder / "c")
    checkpoint.about(folder / "c")
    checkpoint.load(folder / "c")


def _policy(folder: Path) -> None:
    from apt_bench.policies.apt import AptPolicy

    AptPolicy(folder / "c")


def _pickled(folder: Path) -> None:
    from apt_bench.models.official_names import to_official

    net = _tiny()
    weights = {to_official(k): v.contiguous() for k, v in net.expert.state_dict().items()}
    torch.save({"weights": weights, "current_iters": 1}, folder / "ckpt_1.pt")


def _read_pickled(folder: Path) -> None:
    from apt_bench.models import checkpoint

    checkpoint.load(folder / "ckpt_1.pt", vlm=_tiny().vlm)


def _solvability(folder: Path) -> None:
    shutil.copy(data_dir("suites") / "libero_pro_solvable.json", folder / "s.json")


def _read_solvability(folder: Path) -> None:
    from apt_bench.runs.solvability import read

    read(folder / "s.json")


def _published(folder: Path) -> None:
    shutil.copy(data_dir("published") / "libero_pro.csv", folder / "p.csv")


def _read_published(folder: Path) -> None:
    from apt_bench.reporting.published import read_published

    read_published(folder / "p.csv")


def _bddl(folder: Path) -> None:
    from apt_bench.envs.libero.tasks import bddl_path

    shutil.copy(bddl_path("libero_goal", "open_the_middle_drawer_of_the_cabinet"), folder / "t.bddl")


def _read_bddl(folder: Path) -> None:
    from apt_bench.envs.libero.bddl import read_bddl

    read_bddl(folder / "t.bddl")


def _yaml(folder: Path) -> None:
    text = {"a": [1, 2, {"b": "x"}], "c": {"d": 1e-4, "e": None}}
    (folder / "x.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")


def _read_yaml(folder: Path) -> None:
    try:
        text = (folder / "x.yaml").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError("not text") from None
    parse_yaml(text, "x.yaml")


TARGETS = (
    Target("run directory", _run, _read_run),
    Target("report", _run, _read_report),
    Target("comparison", _two_runs, _compare, ("run/*",)),
    Target("suite", _suite, _read_suite),
    Target("baseline", _baseline, _read_baseline),
    Target("recipe", _recipe, _read_recipe),
    Target("eval_info", _eval_info, _read_eval_info),
    Target("trials", _trials, _read_trials),
    Target("hdf5", _hdf5, _read_demos),
    Target("lerobot", _lerobot, _read_demos),
    Target("actions", _actions, _read_actions),
    Target("checkpoint", _checkpoint, _read_checkpoint),
    Target("policy", _checkpoint, _policy),
    Target("pickled checkpoint", _pickled, _read_pickled),
    Target("solvability", _solvability, _read_solvability),
    Target("published", _published, _read_published),
    Target("bddl", _bddl, _read_bddl),
    Target("yaml", _yaml, _read_yaml),
)
