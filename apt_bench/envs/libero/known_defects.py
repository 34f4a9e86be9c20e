"""Known defects of LIBERO-PRO's tasks.

The tasks stay in the protocol. Records carry these flags, so that a report can show scores with and without them.

`ejected_goal_object` was measured with `checks(suite, premises=True)` and is valid for the suites' own seed (7) only,
because LIBERO draws the places of cabinets and other fixtures at random. The other defects were found by reading the
files and inspecting the scenes.
"""

from __future__ import annotations

from collections.abc import Mapping

MEANING: Mapping[str, str] = {
    "ejected_goal_object": "a goal object is thrown or falls while the scene settles, because placements overlap",
    "premise": "an object is not on or in the support that the file names, once the scene has settled",
    "wrong_goal": "the goal and the sentence are about different objects",
    "degenerate": "the goal is nearly reached at the start: any touch of the knob succeeds",
    "duplicate": "same sentence and same goal as another task of this cell",
    "false_reference": "the sentence's landmark was moved, so its referring expression is no longer true",
    "opens_away": "the microwave's opening faces away from the robot",
}

Flags = Mapping[int | None, tuple[str, ...]]  # by index of the initial state; None = all of them


def _ejected(*inits: int) -> Flags:
    return dict.fromkeys(inits, ("ejected_goal_object",))


def _always(flag: str) -> Flags:
    return {None: (flag,)}


DEFECTS: Mapping[str, Mapping[int, Flags]] = {
    "libero_spatial": {0: _ejected(2, 18), 8: _ejected(4, 33)},
    "libero_spatial_swap": {
        0: _always("false_reference"),  # between the plate and the ramekin
        1: _ejected(5),
        3: _ejected(12, 15, 41),
        8: _always("false_reference"),  # next to the plate
    },
    "libero_spatial_task": {
        0: _ejected(46),
        2: _ejected(17, 21, 22, 28, 47, 48),
        8: _ejected(11, 39),
    },
    "libero_goal_task": {2: _always("duplicate"), 6: _always("duplicate"), 7: _always("degenerate")},
    "libero_10_swap": {1: _ejected(6, 30), 9: _always("opens_away")},
    "libero_spatial_object": {
        0: _ejected(10, 18, 19, 23, 29, 32, 38, 39, 43, 46, 49),
        2: _ejected(33),
        8: _ejected(0, 15, 17, 26, 38, 48),
    },
    "libero_spatial_lan": {
        0: _ejected(0, 1, 4, 7, 9, 15, 18, 23, 25, 27, 34),
        4: {33: ("premise",)},
        8: _ejected(7, 10, 11, 22, 32),
    },
    "libero_goal_object": {1: _ejected(23), 3: _ejected(42), 8: _ejected(8)},
    "libero_10_object": {6: _ejected(49)},
    "libero_10_lan": {1: _ejected(16)},
    "libero_10_task": {3: _ejected(36), 8: _always("wrong_goal")},
}
"""Benchmark -> index of the task in its cell -> flags."""
