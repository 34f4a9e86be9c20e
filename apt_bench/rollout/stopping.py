"""Stop a run when it is decided: matched pairs with an earlier run, looked at a few times that are fixed beforehand.

Episodes are played in batches: the next initial states of every task of every cell, so that no look favours a task. A
look comes only when a whole batch has ended, never at what happens to be finished: successes end before failures.
The rule is about the initial states of these tasks, as `check` is: its error rates are those of pooled pairs.
docs/statistics.md has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.runs.eval_info import IMPORTED
from apt_bench.runs.records import EpisodeRecord, RunStore, differing_settings
from apt_bench.suites import EpisodeKey, EpisodeSpec

if TYPE_CHECKING:
    from apt_bench.analysis.sequential import Decision, Look

LOOKS = 10
"""At most so many: more would save few episodes, and every batch compiles every scene again."""

ALPHA = 0.05
VERDICTS = {"a better": "better", "b better": "worse"}
"""What `sequential.sequential_mcnemar` calls A is this run."""


@dataclass(frozen=True)
class _Noted:
    """A look as run.json keeps it."""

    pairs: Natural
    only_run: Natural
    only_against: Natural


class Sequential:
    """The rule of one run, and where it stands. `specs`: every episode that may be played, in order."""

    def __init__(
        self, specs: Sequence[EpisodeSpec], against: Path, margin: float | None, noted: Mapping[str, Any]
    ) -> None:
        """noted: what an earlier command of this run wrote, see `card`. Raises UserError where the runs share no
        episode, or where the rule is not the one noted."""
        from apt_bench.analysis.sequential import Look

        records = RunStore.open(against).episodes()
        self._baseline = {r.key: r.outcome == "success" for r in records if r.outcome != "error"}
        shared = [s for s in specs if s.key in self._baseline]
        if not shared:
            raise UserError(
                f"{against} has no finished episode that this run would play: {_example(specs[0].key)} here, "
                f"{_example(next(iter(self._baseline), None))} there. Choose the cells, tasks and seed of that run."
            )
        inits = sorted({s.key.init for s in shared})
        count = min(LOOKS, len(inits))
        last = {init: i * count // len(inits) for i, init in enumerate(inits)}
        self._batches = [[s for s in shared if last[s.key.init] == b] for b in range(count)]
        self.specs = tuple(s for batch in self._batches for s in batch)
        self.left_out = len(specs) - len(shared)
        text = "\n".join(sorted(f"{s.key.id} {self._baseline[s.key]}" for s in shared))
        self._rule: dict[str, Any] = {
            "against": str(against),
            "against_hash": hashlib.sha256(text.encode()).hexdigest()[:8],
            "maximum": len(shared),
            "planned_looks": count,
            "alpha": ALPHA,
            "margin": margin,
        }
        if noted and (changed := [k for k in self._rule if k != "against" and noted.get(k) != self._rule[k]]):
            raise UserError(
                f"This run was begun under another sequential rule ({', '.join(changed)} differ); a rule holds only if "
                "it is kept. Repeat that command, or give --out another directory."
            )
        looks: tuple[_Noted, ...] = build(
            tuple[_Noted, ...], noted.get("looks") or (), "run.json: sequential: looks"
        )
        if len(looks) > count:
            raise UserError(f"run.json: sequential: {len(looks)} looks, of {count} that were planned.")
        self._looks = [Look(x.pairs, x.only_run, x.only_against) for x in looks]
        self._won: dict[EpisodeKey, bool] = {}
        self._open: set[EpisodeKey] = set()

    def start(self, finished: Mapping[EpisodeKey, EpisodeRecord]) -> list[EpisodeSpec]:
        """The episodes to play first; none where it is decided already. finished: earlier commands' results."""
        self._won = {k: r.outcome == "success" for k, r in finished.items() if k in self._baseline}
        todo = [] if self.over else self._opened(self.begun)
        return todo or self._advance()

    def ended(self, record: EpisodeRecord) -> list[EpisodeSpec]:
        """What to play next now that this episode has ended: mostly nothing new, at the end of a batch the next one.
        An error leaves the pairs."""
        self._open.discard(record.key)
        if record.outcome != "error":
            self._won[record.key] = record.outcome == "success"
        return [] if self._open else self._advance()

    def _advance(self) -> list[EpisodeSpec]:
        while not self.over:
            self._look()
            if not self.over and (todo := self._opened(self._batches[len(self._looks)])):
                return todo
        return []

    def _opened(self, batch: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        todo = [s for s in batch if s.key not in self._won]
        self._open = {s.key for s in todo}
        return todo

    def _look(self) -> None:
        from apt_bench.analysis.sequential import Look

        keys = [s.key for s in self.begun if s.key in self._won]
        only = [
            sum(self._won[k] > self._baseline[k] for k in keys),
            sum(self._won[k] < self._baseline[k] for k in keys),
        ]
        self._looks.append(Look(len(keys), *only))

    @property
    def begun(self) -> list[EpisodeSpec]:
        """The episodes of the batches up to the one that is being played."""
        number = len(self._looks) + (not self.over)
        return [s for batch in self._batches[:number] for s in batch]

    @property
    def looks(self) -> tuple[Look, ...]:
        """Every look so far."""
        return tuple(self._looks)

    @property
    def decision(self) -> Decision:
        """Where the test stands after the last look; A is this run."""
        from apt_bench.analysis.sequential import sequential_mcnemar

        return sequential_mcnemar(self._looks, self._rule["maximum"], ALPHA, self._rule["margin"])

    @property
    def over(self) -> bool:
        """Whether it is decided, or the maximum is reached."""
        return len(self._looks) == len(self._batches) or (bool(self._looks) and self.decision.final)

    def card(self) -> dict[str, Any]:
        """What run.json keeps: the rule, the looks, and what they say."""
        verdict = self.decision.verdict
        return {
            **self._rule,
            "looks": [{"pairs": n, "only_run": a, "only_against": b} for n, a, b in self._looks],
            "over": self.over,
            "verdict": VERDICTS.get(verdict, verdict),
            "p": self.decision.p if self.over and verdict != "equivalent" else None,
        }


def open_rule(
    against: Path,
    margin: float | None,
    protocol: Mapping[str, Any],
    specs: Sequence[EpisodeSpec],
    out: Path,
    begun: bool,
) -> Sequential:
    """The rule of the run in `out`, new or as it was left. begun: it has episodes. Raises UserError where the run to
    match with is this one, was played under another protocol, or where no rule can hold any more."""
    if against.resolve() == out.resolve():
        raise UserError(
            f"--against {against} is this run itself. Name the run to compare it with, or another --out."
        )
    card = RunStore.open(against).protocol()
    if IMPORTED in card:
        raise UserError(
            f"{against} was imported from an eval_info.json, which does not say which initial states were played: none "
            "of its episodes match. Name a run that `apt-bench run` played."
        )
    knobs = differing_settings(protocol, card)
    if knobs:
        shown = "; ".join(knobs[:6]) + (f"; and {len(knobs) - 6} more" if len(knobs) > 6 else "")
        raise UserError(
            f"{against} was played under another protocol (this run / that one: {shown}). Give this run the same "
            "settings, or play that one again."
        )
    noted = RunStore(out).run().get("sequential") if begun and (out / "run.json").is_file() else None
    if begun and not noted:
        raise UserError(
            f"{out} holds episodes that were run without --stop-when decided; a rule that is declared after looking "
            "does not keep its error. Give --out another directory."
        )
    return Sequential(specs, against, margin, noted or {})


def _example(key: EpisodeKey | None) -> str:
    return f"e.g. {key.id}" if key else "nothing"
