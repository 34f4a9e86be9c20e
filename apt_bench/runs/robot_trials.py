"""Real-robot trials: writes a randomised, blinded sheet to fill in by hand, and imports it as run directories.

    plan.csv   conditions to test: cell, task, instruction, trials        (a person writes it)
    sheet.csv  one row per trial, in the order to run them, with a code   (a person fills it in)
    key.csv    the policy of each code                                    (only for the person who starts the policy)

Each initial condition is one block: every policy runs it, in random order, before the next condition is set up. So the
policies' trials are matched, and drift over the day (light, wear, the operator) affects all policies alike.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.files import exclusive, read_bytes, reason, try_remove
from apt_bench.core.jsonable import INTEGERS
from apt_bench.core.text import file_name
from apt_bench.runs.records import OUTCOMES, EpisodeRecord, OutcomeName, RunStore
from apt_bench.runs.trial_sheets import read_rows, refuse
from apt_bench.runs.trial_sheets import write_csv as write_csv
from apt_bench.suites import EpisodeKey

PLAN = ("cell", "task", "instruction", "trials")
FIXED = ("trial", "code", "suite", "cell", "task", "instruction", "init", "seed")
FILLED = ("outcome", "failure", "seconds", "operator", "notes", "video")
KEY = ("code", "policy")
SCORE = re.compile(r"score_\w+")
WORDS = {
    **dict.fromkeys(("1", "yes", "y", "true"), "success"),
    **dict.fromkeys(("0", "no", "n", "false"), "failure"),
}
MOST = 100_000
"""Most trials of each policy on a sheet."""

SPREADSHEET_DIGITS = 15
"""A spreadsheet rounds whole numbers with more digits."""

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # without vowels, so that no code is a word


@dataclass(frozen=True)
class Condition:
    """One row of the plan."""

    cell: str
    task: str
    instruction: str
    trials: int


def read_plan(path: Path) -> list[Condition]:
    """Read the conditions of a plan. Raises UserError that names every row that is wrong."""
    rows = read_rows(path, PLAN)
    problems, found = [], []
    for number, row in rows:
        count = row["trials"]
        if not row["cell"] or not row["task"]:
            problems.append(f"row {number}: 'cell' and 'task' must not be empty")
        elif not count.isascii() or not count.isdigit() or not 0 < int(count) <= 10_000:
            problems.append(f"row {number}: 'trials' must be a whole number from 1 to 10000, not '{count}'")
        else:
            found.append(Condition(row["cell"], row["task"], row["instruction"] or row["task"], int(count)))
    names = [(c.cell, c.task) for c in found]
    problems += [
        f"task '{t}' of cell '{c}' occurs twice" for c, t in sorted(set(names)) if names.count((c, t)) > 1
    ]
    refuse(path, problems)
    if sum(c.trials for c in found) > MOST:
        raise UserError(f"{path} asks for more than {MOST:,} trials of each policy.")
    if not found:
        raise UserError(f"{path} has no condition. Write at least one row: {', '.join(PLAN)}.")
    return found


def new_sheet(
    plan: Sequence[Condition], policies: Sequence[str], suite: str, seed: int, scores: Sequence[str] = ()
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Make a trial sheet.

    Args:
        plan: The conditions.
        policies: Names of the policies.
        suite: The suite's name in the records.
        seed: Seed of the random order; the same seed gives the same sheet.
        scores: Names of stages to score, such as t1.

    Returns:
        The rows of the sheet in the order to run them, and the rows of its key.

    Raises:
        UserError: A name or the seed is wrong.
    """
    if not policies or len(set(policies)) < len(policies):
        raise UserError("Name each policy once, and at least one.")
    _folders(policies)
    if not suite.strip():
        raise UserError("Name the suite of the records.")
    if not 0 <= seed < INTEGERS:
        raise UserError(f"The seed is {seed}; it must be a whole number from 0, below 2 to the power of 63.")
    for score in scores:
        if not re.fullmatch("[a-z0-9_]+", score):
            raise UserError(f"'{score}' is not a name of a score: use lower-case letters, digits and _ only.")
    rng = random.Random(seed)
    blocks = [(condition, init) for condition in plan for init in range(condition.trials)]
    rng.shuffle(blocks)
    codes = _codes(len(blocks) * len(policies), rng)
    sheet: list[dict[str, str]] = []
    key: list[dict[str, str]] = []
    for condition, init in blocks:
        for policy in rng.sample(list(policies), len(policies)):
            code = next(codes)
            fixed = (
                len(sheet) + 1,
                code,
                suite,
                condition.cell,
                condition.task,
                condition.instruction,
                init,
                seed,
            )
            blank = dict.fromkeys([*FILLED[:1], *(f"score_{s}" for s in scores), *FILLED[1:]], "")
            sheet.append({**dict(zip(FIXED, map(str, fixed), strict=True)), **blank})
            key.append({"code": code, "policy": policy})
    key.sort(key=lambda row: row["code"])  # so that the key does not show the order of the trials
    return sheet, key


def _folders(policies: Sequence[str]) -> dict[str, str]:
    """Policy -> name of its run's folder. Raises UserError where two policies have the same one."""
    found: dict[str, str] = {}
    for policy in policies:
        name = file_name(policy)
        for other, taken in found.items():
            if taken.casefold() == name.casefold():
                raise UserError(
                    f"Policies '{other}' and '{policy}' share the folder name '{name}'. Rename one."
                )
        found[policy] = name
    return found


def _codes(count: int, rng: random.Random) -> Any:
    """Distinct codes of four letters or more, in random order."""
    length = 4
    while len(_LETTERS) ** length < 20 * count:
        length += 1
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(_LETTERS, k=length))] = None
    return iter(found)


def write_sheets(out: Path, sheet: Sequence[Mapping[str, str]], key: Sequence[Mapping[str, str]]) -> Path:
    """Write the sheet and its key, which is called NAME.key.csv: both or neither.

    Args:
        out: Path of the sheet.
        sheet: Rows of the sheet.
        key: Rows of the key.

    Returns:
        The path of the key.

    Raises:
        UserError: One of the files exists, or cannot be written.
    """
    hidden = key_path(out)
    for path in (out, hidden):
        if os.path.lexists(path):
            raise UserError(f"{path} already exists and may be filled in. Give another name.")
    write_csv(hidden, key)
    try:
        write_csv(out, sheet)
    except UserError:
        try_remove(hidden)
        raise
    return hidden


def key_path(sheet: Path) -> Path:
    """Path of a sheet's key: NAME.key.csv."""
    try:
        return sheet.with_suffix(".key.csv")
    except ValueError:
        raise UserError(f"'{sheet}' is not the name of a file. Give a file name, e.g. sheet.csv.") from None


@dataclass(frozen=True)
class Filled:
    """A sheet that was read. `requested`: policy -> cell -> task -> trials. `open`: trials without an outcome yet."""

    records: tuple[EpisodeRecord, ...]
    requested: Mapping[str, Mapping[str, Mapping[str, int]]]
    suite: str
    seed: int
    open: int


def read_sheet(sheet: Path, key: Path) -> Filled:
    """Read a sheet that was filled in.

    `outcome` is success, failure, timeout, error (the trial does not count, for example because of a hardware fault),
    or 1 / 0 / yes / no; an empty one means that the trial has not run yet. `score_*` is 0 or 1 for a stage of the task.

    Args:
        sheet: The sheet.
        key: Its key.

    Raises:
        UserError: It names every row that is wrong.
    """
    policies: dict[str, str] = {}
    problems = []
    for number, row in read_rows(key, KEY):
        if row["code"] in policies:
            problems.append(f"row {number}: code '{row['code']}' occurs twice")
        if not row["policy"]:
            problems.append(f"row {number}: 'policy' must not be empty")
        policies[row["code"]] = row["policy"]
    refuse(key, problems)
    rows = read_rows(sheet, (*FIXED, "outcome"))
    suites, seeds = {row["suite"] for _, row in rows}, {row["seed"] for _, row in rows}
    if len(suites) != 1 or len(seeds) != 1:
        problems.append(
            f"all rows must be of one suite and one seed, not {sorted(suites)} and {sorted(seeds)}"
        )
    if any(re.fullmatch(r"\d[.,]\d*[eE]\+?\d+", seed) for seed in seeds):
        problems.append("a spreadsheet has rounded the seed: restore the seed that `trials new` was given")
    records: dict[tuple[str, EpisodeKey], EpisodeRecord] = {}
    requested: dict[str, dict[str, dict[str, int]]] = {}
    codes: set[str] = set()
    blank = 0
    for number, row in rows:
        wrong = _problems(row, policies, codes)
        codes.add(row["code"])
        if wrong:
            problems += [f"row {number}: {w}" for w in wrong]
            continue
        policy = policies[row["code"]]
        tasks = requested.setdefault(policy, {}).setdefault(row["cell"], {})
        tasks[row["task"]] = tasks.get(row["task"], 0) + 1
        record = _record(row, policy)
        if (policy, record.key) in records:
            problems.append(f"row {number}: an earlier row has the same trial {record.key.id} of this policy")
        if row["outcome"]:
            records[policy, record.key] = record
        else:
            blank += 1
    missing = sorted(set(policies) - codes)
    if missing:
        problems.append(f"{len(missing)} codes of {key.name} have no row: {', '.join(missing[:5])}")
    refuse(sheet, problems)
    if not rows:
        raise UserError(f"{sheet} has no rows.")
    return Filled(tuple(records.values()), requested, suites.pop(), int(seeds.pop()), blank)


def _problems(row: Mapping[str, str], policies: Mapping[str, str], codes: set[str]) -> list[str]:
    found = []
    if row["code"] not in policies:
        found.append(
            f"code '{row['code']}' is not in the key. {did_you_mean(row['code'], policies)}".rstrip(".")
        )
    elif row["code"] in codes:
        found.append(f"code '{row['code']}' occurs twice")
    outcome = _outcome(row)
    if outcome and outcome not in OUTCOMES:
        found.append(f"outcome '{row['outcome']}' is not one of {', '.join(OUTCOMES)}")
    found += [
        f"'{name}' must be a whole number, not '{row[name]}'"
        for name in ("init", "seed")
        if not _whole(row[name])
    ]
    found += [f"'{name}' must not be empty" for name in ("suite", "cell", "task") if not row[name]]
    for name, value in row.items():
        if SCORE.fullmatch(name) and _flag(value) not in ("", "0", "1"):
            found.append(f"'{name}' must be 0, 1 or empty, not '{value}'")
    if row.get("seconds") and not re.fullmatch(r"\d{1,6}([.,]\d+)?", row["seconds"]):
        found.append(f"'seconds' must be a number, not '{row['seconds']}'")
    return found


def _whole(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,19}", text)) and int(text) < INTEGERS


def _flag(text: str) -> str:
    """`1` for `1,0` and `1.00`, as a spreadsheet may write it."""
    return re.sub(r"^([01])[.,]0*$", r"\1", text)


def _outcome(row: Mapping[str, str]) -> str:
    word = _flag(row["outcome"].lower())
    return WORDS.get(word, word)


def _record(row: Mapping[str, str], policy: str) -> EpisodeRecord:
    outcome = _outcome(row) or "error"
    scores = {n.removeprefix("score_"): int(_flag(v)) for n, v in row.items() if SCORE.fullmatch(n) and v}
    kept = {
        "trial": row["trial"],
        "code": row["code"],
        "operator": row.get("operator"),
        "notes": row.get("notes"),
    }
    events: dict[str, Any] = {k: v for k, v in kept.items() if v}
    if scores:
        events["scores"] = scores
    seconds = row.get("seconds", "").replace(",", ".")
    return EpisodeRecord(
        key=EpisodeKey(row["suite"], row["cell"], row["task"], int(row["init"]), int(row["seed"])),
        policy=policy,
        prompt=row["instruction"],
        prompt_source="text",
        prompts={"text": row["instruction"]},
        outcome=cast(OutcomeName, outcome),
        steps=0,
        decisions=0,
        seconds={"trial": float(seconds)} if seconds else {},
        start_hash="",
        end_hash="",
        failure=(row.get("failure") or None) if outcome in ("failure", "timeout") else None,
        events=events,
        error=row.get("notes") or "the trial did not count" if outcome == "error" else None,
        video=row.get("video") or None,
    )


def import_sheet(sheet: Path, key: Path, out: Path) -> list[Path]:
    """Import a sheet as one run directory per policy.

    If the sheet was imported before, only its new trials are added.

    Args:
        sheet: The sheet.
        key: Its key.
        out: Folder of the run directories.

    Returns:
        The run directories.

    Raises:
        UserError: A row is wrong, or a trial was changed since an earlier import. Nothing is written.
    """
    filled = read_sheet(sheet, key)
    with exclusive(out, "apt-bench trials import"):  # lock before the earlier records are read
        return _import(filled, hashlib.sha256(read_bytes(sheet)).hexdigest(), out)


def _import(filled: Filled, digest: str, out: Path) -> list[Path]:
    protocol = {"suite": filled.suite, "kind": "real robot", "seed": filled.seed}
    todo = []
    for policy, name in _folders(sorted(filled.requested)).items():
        path = out / name
        info = {"policy": {"name": policy}, "requested": filled.requested[policy], "sheet_sha256": digest}
        earlier = (
            {r.key: r for r in RunStore.open(path).episodes()} if (path / "protocol.json").is_file() else {}
        )
        fresh = []
        for record in filled.records:
            old = earlier.get(record.key)
            if record.policy != policy or old == record:
                continue
            if old is not None:
                raise UserError(
                    f"Trial {record.events.get('trial')} (code {record.events['code']}) was imported before with "
                    "another outcome or note. Import into a new --out."
                )
            fresh.append(record)
        todo.append((path, info, fresh))
    for path, info, fresh in todo:  # after everything was checked
        try:
            store = RunStore.create(path, protocol, info)
            for record in fresh:
                store.append(record)
        except OSError as error:
            raise UserError(
                f"Cannot write {path}: {reason(error)}. Rerun the same command to resume."
            ) from None
    return [path for path, _, _ in todo]
