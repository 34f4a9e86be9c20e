"""Imports and exports lerobot's `eval_info.json`.

For each task, the file has a list of successes, one per episode in the order in which they ran, and means per task
group and overall. It has no initial states and no errors. So imported episodes are never matched with those of
another run: `compare` treats them as unpaired, and `check` refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.files import (
    PART,
    exclusive,
    parse_json,
    read_text,
    reason,
    sha256,
    try_remove,
    write_json,
)
from apt_bench.core.text import one_line
from apt_bench.runs.protocol import protocol_hash
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey, iter_suites

IMPORTED = "imported"
"""Prompt source of imported episodes: the file does not give the instruction."""

UNNAMED = "eval"
"""Task group of a file that names none, which lerobot wrote before version 0.4."""

NAME_LENGTH = 200
"""Longest name of a task group or task in characters."""


LIBERO_TASKS = "apt_bench.envs.libero:cell_tasks"
"""`Suite.tasks` of suites whose cells are LIBERO's benchmarks as they are."""


def benchmarks() -> dict[str, tuple[str, str]]:
    """lerobot's task group (`libero_spatial`) -> the suite and the cell that are the same tasks here."""
    return {
        str(c.args["benchmark"]): (s.name, c.name)
        for s in iter_suites()
        for c in s.cells
        if s.tasks == LIBERO_TASKS
    }


def read_eval_info(path: Path, policy: str, group: str | None = None) -> list[EpisodeRecord]:
    """Read the episodes of an `eval_info.json`.

    Episode i of task t gets the key (suite, cell, `task_t`, i, seed 0, prompt `default`). A task group that no suite
    has becomes a cell of suite `lerobot`.

    Args:
        path: The file.
        policy: Name of the policy in the records.
        group: Task group of a file of lerobot before 0.4 (`per_episode`), which has one task and does not name it.
            Default: `UNNAMED`.

    Raises:
        UserError: The file is not as lerobot writes it; the message names the place.
    """
    try:
        info = parse_json(read_text(path), constants=True)  # lerobot writes NaN for a mean over no episodes
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if isinstance(info, dict) and isinstance(info.get("per_task"), list):
        if group is not None:
            raise UserError(f"{path} names its task groups itself. Leave --group out.")
        tasks = _tasks(path, info["per_task"])
    elif isinstance(info, dict) and isinstance(info.get("per_episode"), list):
        tasks = iter([_single_task(path, info, group or UNNAMED)])
    else:
        raise UserError(
            f"{path} has no list 'per_task' (lerobot from 0.4 on) and no list 'per_episode' (before): it is not an "
            "eval_info.json of lerobot-eval."
        )
    known, records = benchmarks(), []
    for where, name, task, successes, videos in tasks:
        suite, cell = known.get(name, ("lerobot", name))
        videos = videos if isinstance(videos, list) else []
        for i, success in enumerate(successes):
            if type(success) not in (bool, int, float) or success not in (0, 1):
                shown = one_line(repr(success), 60)
                raise UserError(f"{where.format(i=i)} is {shown}, not true or false.")
            video = videos[i] if i < len(videos) and isinstance(videos[i], str) else None
            records.append(
                _record(EpisodeKey(suite, cell, f"task_{task}", i, 0), policy, bool(success), video)
            )
    if not records:
        raise UserError(f"{path} holds no episode.")
    return records


_Task = tuple[str, str, str, list[Any], Any]
"""Place in the file (for messages), group, name, successes, videos."""


def _tasks(path: Path, items: list[Any]) -> Iterator[_Task]:
    seen: set[tuple[str, str]] = set()
    for number, item in enumerate(items):
        where = f"{path}: per_task[{number}]"
        if not isinstance(item, dict):
            raise UserError(f"{where} is not an object.")
        group, task, metrics = item.get("task_group"), item.get("task_id"), item.get("metrics")
        if not isinstance(group, str) or isinstance(task, bool) or not isinstance(task, int | str):
            raise UserError(f"{where} needs a 'task_group' (text) and a 'task_id' (number).")
        name, task = _name(group, f"{where}: task_group"), _name(str(task), f"{where}: task_id")
        successes = metrics.get("successes") if isinstance(metrics, dict) else None
        if not isinstance(metrics, dict) or not isinstance(successes, list):
            raise UserError(f"{where} has no list 'metrics.successes'.")
        if not successes:
            raise UserError(f"{where} holds no episode.")
        if (name, task) in seen:
            raise UserError(f"{where} repeats task {task} of group '{name}'.")
        seen.add((name, task))
        yield f"{_literal(where)}: successes[{{i}}]", name, task, successes, metrics.get("video_paths")


def _single_task(path: Path, info: Mapping[str, Any], group: str) -> _Task:
    """The task of a file of lerobot before 0.4: one task, one object per episode."""
    episodes = info["per_episode"]
    for i, episode in enumerate(episodes):
        if not isinstance(episode, dict) or "success" not in episode:
            raise UserError(f"{path}: per_episode[{i}] is not an object with a 'success'.")
    where = f"{_literal(str(path))}: per_episode[{{i}}]: success"
    return where, _name(group, "--group"), "0", [e["success"] for e in episodes], info.get("video_paths")


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _name(text: str, where: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > NAME_LENGTH:
        shown = one_line(repr(text), 60)
        raise UserError(f"{where} is {shown}; it must be printable text of 1 to {NAME_LENGTH} characters.")
    return text


def _record(key: EpisodeKey, policy: str, success: bool, video: str | None) -> EpisodeRecord:
    return EpisodeRecord(
        key=key,
        policy=policy,
        prompt="",
        prompt_source=IMPORTED,
        prompts={},
        outcome="success" if success else "failure",
        steps=0,
        decisions=0,
        seconds={},
        start_hash="",
        end_hash="",
        video=video,
    )


def import_eval_info(path: Path, out: Path, policy: str, group: str | None = None) -> int:
    """Write a run directory from an `eval_info.json` (`read_eval_info`): completely or not at all.

    Args:
        path: The file.
        out: The run directory: new or empty.
        policy: Name of the policy.
        group: Task group, for a file that names none.

    Returns:
        The number of episodes.

    Raises:
        UserError: The file is damaged, or `out` is not empty or cannot be written.
    """
    records = read_eval_info(path, policy, group)
    requested: dict[str, dict[str, int]] = {}
    cells: dict[str, str] = {}
    for r in records:
        if cells.setdefault(r.key.cell, r.key.suite) != r.key.suite:
            raise UserError(f"{path}: two of its groups would be the cell '{r.key.cell}'.")
        tasks = requested.setdefault(r.key.cell, {})
        tasks[r.key.task] = tasks.get(r.key.task, 0) + 1
    protocol = {"suite": ", ".join(sorted(set(cells.values()))), IMPORTED: "lerobot eval_info.json"}
    if cells == {UNNAMED: "lerobot"} and group is None:  # two such files may be of different tasks
        protocol["unnamed task, import with --group NAME"] = sha256(path)[:8]
    run = {"policy": {"name": policy}, "requested": requested, "source": str(path)}
    existed = out.exists()
    with exclusive(out, "apt-bench import"):
        if any(out.iterdir()):
            what = "already holds a run" if (out / "protocol.json").exists() else "is not empty"
            raise UserError(f"{out} {what}. Give --out a new directory.")
        part = out.resolve().with_name(out.resolve().name + PART)
        try:
            try_remove(part)
            part.mkdir()
            (part / "episodes.jsonl").write_text(
                "".join(r.to_json() + "\n" for r in records), encoding="utf-8"
            )
            write_json(part / "run.json", run)
            write_json(part / "protocol.json", {"hash": protocol_hash(protocol), **protocol})
            part.replace(out)
        except OSError as error:
            try_remove(part)
            if not existed:
                try_remove(out)
            raise UserError(f"Cannot write the run directory {out}: {reason(error)}.") from None
    return len(records)


def eval_info(records: Sequence[EpisodeRecord], wall_seconds: float | None = None) -> dict[str, Any]:
    """The records as the content of an `eval_info.json`.

    Errors are left out, since the file has no place for them, and so are episodes under language probes. LIBERO's
    reward is its success, so rewards are 0 or 1. Task ids number the sorted task names.

    Args:
        records: Records of a run, one per key.
        wall_seconds: Wall-clock time of the run.
    """
    names = {cell: group for group, cell in benchmarks().items()}
    groups: dict[str, dict[str, list[EpisodeRecord]]] = {}
    for r in records:
        if r.outcome != "error" and r.key.prompt == "default":
            group = names.get((r.key.suite, r.key.cell), r.key.cell)
            groups.setdefault(group, {}).setdefault(r.key.task, []).append(r)
    per_task, per_group, everything = [], {}, []
    for group, tasks in groups.items():
        whole = []
        for index, name in enumerate(sorted(tasks)):
            episodes = sorted(tasks[name], key=lambda r: (r.key.init, r.key.seed))
            per_task.append(
                {"task_group": group, "task_id": index, "task": name, "metrics": _metrics(episodes)}
            )
            whole += episodes
        per_group[group] = _aggregate(whole)
        everything += whole
    seconds = wall_seconds or math.nan
    overall = {
        **_aggregate(everything),
        "eval_s": None if math.isnan(seconds) else seconds,
        "eval_ep_s": None if math.isnan(seconds) or not everything else seconds / len(everything),
    }
    return {"per_task": per_task, "per_group": per_group, "overall": overall}


def _metrics(episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    wins = [r.outcome == "success" for r in episodes]
    rewards = [float(w) for w in wins]
    return {
        "sum_rewards": rewards,
        "max_rewards": rewards,
        "successes": wins,
        "video_paths": _videos(episodes),
    }


def _videos(episodes: Sequence[EpisodeRecord]) -> list[str]:
    return [r.video for r in episodes if r.video]


def _aggregate(episodes: Sequence[EpisodeRecord]) -> Mapping[str, Any]:
    mean = sum(r.outcome == "success" for r in episodes) / len(episodes) if episodes else None
    return {
        "avg_sum_reward": mean,
        "avg_max_reward": mean,
        "pc_success": None if mean is None else 100 * mean,
        "n_episodes": len(episodes),
        "video_paths": _videos(episodes),
    }
