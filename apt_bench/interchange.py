"""lerobot's `eval_info.json`, in and out.

The file holds per task a list of successes, one per episode in the order they ran, and their means per group of tasks
and overall. It knows neither initial states nor errors, so imported episodes are never matched with those of another
run: `compare` treats them as unpaired.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.records import EpisodeRecord, RunStore
from apt_bench.suites import EpisodeKey, iter_suites

IMPORTED = "imported"
"""Prompt source of imported episodes: the file does not say what was sent."""


def benchmarks() -> dict[str, tuple[str, str]]:
    """lerobot's task group (`libero_spatial`) -> the suite and cell it is here."""
    return {
        str(c.args["benchmark"]): (s.name, c.name)
        for s in iter_suites()
        for c in s.cells
        if "benchmark" in c.args
    }


def read_eval_info(path: Path, policy: str) -> list[EpisodeRecord]:
    """The episodes of an `eval_info.json`. Raises UserError, saying where the file is not as lerobot writes it.

    Episode i of task t becomes key (suite, cell, `task_t`, i, seed 0, prompt `default`). A group that no shipped suite
    has is a cell of suite `lerobot`.
    """
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    tasks = info.get("per_task") if isinstance(info, dict) else None
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"{path} has no list 'per_task': it is not an eval_info.json of lerobot-eval.")
    known, records = benchmarks(), []
    seen: set[tuple[str, str]] = set()
    for number, item in enumerate(tasks):
        group, name, metrics = _task(path, number, item)
        suite, cell = known.get(group, ("lerobot", group))
        if (group, name) in seen:
            raise UserError(f"{path}: per_task[{number}] repeats task {name} of group '{group}'.")
        seen.add((group, name))
        videos = metrics.get("video_paths")
        videos = videos if isinstance(videos, list) else []
        for i, success in enumerate(metrics["successes"]):
            video = videos[i] if i < len(videos) and isinstance(videos[i], str) else None
            records.append(
                _record(EpisodeKey(suite, cell, f"task_{name}", i, 0), policy, bool(success), video)
            )
    return records


def _task(path: Path, number: int, item: Any) -> tuple[str, str, dict[str, Any]]:
    where = f"{path}: per_task[{number}]"
    if not isinstance(item, dict):
        raise UserError(f"{where} is not an object.")
    group, name, metrics = item.get("task_group"), item.get("task_id"), item.get("metrics")
    if not isinstance(group, str) or not group or isinstance(name, bool) or not isinstance(name, int | str):
        raise UserError(f"{where} needs a 'task_group' (text) and a 'task_id' (number).")
    successes = metrics.get("successes") if isinstance(metrics, dict) else None
    if not isinstance(metrics, dict) or not isinstance(successes, list):
        raise UserError(f"{where} has no list 'metrics.successes'.")
    for i, value in enumerate(successes):
        if value not in (0, 1):  # true and false are these too
            raise UserError(f"{where}: successes[{i}] is {value!r}, not true or false.")
    return group, str(name), metrics


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


def import_eval_info(path: Path, out: Path, policy: str) -> int:
    """Write a run directory from an `eval_info.json`; returns its number of episodes."""
    records = read_eval_info(path, policy)
    requested: dict[str, dict[str, int]] = {}
    for r in records:
        tasks = requested.setdefault(r.key.cell, {})
        tasks[r.key.task] = tasks.get(r.key.task, 0) + 1
    suites = sorted({r.key.suite for r in records})
    protocol = {"suite": ", ".join(suites), IMPORTED: "lerobot eval_info.json"}
    if (out / "protocol.json").exists():
        raise UserError(f"{out} already holds a run. Give --out a new directory.")
    store = RunStore.create(
        out, protocol, {"policy": {"name": policy}, "requested": requested, "source": str(path)}
    )
    for record in records:
        store.append(record)
    return len(records)


def eval_info(records: Sequence[EpisodeRecord], wall_seconds: float | None = None) -> dict[str, Any]:
    """The records as `eval_info.json`. Errors are left out, there is no place for them; so are probes, which are not
    the task. LIBERO's reward is its success, so rewards are 0 or 1. Task ids count the task names in order."""
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
