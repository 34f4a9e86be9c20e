"""Known defects of LIBERO-PRO's tasks. They stay in the protocol; records carry these flags, so that a report can show
scores with and without them.

`ejected_goal_object` was measured for the suites' own seed (7) with `checks(suite, premises=True)`; the others were
found by reading the files and looking at the scenes.
"""

from __future__ import annotations

from collections.abc import Mapping

MEANING: Mapping[str, str] = {
    "ejected_goal_object": "a goal object is thrown or falls while the scene settles: placements overlap",
    "wrong_goal": "the goal is about another object than the sentence",
    "degenerate": "the goal is as good as reached at the start: any touch of the knob succeeds",
    "duplicate": "same sentence and same goal as another task of this cell",
    "false_reference": "the sentence's landmark was moved, so its referring expression is no longer true",
    "infeasible": "the microwave's opening faces away from the robot",
}

Flags = Mapping[int | None, tuple[str, ...]]  # by initial state; None = every one


def _ejected(*inits: int) -> Flags:
    return dict.fromkeys(inits, ("ejected_goal_object",))


def _always(flag: str) -> Flags:
    return {None: (flag,)}


DEFECTS: Mapping[str, Mapping[int, Flags]] = {
    "libero_spatial_swap": {
        0: _always("false_reference"),  # between the plate and the ramekin
        1: _ejected(5),
        3: _ejected(7, 43, 47),
        8: _always("false_reference"),  # next to the plate
    },
    "libero_spatial_task": {
        0: _ejected(46),
        2: _ejected(17, 21, 22, 28, 47, 48),
        8: _ejected(11, 39),
    },
    "libero_goal_swap": {5: _ejected(25)},
    "libero_goal_task": {2: _always("duplicate"), 6: _always("duplicate"), 7: _always("degenerate")},
    "libero_10_swap": {1: _ejected(6, 30), 9: _always("infeasible")},
    "libero_10_task": {3: _ejected(13), 8: _always("wrong_goal")},
}
"""benchmark -> index of the task in its cell -> flags."""
