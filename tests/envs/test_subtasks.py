"""Coaching and chaining: when the next instruction comes, what counts as done, and subtasks that undo each other."""

from __future__ import annotations

import pytest

from apt_bench.envs.base import Atom
from apt_bench.envs.subtasks import SubtaskTracker, undoes

STOVE = (Atom("on", ("bowl", "stove")),)
PLATE = (Atom("on", ("bowl", "plate")),)
DRAWER = (Atom("open", ("drawer",)),)


def play(tracker: SubtaskTracker, *holds: tuple[bool, bool]) -> dict:
    for step, now in enumerate(holds, 1):
        tracker.update(step, now)
        if tracker.over:
            break
    return tracker.events()


def test_coaching_gives_the_second_instruction_when_the_first_subtask_is_done() -> None:
    tracker = SubtaskTracker(["first", "second"], [DRAWER, PLATE], 100)
    assert (tracker.goal, tracker.instruction("sent")) == (DRAWER, "sent")
    tracker.update(1, (True, False))
    assert (tracker.goal, tracker.instruction("sent"), tracker.over) == (PLATE, "second", False)
    tracker.update(2, (True, True))
    assert tracker.success
    assert tracker.events() == {"scores": {"t1": True, "t2": True, "t1_t2": True}, "part_steps": [1, 2]}


def test_coaching_gives_the_second_instruction_at_half_the_budget_and_a_late_first_subtask_does_not_count() -> (
    None
):
    tracker = SubtaskTracker(["first", "second"], [DRAWER, PLATE], 4)
    events = play(tracker, (False, True), (False, False), (True, False), (True, True))
    assert events["scores"] == {"t1": False, "t2": True, "t1_t2": False}
    assert events["part_steps"] == [None, 4]
    assert tracker.over
    assert not tracker.success


def test_the_first_goal_must_still_hold_unless_the_second_subtask_undoes_it() -> None:
    kept = SubtaskTracker(["first", "second"], [DRAWER, PLATE], 100)
    assert play(kept, (True, False), (False, True))["scores"] == {"t1": True, "t2": True, "t1_t2": False}
    undone = SubtaskTracker(["first", "second"], [STOVE, PLATE], 100)
    assert play(undone, (True, False), (False, True))["scores"]["t1_t2"]


def test_chaining_accepts_any_order_unless_one_subtask_undoes_the_other() -> None:
    free = SubtaskTracker(["both"], [DRAWER, PLATE], 100)
    assert free.goal == DRAWER + PLATE
    assert play(free, (False, True), (True, True))["scores"]["t1_t2"]
    ordered = SubtaskTracker(["both"], [STOVE, PLATE], 100)
    events = play(ordered, (False, True), (True, False))
    assert events["scores"] == {"t1": True, "t2": True, "t1_t2": False}
    assert not ordered.over  # the plate comes after the stove
    ordered.update(3, (False, True))
    assert ordered.success


def test_an_ordinary_task_has_one_subtask() -> None:
    tracker = SubtaskTracker(["do it"], [PLATE], 10)
    tracker.update(1, (False,))
    assert not tracker.over
    tracker.update(2, (True,))
    assert tracker.success
    assert tracker.events() == {}
    with pytest.raises(ValueError, match="3 instructions for 2 subtasks"):
        SubtaskTracker(["a", "b", "c"], [STOVE, PLATE], 10)


def test_what_undoes_what() -> None:
    assert undoes(PLATE, STOVE)
    assert not undoes(PLATE, PLATE)
    assert not undoes(DRAWER, STOVE)
    assert not undoes((Atom("on", ("cheese", "bowl")),), STOVE)
