"""Follow an episode with several subtasks. The rules are the same in every environment.

A subtask has a goal: atoms that must all hold. Instructions are given in one of two ways:

- Coaching gives one instruction per subtask. The next instruction comes when the current subtask's goal holds, or when
  its share of the step budget is spent.
- Chaining gives one instruction for all subtasks at once.

A subtask is *done* when its goal holds while its instruction is given (in chaining: at any time). The episode succeeds
when every subtask was done and all goals hold at the same time. Some goals cannot hold at the same time: putting the
bowl on the plate takes it off the stove. Where a later subtask *undoes* an earlier one, the earlier goal need not hold
at the end, but it must have held before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apt_bench.envs.base import Atom

Goal = tuple[Atom, ...]
_PLACES = ("on", "in")


class SubtaskTracker:
    """Follows the subtasks of one episode.

    Attributes:
        goals: The goal of each subtask.
        reached: The control step at which each subtask was done, or None.
        success: Whether the episode succeeded.
        over: Whether no subtask remains.
    """

    def __init__(self, instructions: Sequence[str], goals: Sequence[Goal], max_steps: int) -> None:
        """Begin an episode.

        Args:
            instructions: One per subtask (coaching), or a single one for all subtasks (chaining, ordinary tasks). The
                first is only a placeholder: the first instruction sent is the episode's prompt.
            goals: One per subtask.
            max_steps: The episode's budget in control steps, shared evenly between the instructions.
        """
        if len(instructions) not in (1, len(goals)):
            raise ValueError(f"{len(instructions)} instructions for {len(goals)} subtasks")
        self.goals = tuple(goals)
        self.success = self.over = False
        self.reached: list[int | None] = [None] * len(goals)
        self._instructions = instructions
        self._coached = len(instructions) > 1
        self._budget = max_steps // len(instructions)
        self._current = self._began = 0
        self._undone = [any(undoes(later, goal) for later in goals[k + 1 :]) for k, goal in enumerate(goals)]

    @property
    def goal(self) -> Goal:
        """The goal of the current instruction."""
        return self.goals[self._current] if self._coached else self.all_goals

    @property
    def all_goals(self) -> Goal:
        """The atoms of all subtasks."""
        return tuple(dict.fromkeys(atom for goal in self.goals for atom in goal))

    def instruction(self, prompt: str) -> str:
        """The instruction to send now. `prompt` is the first one."""
        return prompt if self._current == 0 else self._instructions[self._current]

    def update(self, step: int, holds: Sequence[bool]) -> None:
        """Update after control step number `step`. `holds`: whether the goal of each subtask is true now."""
        for k, now in enumerate(holds):
            instructed = k == self._current or not self._coached
            if now and instructed and self.reached[k] is None:
                self.reached[k] = step
        last = not self._coached or self._current == len(self.goals) - 1
        if not last:
            if holds[self._current] or step - self._began >= self._budget:
                self._current, self._began = self._current + 1, step
            return
        kept = all(now or undone for now, undone in zip(holds, self._undone, strict=True))
        self.success = kept and None not in self.reached
        self.over = self.success or (self._coached and holds[self._current])

    def events(self) -> dict[str, Any]:
        """`scores` (t1, t2, and t1_t2 for all subtasks) and `part_steps`, the control step at which each subtask was
        done. {} where there is one subtask only."""
        if len(self.goals) < 2:
            return {}
        done = {f"t{k}": step is not None for k, step in enumerate(self.reached, 1)}
        return {"scores": {**done, "_".join(done): self.success}, "part_steps": self.reached}


def undoes(later: Goal, earlier: Goal) -> bool:
    """Return whether two goals place the same object differently, so that they cannot hold at the same time."""
    moved = {a.args[0]: a.args[1] for a in later if a.predicate in _PLACES}
    return any(a.predicate in _PLACES and moved.get(a.args[0], a.args[1]) != a.args[1] for a in earlier)
