"""The table of pick-place cells by container: success, and the container to which lifted items were moved."""

from __future__ import annotations

from collections.abc import Sequence

from apt_bench.analysis.cell_summary import cell_frames
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, task_containers
from apt_bench.reporting.table import CELL, RUN, TASK, Rate, Row, Table, right


def subtask_table(runs: Sequence[Run], suite: str) -> Table | None:
    """Each task of the cells of a suite whose tasks name a container (`Task.container`).

    Returns:
        The table, or None where no finished episode belongs to such a task.
    """
    rows = []
    for run in runs:
        for (name, cell), episodes in cell_frames(run, finished=True).items():
            for task, container in (task_containers(suite, cell) if name == suite else {}).items():
                part = episodes[episodes.task == task]
                if not len(part):
                    continue
                # An episode ends at success, before the item is at rest for the record of placements.
                lifted = part[part.goal_object_lifted.fillna(False).astype(bool)]
                place = lifted.goal_object_placed.astype(object).where(~lifted.success, container)
                values = {
                    "success": Rate.share(part.success),
                    "right": Rate.share(part.first_contact_correct),
                    "lifted": Rate.share(part.goal_object_lifted),
                    "named": Rate.share(place == container),
                    "other": Rate.share(~place.isin([container, ""])),
                }
                label = {"run": run.label, "cell": cell_label(suite, cell), "task": task}
                rows.append(Row({**label, **values, "n": len(part)}))
    if not rows:
        return None
    group = "Of lifted items, moved to"
    columns = [
        RUN, CELL, TASK, right("success", "Success"), right("right", "First contact as instructed"),
        right("lifted", "Instructed item lifted"), right("named", "the named container", group),
        right("other", "another container", group), right("n", "Episodes"),
    ]  # fmt: skip
    notes = (
        "In %, with Wilson 95% intervals. A task has all instructions that name one container. Lifted items: episodes "
        "in which the robot lifted the instructed item. They count for the container in which that item was when it "
        "last came to rest. The rest of them ended in no container.",
    )
    about = (
        "Each task names one container to which the item must be moved. Here each task stands by itself: whether the "
        "robot lifted the instructed item, and whether it then moved it to the named container or to another one."
    )
    return Table(f"{suite}_containers", "By container", columns, rows, notes, about=about)
