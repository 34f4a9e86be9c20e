"""The first lines of a report: what each run solved, in one sentence a run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from apt_bench.analysis.cell_summary import cell_summaries, probe_summaries
from apt_bench.analysis.run import Run, suite_names
from apt_bench.analysis.suite_labels import suite_title
from apt_bench.core.text import one_line
from apt_bench.reporting.coverage import progress
from apt_bench.reporting.table import Rate, percent
from apt_bench.suites import STALE

PROBES = {
    "null": "without an instruction (null)",
    "swapped": "under another task's instruction (swapped)",
    "stale": "under the old instruction (stale)",
}
"""Language probes of the sentence; the table of probes has the others too."""


def opening(run: Run) -> dict[str, Any]:
    """The run's name, its result in words, and one line of facts."""
    own, probed = progress(cell_summaries(run).values()), progress(probe_summaries(run).values())
    parts = [
        f"{finished} of {requested} episodes{also}"
        for (requested, finished, _), also in ((own, ""), (probed, " under language probes"))
        if requested
    ]
    errors = own[2] + probed[2]
    when = str(run.info.get("ended") or run.info.get("started") or "")[:10]
    facts = [
        *(parts or ["no episode"]),
        *([f"{errors} errors"] if errors else []),
        f"protocol {run.protocol_id}",
        when,
    ]
    shipped = run.policy.get("shipped")
    about = f"(shipped, {one_line(shipped, 60)})" if shipped else ""
    return {
        "label": run.label,
        "about": "(reads from the simulator where everything is)"
        if run.policy.get("privileged") is True
        else about,
        "sentence": _sentence(run, own[0] - own[1]),
        "facts": " · ".join(filter(None, facts)),
    }


def _sentence(run: Run, missing: int) -> str:
    stale = run.frame.cell.astype(str).str.endswith(STALE)
    frame = run.frame[run.frame.finished & ~stale]
    if not len(frame):
        return "has no finished episode yet."
    solved = Rate.share(frame.success)
    titles = " and ".join(suite_title(name) for name in suite_names([run]))
    episodes = "finished episodes" if missing else "episodes"
    found = (
        f"solved {solved.k} of {solved.n} {episodes} of {one_line(titles, 120)}: {percent(solved.value)}% "
        f"(95% interval {percent(solved.low)} to {percent(solved.high)}%)."
    )
    found += f" {missing} requested episodes have no result." if missing else ""
    probed = run.probed[run.probed.finished]
    under = {p: probed.success[probed.prompt == p] for p in PROBES}
    under["stale"] = pd.concat([under["stale"], run.frame.success[run.frame.finished & stale]])
    counts = [
        f"{text} in {int(won.sum())} of {len(won)}" for p, text in PROBES.items() if len(won := under[p])
    ]
    if counts:
        found += f" It reached the task's own goal {', '.join(counts)}."
    original = Rate.share(frame.original_task_done)
    if original.known:
        found += f" It did the original task, the memorised one, in {original.k} of {original.n}."
    return found
