"""Tables of episodes per cell and task: success per task, outcomes, language following, known defects."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from apt_bench.analysis.cell_summary import cell_frames
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, task_numbers
from apt_bench.core.text import one_line
from apt_bench.core.wording import in_words
from apt_bench.reporting.table import CELL, NUMBERS, RUN, TASK, Rate, Row, Table, Value, left, own_key, right
from apt_bench.runs.solvability import on_record


def task_table(runs: Sequence[Run]) -> Table:
    """Success per task, and its most frequent failure.

    Tasks have the numbers of `apt-bench ls tasks`. A task has no number where its suite is unknown here.
    """
    rows = []
    for run in runs:
        frames = cell_frames(run, finished=True)
        oracles = {suite: on_record(suite) for suite in {suite for suite, _ in frames}}
        for (suite, cell), episodes in frames.items():
            oracle, numbers = oracles[suite], task_numbers(suite, cell)
            by_task = episodes.groupby("task", observed=True)
            sizes, won = by_task.size(), by_task.success.sum()
            first, several = by_task.instruction.first(), by_task.instruction.nunique()
            steps = episodes[episodes.success].groupby("task", observed=True).steps.median()
            failures = episodes[~episodes.success].groupby(["task", "outcome_class"], observed=True).size()
            # Of equal keys the last one stays: the most frequent class, and the first of equally frequent ones.
            often = {t: (c, n) for (t, c), n in failures[::-1].sort_values(kind="stable").items()}
            for task in sorted(sizes.index, key=lambda t: (numbers.get(t, len(numbers)), t)):
                values: dict[str, Value] = {
                    "run": run.label, "cell": cell_label(suite, cell), "number": numbers.get(task, ""),
                    "task": task, "instruction": sent(first[task], several[task]),
                    "success": Rate.counted(int(won[task]), int(sizes[task])), "n": int(sizes[task]),
                    "steps": f"{steps[task]:.0f}" if task in steps else "",
                    "failure": "{} ({})".format(*often[task]) if task in often else "",
                    "oracle": e.score if (e := oracle.get((cell, task))) else "",
                }  # fmt: skip
                rows.append(Row(values))
    columns = [
        RUN, CELL, right("number", "#"), TASK, left("instruction", "Instruction"), right("success", "Success"),
        right("n", "Episodes"), right("steps", "Steps to success"),
        left("failure", "Most frequent failure", identifiers=True), right("oracle", "Oracle"),
    ]  # fmt: skip
    columns = [
        c for c in columns if c.key not in ("oracle", "number") or any(r.values[c.key] != "" for r in rows)
    ]
    notes = [
        "Success in %, with Wilson 95% intervals. Steps: median number of control steps of the successful episodes."
    ]
    if any(c.key == "oracle" for c in columns):
        notes.append("Oracle: episodes that the scripted expert solved, as recorded for the shipped suites.")
    if any(c.key == "number" for c in columns):
        notes.append(NUMBERS)
    return Table("tasks", "Per task", columns, rows, notes, heat=True)


def sent(instruction: str, number: int) -> str:
    """The instruction of some episodes. If they had several, the number of instructions, and this one as an example."""
    shown = one_line(instruction, 200)
    return shown if number == 1 else f"{number} sentences, e.g. “{shown}”"


def outcome_classes(runs: Sequence[Run]) -> list[str]:
    """Outcome classes that occur: success first, then failures by frequency, then errors."""
    counts = (
        pd.concat([r.frame.outcome_class.astype(str) for r in runs]).value_counts()
        if runs
        else pd.Series(dtype=int)
    )
    inner = [str(k) for k in counts.index if k not in ("success", "error")]
    return [*(["success"] if "success" in counts else []), *inner, *(["error"] if "error" in counts else [])]


CLASSES = {
    "memorised_task": "the robot did the unperturbed task instead of the instructed one",
    "no_contact": "the robot touched no object",
    "wrong_object": "the robot grasped an object or moved a joint, but none of those in the goal",
    "no_grasp": "no object of the goal was lifted, and no joint of the goal was moved",
    "dropped": "an object of the goal slipped from the fingers or was let fall",
    "wrong_place": "an object of the goal was put down in a place that the goal does not name",
    "timeout": "the step budget ended, and no other class applies",
    "error": "missing data, not a failure of the policy",
}
"""Outcome classes of `envs/outcome_tracker.py` -> what happened."""


def outcome_table(runs: Sequence[Run]) -> Table:
    """Number of episodes per cell and outcome class."""
    names = outcome_classes(runs)
    rows = []
    for run in runs:
        for (suite, cell), episodes in cell_frames(run).items():
            counts = episodes.outcome_class.value_counts()
            values: dict[str, Value] = {own_key(n, "run", "cell"): int(counts.get(n, 0)) for n in names}
            rows.append(Row({"run": run.label, "cell": cell_label(suite, cell), **values}))
    columns = [RUN, CELL, *(right(own_key(n, "run", "cell"), in_words(n)) for n in names)]
    meanings = [f"{in_words(n).capitalize()}: {CLASSES[n]}." for n in names if n in CLASSES]
    return Table("outcomes", "Outcomes", columns, rows, ("Number of episodes with each outcome.", *meanings))


ABOUT_LANGUAGE = (
    "What the robot touches and grasps first shows at which object the policy aims. That can be right even if the "
    "episode fails."
)

LANGUAGE = {
    "first_contact_correct": "First contact as instructed",
    "first_grasp_correct": "First grasp as instructed",
    "original_task_done": "Original task done",
}
"""Columns of `episode_frame` that show whether a policy follows its instruction -> their headings."""


def language_table(runs: Sequence[Run]) -> Table | None:
    """How often the policy follows the instruction, and how often it does the original task; None without records."""
    rows = []
    for run in runs:
        for (suite, cell), episodes in cell_frames(run, finished=True).items():
            values: dict[str, Value] = {k: Rate.share(episodes[k]) for k in LANGUAGE}
            if any(isinstance(v, Rate) and v.known for v in values.values()):
                contacts = episodes.first_contact.value_counts().head(2)
                often = ", ".join(f"{name} {n / len(episodes):.0%}" for name, n in contacts.items() if n)
                label = {"run": run.label, "cell": cell_label(suite, cell)}
                success = Rate.share(episodes.success)
                rows.append(Row({**label, **values, "success": success, "first_contact": often}))
    if not rows:
        return None
    columns = [
        RUN, CELL, *(right(k, label) for k, label in LANGUAGE.items()), right("success", "Success"),
        left("first_contact", "Most frequent first contacts", identifiers=True),
    ]  # fmt: skip
    notes = (
        "In %, with Wilson 95% intervals. First contact as instructed: the instruction is about the first thing that "
        "the robot touched (of the episodes with a contact). First grasp as instructed: the goal requires "
        "moving the first grasped object. Original task done: the robot reached the goal of the unperturbed task "
        "instead (only where the two goals differ).",
    )
    return Table("language", "Does it follow the instruction?", columns, rows, notes)


def defect_table(runs: Sequence[Run]) -> Table | None:
    """Scores with and without the episodes that have a known defect; None where no episode has one."""
    rows = []
    for run in runs:
        for (suite, cell), episodes in cell_frames(run, finished=True).items():
            flagged = episodes[episodes.defects != ""]
            if len(flagged):
                kinds = flagged.defects.str.split(", ").explode().value_counts()
                values: dict[str, Value] = {
                    "run": run.label, "cell": cell_label(suite, cell), "all": Rate.share(episodes.success),
                    "without": Rate.share(episodes[episodes.defects == ""].success),
                    "only": Rate.share(flagged.success), "flagged": len(flagged),
                    "flags": ", ".join(f"{k} ({n})" for k, n in kinds.items()),
                }  # fmt: skip
                rows.append(Row(values))
    if not rows:
        return None
    columns = [
        RUN, CELL, right("all", "All episodes"), right("without", "Without flagged"), right("only", "Flagged only"),
        right("flagged", "Flagged"), left("flags", "Flags", identifiers=True),
    ]  # fmt: skip
    notes = (
        "The headline tables count all episodes. A flag names a known defect of a task or initial state.",
    )
    return Table("defects", "With and without defective episodes", columns, rows, notes)
