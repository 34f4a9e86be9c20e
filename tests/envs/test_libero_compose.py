"""The pairs of libero_compose, without a simulator."""

from __future__ import annotations

from apt_bench.envs.libero.compose import SEPARATOR
from apt_bench.envs.libero.tasks import goals
from apt_bench.envs.subtasks import undoes
from apt_bench.runs.solvability import on_record
from apt_bench.suites import load_suite

SUITE = load_suite("libero_compose")
PAIRS = {c.name: SUITE.cell_tasks(c) for c in SUITE.cells}


def test_every_ordered_pair_is_in_one_cell_of_each_mode() -> None:
    for mode in ("coaching", "chaining"):
        names = [t.name for t in (*PAIRS[mode], *PAIRS[f"{mode}_never_done"])]
        assert len(set(names)) == len(names) == 90
    assert [t.name for t in PAIRS["coaching"]] == [t.name for t in PAIRS["chaining"]]


def test_headline_pairs_were_done_and_the_others_never() -> None:
    record = on_record("libero_compose")
    assert {cell for cell, _ in record} == {"coaching", "chaining"}
    assert len(record) == 180
    solved = {task for (_, task), e in record.items() if e.solved}
    assert {t.name for t in PAIRS["coaching"]} == solved
    assert not any(e.missing or e.start_solved or e.start_atoms for e in record.values())


def test_pairs_whose_second_task_undoes_the_first() -> None:
    all_pairs = (*PAIRS["coaching"], *PAIRS["coaching_never_done"])
    undone = [t.name for t in all_pairs if undoes(*reversed(goals(t.args)))]
    assert len(undone) == 14  # 4 places for the bowl, 2 for the wine bottle
    assert f"put_the_bowl_on_the_stove{SEPARATOR}put_the_bowl_on_the_plate" in undone


def test_both_modes_have_the_same_initial_states_with_other_sentences() -> None:
    coached, chained = (SUITE.select([c], episodes=1) for c in ("coaching", "chaining"))
    for a, b in zip(coached, chained, strict=True):
        assert (a.key.task, a.env_seed, a.args) == (b.key.task, b.env_seed, b.args)
        assert b.prompts == {"text": f"{a.prompts['text']}, then {a.prompts['second']}"}
