import pytest
import yaml

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.paths import data_dir
from apt_bench.suites import Cell, Suite, Task, load_suite

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


def test_stale_cell_is_the_same_scene_under_the_old_sentence(suite: Suite) -> None:
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
        ({"episodes": -1}, "at least 1"),
        ({"episodes": 4}, "has 3 initial states"),
        ({"instruction": "bdl"}, "Did you mean 'bddl'?"),
    ],
)
def test_select_says_what_is_wrong(suite: Suite, arguments: dict, word: str) -> None:
    with pytest.raises(UserError, match=word.replace("?", r"\?")):
        suite.select(**arguments)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"episods": 3}, "unknown key 'episods'. Did you mean 'episodes'"),
        ({"episodes": "many"}, "episodes is 'many'; it must be a whole number"),
        ({"cells": {"a": {"label": "A", "instruction": "file"}}}, "cell 'a': key 'max_steps' is missing"),
        ({"cells": {}}, "at least one"),
    ],
)
def test_bad_yaml_is_named_with_its_place(tmp_path, change: dict, word: str) -> None:
    raw = yaml.safe_load((data_dir("suites") / "libero.yaml").read_text())
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({**raw, **change}))
    with pytest.raises(UserError, match=word):
        load_suite(str(path))


def test_unknown_suite_and_object() -> None:
    with pytest.raises(UserError, match="Did you mean 'libero_pro'"):
        load_suite("libero_por")
    with pytest.raises(UserError, match="Cannot import 'no_such_module'"):
        load_object("no_such_module:x")
    with pytest.raises(UserError, match="has no 'nothing'"):
        load_object("json:nothing")
