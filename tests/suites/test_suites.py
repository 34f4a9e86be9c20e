import dataclasses
import datetime
import re

import pytest
import yaml

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.paths import data_dir
from apt_bench.policies.registry import load_baseline
from apt_bench.suites import Cell, Suite, Task, load_suite
from apt_bench.suites.probes import expand
from apt_bench.training.recipe import load_recipe

HEADLINE = [f"{s}_{p}" for s in ("spatial", "object", "goal", "long") for p in ("pos", "task")]


def two_tasks(cell: Cell) -> list[Task]:
    prompts = {"file": "pick up the cup", "bddl": "pick up the bowl"}
    return [
        Task("pick_up_the_cup", prompts, {"scene": 0}, "a", 3, flags={None: ("odd",), 1: ("ejected",)}),
        Task("open_the_drawer", prompts, {"scene": 1}, "b", 3),
        Task("never_shipped", {}, {}, "b", 0, unavailable="no files"),
    ]


@pytest.fixture
def suite() -> Suite:
    cell = Cell("odd_task", "Odd", max_steps=5, instruction="bddl")
    return Suite(
        "odd",
        1,
        "Odd",
        env="x:Y",
        tasks=f"{__name__}:two_tasks",
        episodes=3,
        settle_steps=1,
        seed=7,
        cells=(cell,),
    )


def test_headline_cells_are_table_1() -> None:
    suite = load_suite("libero_pro")
    assert [c.name for c in suite.cells if c.headline] == HEADLINE
    assert {c.name: c.max_steps for c in suite.cells if c.headline} == {
        name: {"spatial": 220, "object": 280, "goal": 300, "long": 520}[name.split("_")[0]]
        for name in HEADLINE
    }
    assert all(
        c.instruction == ("file" if c.name.endswith("_pos") else "bddl") for c in suite.cells if c.headline
    )


def test_select_expands_in_order_and_keeps_the_source(suite: Suite) -> None:
    specs = suite.select()
    assert [(s.key.task, s.key.init) for s in specs] == [
        (t, i) for t in ("pick_up_the_cup", "open_the_drawer") for i in range(3)
    ]
    assert {s.prompt for s in specs} == {"pick up the bowl"}
    assert specs[0].flags == ("odd",)
    assert specs[1].flags == ("odd", "ejected")
    assert {s.prompt_source for s in suite.select(instruction="file")} == {"file"}
    assert [s.key.task for s in suite.select(tasks=["1"], episodes=1)] == ["open_the_drawer"]
    assert len(suite.select(limit=2)) == 2


def test_stale_cell_is_the_same_scene_with_the_old_sentence(suite: Suite) -> None:
    new, old = suite.select(episodes=2), suite.select(cells=["odd_task@stale"], episodes=2)
    assert {s.prompt for s in old} == {"pick up the cup"}
    assert [s.env_seed for s in new] == [s.env_seed for s in old]
    assert len({s.env_seed for s in new}) == len(new)
    assert old[0].key != new[0].key


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"cells": ["odd_taks"]}, "Did you mean 'odd_task'?"),
        ({"tasks": ["open_the_drawr"]}, "Did you mean 'open_the_drawer'?"),
        ({"episodes": -1}, "--episodes is -1; it must be at least 1"),
        ({"episodes": True}, "whole number"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 10**30}, "too large"),
        ({"limit": 0}, "--limit is 0"),
        ({"tasks": ["7"]}, "No task '7'"),
        ({"episodes": 4}, "has 3 initial states"),
        ({"instruction": "bdl"}, "Did you mean 'bddl'?"),
    ],
)
def test_select_names_invalid_arguments(suite: Suite, arguments: dict, word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        suite.select(**arguments)


CELL = {"label": "A", "instruction": "file", "max_steps": 5}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"episods": 3}, "unknown key 'episods'. Did you mean 'episodes'"),
        ({"episodes": "many"}, "episodes is 'many'; it must be a whole number"),
        ({"cells": {"a": {"label": "A", "instruction": "file"}}}, "cell 'a': key 'max_steps' is missing"),
        ({"cells": {}}, "at least one"),
        ({"cells": {"a": 3}}, "cell 'a': expected a mapping, found int"),
        ({"control_hz": 0}, "control_hz is 0; it must be at least 1"),
        ({"control_hz": 20.0}, "control_hz is 20.0; it must be a whole number"),
        ({"settle_steps": -1}, "settle_steps is -1; it must be at least 0"),
        ({"episodes": 0}, "episodes is 0; it must be at least 1"),
        ({"episodes": True}, "episodes is True; it must be a whole number"),
        ({"seed": -5}, "seed is -5; it must be at least 0"),
        ({"version": -1}, "version is -1; it must be at least 0"),
        ({"name": "../../x"}, "name is '../../x'; a name has"),
        ({"simulator": {"mujoco": 3.2}}, "simulator: mujoco is 3.2; it must be of type str"),
        ({"cells": {"a": CELL | {"max_steps": 0}}}, "cell 'a': max_steps is 0; it must be at least 1"),
        ({"cells": {"a": CELL | {"max_steps": -5}}}, "cell 'a': max_steps is -5"),
        ({"cells": {"a": CELL | {"max_steps": "many"}}}, "cell 'a': max_steps is 'many'"),
        (
            {"cells": {"a": CELL | {"args": {"day": datetime.date(2026, 1, 1)}}}},
            "args must be a value that JSON can hold",
        ),
        ({"cells": {"../../x": CELL}}, "cell '../../x': name is '../../x'; a name has"),
        ({"cells": {"a/b": CELL}}, "no slash"),
        ({"cells": {1: CELL}}, "cell '1': name is 1; it must be of type str"),
        ({"cells": {"a": CELL | {"name": "b"}, "b": CELL}}, "cell 'a': its name is the key before the colon"),
    ],
)
def test_bad_yaml_is_named_with_its_place(tmp_path, change: dict, word: str) -> None:
    raw = yaml.safe_load((data_dir("suites") / "libero.yaml").read_text())
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({**raw, **change}))
    with pytest.raises(UserError, match=re.escape(word)) as error:
        load_suite(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"max_steps": 0}, {"max_steps": 1.5}, {"max_steps": True}, {"name": "../x"}, {"name": ""}, {"label": 3}],
)
def test_a_cell_made_in_python_is_checked_too(change: dict) -> None:
    with pytest.raises(UserError, match="cell '"):
        Cell(**{"name": "a", "label": "A", "max_steps": 5, "instruction": "file", **change})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"episodes": 0},
        {"settle_steps": -1},
        {"control_hz": 0},
        {"version": True},
        {"name": "a/b"},
    ],
)
def test_a_suite_made_in_python_is_checked_too(suite: Suite, change: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(change))} is"):
        dataclasses.replace(suite, **change)
    with pytest.raises(UserError, match="cell 'odd_task' is defined twice"):
        dataclasses.replace(suite, cells=(*suite.cells, *suite.cells))


def test_cells_and_tasks_that_are_named_twice_are_selected_once(suite: Suite) -> None:
    once = suite.select(["odd_task"], ["1"])
    assert suite.select(["odd_task", "odd_task"], ["1"]) == once
    assert suite.select(["odd_task"], ["1", "1"]) == once
    assert suite.select(["odd_task"], ["1", "drawer", "open_the_drawer"]) == once  # one task in three ways
    both = suite.select(["odd_task", "odd_task@stale", "odd_task"], ["1"])
    assert len({s.key for s in both}) == len(both) == 2 * len(once)


def test_probes_and_episodes_that_are_named_twice_are_run_once(suite: Suite) -> None:
    specs = suite.select(episodes=1)
    once = expand(specs, ["null"], specs)
    assert expand([*specs, *specs], ["null", "null"], specs) == once
    assert len({s.key for s in once}) == len(once)


def odd_tasks(cell: Cell) -> list:
    made = {"twice": [Task("a", {"file": "x"}, {}, "g", 1)] * 2, "text": ["a"]}
    return made[cell.name]


@pytest.mark.parametrize("cell", ["twice", "text"])
def test_tasks_of_a_cell_must_have_different_names(suite: Suite, cell: str) -> None:
    odd = dataclasses.replace(
        suite, tasks=f"{__name__}:odd_tasks", cells=(Cell(cell, "A", max_steps=5, instruction="file"),)
    )
    with pytest.raises(UserError, match="must return a list of Task with different names"):
        odd.select()


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "a\x00"])
def test_a_task_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(UserError, match="the name of a task is"):
        Task(name, {"file": "x"}, {}, "g", 1)


def test_a_missing_file_is_not_reported_as_a_missing_suite() -> None:
    with pytest.raises(UserError, match=r"No file 'nofile\.yaml'"):
        load_suite("nofile.yaml")
    with pytest.raises(UserError, match=r"No suite '\.\./suites/libero'"):
        load_suite("../suites/libero")
    with pytest.raises(UserError, match=r"No file 'nofile\.yml'"):
        load_baseline("nofile.yml")
    with pytest.raises(UserError, match=r"No file 'nofile\.yaml'"):
        load_recipe("nofile.yaml")


def test_unknown_suite_and_object() -> None:
    with pytest.raises(UserError, match="Did you mean 'libero_pro'"):
        load_suite("libero_por")
    with pytest.raises(UserError, match="Cannot import 'no_such_module'"):
        load_object("no_such_module:x")
    with pytest.raises(UserError, match="has no 'nothing'"):
        load_object("json:nothing")


SIX_LINES = """name: mine
env: tabletop
tasks: apt_bench.envs.tabletop:cell_tasks
episodes: 2
cells:
  so: {label: SO, max_steps: 240, instruction: text, args: {layout: table}}
"""


def test_a_suite_needs_six_lines(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(SIX_LINES)
    suite = load_suite(str(tmp_path / "mine.yaml"))
    shipped = load_suite("rigid_pick_place")
    for name in ("version", "settle_steps", "seed", "control_hz", "env"):
        assert getattr(suite, name) == getattr(shipped, name), name
    assert suite.title == "mine"
    assert len(suite.select()) == 4


def test_all_missing_keys_are_named_at_once(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ncells:\n  a: {label: A}\n  b: {max_steps: 3}\n")
    with pytest.raises(UserError) as refused:
        load_suite(str(path))
    assert str(refused.value) == (
        f"{path}: keys 'env', 'tasks', 'episodes' are missing. "
        f"{path}: cell 'a': keys 'max_steps', 'instruction' are missing. "
        f"{path}: cell 'b': keys 'label', 'instruction' are missing."
    )
    path.write_text("{}")
    with pytest.raises(UserError, match="keys 'name', 'env', 'tasks', 'episodes', 'cells' are missing"):
        load_suite(str(path))
