"""Stop a run as soon as its comparison with an earlier run is decided: a group-sequential test on matched pairs.

Episodes run in batches. A batch holds the next initial states of every task of every cell, so that no interim look
depends more on one task than on another. A look is taken only when a whole batch has ended, because successes end
before failures. The rule generalises over the initial states of these tasks, as `check` does: its error rates are those
of pooled pairs. docs/statistics.md describes it.
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
from apt_bench.runs.protocol import differing_settings
from apt_bench.runs.records import EpisodeRecord, RunStore
from apt_bench.suites import EpisodeKey, EpisodeSpec

if TYPE_CHECKING:
    from apt_bench.analysis.sequential import Decision, Look

LOOKS = 10
"""Largest number of interim looks. More would save few episodes, and every batch compiles every scene again."""

ALPHA = 0.05
VERDICTS = {"a better": "better", "b better": "worse"}
"""Verdicts of `sequential.sequential_mcnemar`, in which A is this run."""


@dataclass(frozen=True)
class _RecordedLook:
    """An interim look in run.json."""

    pairs: Natural
    only_run: Natural
    only_against: Natural


class Sequential:
    """The stopping rule of one run and its state. `specs`: every episode that it may request, in order."""

    def __init__(
        self, specs: Sequence[EpisodeSpec], against: Path, margin: float | None, recorded: Mapping[str, Any]
    ) -> None:
        """Continue the rule from its state in run.json.

        Args:
            specs: The selected episodes.
            against: The run to compare with.
            margin: Equivalence margin, a fraction.
            recorded: State from an earlier command of this run, as `card` gives it; empty = none.

        Raises:
            UserError: The runs share no episode, or the recorded rule differs from this one.
        """
        from apt_bench.analysis.sequential import Look

        records = RunStore.open(against).episodes()
        self._baseline = {r.key: r.outcome == "success" for r in records if r.outcome != "error"}
        shared = [s for s in specs if s.key in self._baseline]
        if not shared:
            raise UserError(
                f"{against} has no finished episode of this selection: {_example(specs[0].key)} here, "
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
        if recorded and (
            changed := [k for k in self._rule if k != "against" and recorded.get(k) != self._rule[k]]
        ):
            raise UserError(
                f"This run was begun with another stopping rule ({', '.join(changed)} differ), and a rule holds only "
                "if it is kept. Repeat that command, or give another directory with --out."
            )
        looks: tuple[_RecordedLook, ...] = build(
            tuple[_RecordedLook, ...], recorded.get("looks") or (), "run.json: sequential: looks"
        )
        if len(looks) > count:
            raise UserError(f"run.json: sequential: {len(looks)} looks, but only {count} were planned.")
        self._looks = [Look(x.pairs, x.only_run, x.only_against) for x in looks]
        self._won: dict[EpisodeKey, bool] = {}
        self._open: set[EpisodeKey] = set()

    def start(self, finished: Mapping[EpisodeKey, str]) -> list[EpisodeSpec]:
        """The first episodes to run; none where the comparison is decided. finished: outcomes of earlier commands."""
        self._won = {k: outcome == "success" for k, outcome in finished.items() if k in self._baseline}
        todo = [] if self.over else self._opened(self.begun)
        return todo or self._advance()

    def ended(self, record: EpisodeRecord) -> list[EpisodeSpec]:
        """The episodes to run after this one has ended: the next batch if a batch is complete, otherwise none. An
        episode that ended in an error belongs to no pair."""
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
        """The episodes of all batches so far, the present one included."""
        number = len(self._looks) + (not self.over)
        return [s for batch in self._batches[:number] for s in batch]

    @property
    def looks(self) -> tuple[Look, ...]:
        """All looks so far."""
        return tuple(self._looks)

    @property
    def decision(self) -> Decision:
        """The state of the test after the last look. A is this run."""
        from apt_bench.analysis.sequential import sequential_mcnemar

        return sequential_mcnemar(self._looks, self._rule["maximum"], ALPHA, self._rule["margin"])

    @property
    def over(self) -> bool:
        """Whether the comparison is decided, or the maximum is reached."""
        return len(self._looks) == len(self._batches) or (bool(self._looks) and self.decision.final)

    def card(self) -> dict[str, Any]:
        """The entry in run.json: the rule, the looks and the verdict."""
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
    """The stopping rule of a run: a new one, or the recorded one with its state.

    Args:
        against: The run to compare with.
        margin: Equivalence margin, a fraction.
        protocol: Protocol of this run.
        specs: The selected episodes.
        out: Directory of this run.
        begun: Whether that has finished episodes.

    Raises:
        UserError: `against` is this run or used another protocol, or this run was begun without the rule.
    """
    if against.resolve() == out.resolve():
        raise UserError(
            f"--against {against} is this run itself. Name the run to compare it with, or another --out."
        )
    card = RunStore.open(against).protocol()
    if IMPORTED in card:
        raise UserError(
            f"{against} was imported from an eval_info.json, which does not name initial states, so none of its "
            "episodes match. Name a run that `apt-bench run` made."
        )
    changed = differing_settings(protocol, card)
    if changed:
        shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise UserError(
            f"{against} used another protocol (this run / that one: {shown}). Give this run the same settings, or run "
            "that one again."
        )
    recorded = RunStore(out).run().get("sequential") if begun and (out / "run.json").is_file() else None
    if begun and not recorded:
        raise UserError(
            f"{out} holds episodes that were run without --stop-when decided. A rule that is declared after the "
            "results are seen does not keep its error rate. Give another directory with --out."
        )
    return Sequential(specs, against, margin, recorded or {})


def _example(key: EpisodeKey | None) -> str:
    return f"e.g. {key.id}" if key else "nothing"
