"""Evidence that each task can be solved: the results of the oracle (the scripted expert), task by task.

`apt-bench validate --suite S --solvable` runs every task with the oracle and makes one `Evidence` per task. The files
`suites/<suite>_solvable.json` contain the evidence for the shipped suites. A task that the oracle solves is solvable. A
task that it does not solve may still be solvable, unless a figure in `proof` shows that it is not.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import parse_json, read_text, reason, write_whole
from apt_bench.core.paths import data_dir
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeSpec, suite_names
from apt_bench.suites.findings import Finding

Proof = Mapping[str, Mapping[str, Any]]
"""Defect -> name of a measured figure -> its value."""


@dataclass(frozen=True)
class Evidence:
    """The oracle's episodes of one task of one cell. Counts are numbers of episodes.

    Attributes:
        cell: The cell.
        task: The task.
        episodes: Episodes with a result.
        solved: Successful episodes.
        steps: Median number of control steps of the successful episodes.
        missing: Requested episodes that ended in an error.
        start_solved: Episodes in which the whole goal was true before the policy acted.
        start_atoms: Goal atom -> episodes in which it was true before the policy acted.
        failures: Class of failure -> episodes.
        parts: Part of a composite task -> episodes in which it was completed.
        part_steps: Median control step at which each part was completed.
        defects: Flag -> episodes.
        proof: Measured figures that show a defect.
    """

    cell: str
    task: str
    episodes: Natural
    solved: Natural
    steps: Natural | None
    missing: Natural = 0
    start_solved: Natural = 0
    start_atoms: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    part_steps: tuple[int | None, ...] = ()
    defects: Mapping[str, int] = field(default_factory=dict)
    proof: Proof = field(default_factory=dict)

    @property
    def score(self) -> str:
        """`solved/episodes`."""
        return f"{self.solved}/{self.episodes}"

    @property
    def why(self) -> str:
        """How the episodes ended that were not solved."""
        ends = ", ".join(f"{name} {count}" for name, count in self.failures.items())
        parts = ", ".join(
            f"{name.upper()} done {count}" for name, count in self.parts.items() if "_" not in name
        )
        return "; ".join(text for text in (ends, parts) if text)


def gather(
    specs: Sequence[EpisodeSpec], records: Iterable[EpisodeRecord], proofs: Mapping[tuple[str, str], Proof]
) -> list[Evidence]:
    """Make one `Evidence` per task.

    Args:
        specs: The requested episodes.
        records: Their records.
        proofs: (cell, task) -> measured figures that show a defect.

    Returns:
        The evidence, in the order of the requested episodes.
    """
    found = {r.key: r for r in records if r.outcome != "error"}
    requested: dict[tuple[str, str], list[EpisodeSpec]] = {}
    for spec in specs:
        requested.setdefault((spec.key.cell, spec.key.task), []).append(spec)
    return [
        _evidence(place, [found[s.key] for s in mine if s.key in found], len(mine), proofs.get(place, {}))
        for place, mine in requested.items()
    ]


def _evidence(place: tuple[str, str], records: list[EpisodeRecord], requested: int, proof: Proof) -> Evidence:
    solved = [r for r in records if r.outcome == "success"]
    goals = [_mapping(r.events.get("goal")) for r in records]
    atoms = [[atom for atom, truth in goal.items() if _mapping(truth).get("start") is True] for goal in goals]
    scores = [{k: v for k, v in _mapping(r.events.get("scores")).items() if v in (0, 1)} for r in records]
    steps = [r.events.get("part_steps", ()) for r in records]
    steps = [part if isinstance(part, list | tuple) else () for part in steps]
    return Evidence(
        cell=place[0],
        task=place[1],
        episodes=len(records),
        solved=len(solved),
        steps=_median([r.steps for r in solved]),
        missing=requested - len(records),
        start_solved=sum(len(held) == len(goal) > 0 for held, goal in zip(atoms, goals, strict=True)),
        start_atoms=dict(Counter(atom for held in atoms for atom in held)),
        failures=dict(
            Counter(r.failure or r.outcome for r in records if r.outcome != "success").most_common()
        ),
        parts={part: sum(s.get(part, 0) for s in scores) for part in (scores[0] if scores else ())},
        part_steps=tuple(
            _median([s for s in part if isinstance(s, int)]) for part in zip(*steps, strict=False)
        ),
        defects=dict(Counter(flag for r in records for flag in r.flags)),
        proof=proof,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _median(values: Sequence[int]) -> int | None:
    return round(statistics.median(values)) if values else None


def findings(evidence: Iterable[Evidence]) -> Iterator[Finding]:
    """Findings for `apt-bench validate`: how often each task is solved, and goals that are true at the start."""
    for e in evidence:
        if e.start_solved:
            yield Finding(
                "error", "start", f"solved at the start in {e.start_solved} of {e.episodes}", e.cell, e.task
            )
        else:
            for atom, count in e.start_atoms.items():
                yield Finding(
                    "warn", "start", f"{atom} holds at the start in {count} of {e.episodes}", e.cell, e.task
                )
        for flag, figures in e.proof.items():
            text = ", ".join(f"{name} {value}" for name, value in figures.items())
            yield Finding("warn", flag, text, e.cell, e.task)
        if e.missing:
            yield Finding("warn", "solvable", f"{e.missing} episodes are missing", e.cell, e.task)
        if not e.episodes:
            continue
        text = f"the oracle solves {e.solved} of {e.episodes}"
        text += f" in {e.steps} steps (median)" if e.solved else ""
        text += f"; {e.why}" if e.why else ""
        yield Finding("ok" if e.solved else "warn", "solvable", text, e.cell, e.task)


def write(path: Path, suite: str, evidence: Sequence[Evidence]) -> None:
    """Write evidence to a file, one task per line. Other tasks in the file stay. Raises UserError if that fails."""
    merged = {(e.cell, e.task): e for e in (*(read(path) if path.is_file() else ()), *evidence)}
    lines = ",\n  ".join(json.dumps(_sparse(e)) for e in merged.values())
    text = f'{{"suite": {json.dumps(suite)}, "policy": "oracle", "tasks": [\n  {lines}\n]}}\n'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"Cannot write {path}: {reason(error)}.") from None


def _sparse(evidence: Evidence) -> dict[str, Any]:
    return {k: v for k, v in asdict(evidence).items() if v or k in ("episodes", "solved")}


def read(path: Path) -> list[Evidence]:
    """Read a file that `write` made. Raises UserError if it is damaged; the message names the task and the key."""
    text = read_text(path)
    try:
        rows = parse_json(text)["tasks"]
        if not isinstance(rows, list):
            raise TypeError("'tasks' is not a list")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not what `apt-bench validate --solvable --out` writes: {error}."
        ) from None
    found = [_read(row, f"{path}: tasks[{i}]") for i, row in enumerate(rows)]
    places = [(e.cell, e.task) for e in found]
    if twice := {p for p in places if places.count(p) > 1}:
        raise UserError(f"{path} has task '{min(twice)[1]}' of cell '{min(twice)[0]}' twice. Remove one.")
    return found


def _read(row: Any, where: str) -> Evidence:
    evidence: Evidence = build(Evidence, {"steps": None, **row} if isinstance(row, dict) else row, where)
    if evidence.solved > evidence.episodes:
        raise UserError(f"{where}: {evidence.solved} of {evidence.episodes} episodes are solved.")
    for name in ("start_atoms", "failures", "parts", "defects"):
        for key, count in getattr(evidence, name).items():
            build(Natural, count, f"{where}: {name}: {key}")
    for flag, figures in evidence.proof.items():
        build(Mapping, figures, f"{where}: proof: {flag}")
    return evidence


def on_record(suite: str) -> dict[tuple[str, str], Evidence]:
    """The shipped evidence of a suite by (cell, task); {} where there is none."""
    if suite not in suite_names():  # the name may come from a run directory, and must not become a path
        return {}
    path = data_dir("suites") / f"{suite}_solvable.json"
    return {(e.cell, e.task): e for e in read(path)} if path.is_file() else {}
