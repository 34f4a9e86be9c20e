"""Tasks of several parts: which instruction is due, and which parts are done. The same rules for every environment.

Coaching gives one instruction per part; the next comes when the current part's goal holds or its share of the budget is
spent. Chaining gives one instruction for all parts at once.

A part is *done* when its goal holds while it is asked for (chaining: at any time). All together are done, which is the
episode's success, when each part was done and all goals hold at once. Some parts cannot: to put the bowl on the plate
takes it off the stove. A part that a later one *undoes* need not hold any longer, it must have been done before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apt_bench.envs.base import Atom

Goal = tuple[Atom, ...]
_PLACES = ("on", "in")


class Stages:
    """Follows one episode.

    instructions: one per part (coaching), or a single one for all of them (chaining, ordinary tasks). The first is only
    a place holder: what is sent first is the episode's prompt. max_steps: the episode's budget in control steps, shared
    evenly between the instructions.
    """

    def __init__(self, instructions: Sequence[str], parts: Sequence[Goal], max_steps: int) -> None:
        if len(instructions) not in (1, len(parts)):
            raise ValueError(f"{len(instructions)} instructions for {len(parts)} parts")
        self.parts = tuple(parts)
        self.success = self.over = False  # all is done; nothing is left to be done
        self.reached: list[int | None] = [None] * len(parts)  # control step at which each part was done
        self._instructions = instructions
        self._coached = len(instructions) > 1
        self._budget = max_steps // len(instructions)
        self._stage = self._began = 0
        self._undone = [any(undoes(later, part) for later in parts[k + 1 :]) for k, part in enumerate(parts)]

    @property
    def goal(self) -> Goal:
        """What the current instruction asks for."""
        return self.parts[self._stage] if self._coached else self.all_goals

    @property
    def all_goals(self) -> Goal:
        """What all instructions together ask for."""
        return tuple(dict.fromkeys(atom for part in self.parts for atom in part))

    def instruction(self, prompt: str) -> str:
        """The sentence to send now; `prompt` is the first."""
        return prompt if self._stage == 0 else self._instructions[self._stage]

    def update(self, step: int, holds: Sequence[bool]) -> None:
        """After control step number `step`: `holds` says which parts' goals are true now."""
        for k, now in enumerate(holds):
            due = k == self._stage or not self._coached
            if now and due and self.reached[k] is None:
                self.reached[k] = step
        last = not self._coached or self._stage == len(self.parts) - 1
        if not last:
            if holds[self._stage] or step - self._began >= self._budget:
                self._stage, self._began = self._stage + 1, step
            return
        kept = all(now or undone for now, undone in zip(holds, self._undone, strict=True))
        self.success = kept and None not in self.reached
        self.over = self.success or (self._coached and holds[self._stage])

    def events(self) -> dict[str, Any]:
        """`scores` (t1, t2, and t1_t2 for all together) and the control step of each part; {} for a single part."""
        if len(self.parts) < 2:
            return {}
        done = {f"t{k}": step is not None for k, step in enumerate(self.reached, 1)}
        return {"scores": {**done, "_".join(done): self.success}, "part_steps": self.reached}


def undoes(later: Goal, earlier: Goal) -> bool:
    """Whether a goal wants a thing elsewhere that another one wanted somewhere: both cannot hold at once."""
    moved = {a.args[0]: a.args[1] for a in later if a.predicate in _PLACES}
    return any(a.predicate in _PLACES and moved.get(a.args[0], a.args[1]) != a.args[1] for a in earlier)
