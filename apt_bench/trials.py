"""Real-robot trials: a randomised, blinded sheet to fill in by hand, and its way into the records of every other run.

    plan.csv   what is to be tried: cell, task, instruction, trials       (written by a person)
    sheet.csv  one line per trial in the order to run them, under a code  (filled in by a person)
    key.csv    which policy hides behind each code                        (opened only by whoever starts the policy)

Each initial condition is one block: every policy tries it, in random order, before the next one is set up. So
conditions pair, and what drifts over the day (light, wear, the operator) meets all policies alike.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.records import OUTCOMES, EpisodeRecord, OutcomeName, RunStore
from apt_bench.suites import EpisodeKey

PLAN = ("cell", "task", "instruction", "trials")
FIXED = ("trial", "code", "suite", "cell", "task", "instruction", "init", "seed")
FILLED = ("outcome", "failure", "seconds", "operator", "notes", "video")
KEY = ("code", "policy")
SCORE = re.compile(r"score_\w+")
WORDS = {"1": "success", "yes": "success", "y": "success", "0": "failure", "no": "failure", "n": "failure"}
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words by chance


@dataclass(frozen=True)
class Condition:
    """One line of the plan."""

    cell: str
    task: str
    instruction: str
    trials: int


def read_plan(path: Path) -> list[Condition]:
    """The conditions of a plan. Raises UserError with every line that cannot be read."""
    rows = _read(path, PLAN)
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
        f"task '{t}' of cell '{c}' stands there twice"
        for c, t in sorted(set(names))
        if names.count((c, t)) > 1
    ]
    _refuse(path, problems)
    if not found:
        raise UserError(f"{path} holds no condition. Write at least one line: {', '.join(PLAN)}.")
    return found


def new_sheet(
    plan: Sequence[Condition], policies: Sequence[str], suite: str, seed: int, scores: Sequence[str] = ()
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The lines of the sheet, in the order to run them, and of its key. The same seed gives the same order."""
    if not policies or len(set(policies)) < len(policies):
        raise UserError("Name each policy once, and at least one.")
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
    key.sort(
        key=lambda row: row["code"]
    )  # in the order of the codes, which says nothing about the order of the trials
    return sheet, key


def _codes(count: int, rng: random.Random) -> Any:
    """Distinct codes of four letters or more, in random order."""
    length = 4
    while len(_LETTERS) ** length < 20 * count:
        length += 1
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(_LETTERS, k=length))] = None
    return iter(found)


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write lines, all with the first one's columns. Never over an existing file: it may be filled in."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except FileExistsError:
        raise UserError(f"{path} is already there, perhaps filled in. Give another name.") from None
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None


@dataclass(frozen=True)
class Filled:
    """A sheet that was read back."""

    records: tuple[EpisodeRecord, ...]
    requested: Mapping[str, Mapping[str, Mapping[str, int]]]  # policy -> cell -> task -> trials on the sheet
    suite: str
    seed: int
    open: int  # trials without an outcome yet


def read_sheet(sheet: Path, key: Path) -> Filled:
    """Read a filled sheet. Raises UserError with every row that is wrong; nothing is taken from a sheet with errors.

    outcome: success, failure, timeout, error (the trial does not count, e.g. a hardware fault), or 1 / 0 / yes / no;
    empty = not tried yet. score_*: 0 or 1 (stages of the task).
    """
    policies: dict[str, str] = {}
    problems = []
    for number, row in _read(key, KEY):
        if row["code"] in policies:
            problems.append(f"row {number}: code '{row['code']}' stands there twice")
        policies[row["code"]] = row["policy"]
    _refuse(key, problems)
    rows = _read(sheet, (*FIXED, "outcome"))
    suites, seeds = {row["suite"] for _, row in rows}, {row["seed"] for _, row in rows}
    if len(suites) != 1 or len(seeds) != 1:
        problems.append(
            f"all rows must be of one suite and one seed, not {sorted(suites)} and {sorted(seeds)}"
        )
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
            problems.append(f"row {number}: this policy has tried {record.key.id} in an earlier row")
        if row["outcome"]:
            records[policy, record.key] = record
        else:
            blank += 1
    missing = sorted(set(policies) - codes)
    if missing:
        problems.append(f"{len(missing)} codes of {key.name} have no row: {', '.join(missing[:5])}")
    _refuse(sheet, problems)
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
        found.append(f"code '{row['code']}' stands there twice")
    outcome = WORDS.get(row["outcome"].lower(), row["outcome"].lower())
    if outcome and outcome not in OUTCOMES:
        found.append(f"outcome '{row['outcome']}' is not one of {', '.join(OUTCOMES)}")
    found += [
        f"'{name}' must be a whole number, not '{row[name]}'"
        for name in ("init", "seed")
        if not _whole(row[name])
    ]
    found += [f"'{name}' must not be empty" for name in ("suite", "cell", "task") if not row[name]]
    for name, value in row.items():
        if SCORE.fullmatch(name) and value not in ("", "0", "1"):
            found.append(f"'{name}' must be 0, 1 or empty, not '{value}'")
    if row.get("seconds") and not re.fullmatch(r"\d{1,6}([.,]\d+)?", row["seconds"]):
        found.append(f"'seconds' must be a number, not '{row['seconds']}'")
    return found


def _whole(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,15}", text))


def _record(row: Mapping[str, str], policy: str) -> EpisodeRecord:
    outcome = WORDS.get(row["outcome"].lower(), row["outcome"].lower()) or "error"
    scores = {n.removeprefix("score_"): int(v) for n, v in row.items() if SCORE.fullmatch(n) and v}
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
    """Write one run directory per policy under `out`. A sheet that was imported before and filled in further adds what
    is new; a trial that was changed since is refused."""
    filled = read_sheet(sheet, key)
    protocol = {"suite": filled.suite, "kind": "real robot", "seed": filled.seed}
    digest = hashlib.sha256(sheet.read_bytes()).hexdigest()
    paths, todo = [], []
    for policy in sorted(filled.requested):
        path = out / re.sub(r"[^A-Za-z0-9_.-]+", "_", policy)
        if path in paths:
            raise UserError(
                f"Policies '{policy}' and another one share the folder name '{path.name}'. Rename one."
            )
        paths.append(path)
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
                    f"Trial {record.events['trial']} (code {record.events['code']}) was imported before with another "
                    f"outcome or note. Import into a new --out."
                )
            fresh.append(record)
        todo.append((path, info, fresh))
    for path, info, fresh in todo:  # only once all of it is known to be right
        store = RunStore.create(path, protocol, info)
        for record in fresh:
            store.append(record)
    return paths


def _read(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Row numbers as a spreadsheet shows them, and stripped cells by column."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        dialect = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=dialect, strict=True))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}.") from None
    head = [h.strip().lower() for h in rows[0]] if rows else []
    absent = [name for name in needed if name not in head]
    if absent:
        raise UserError(f"{path} has no column '{absent[0]}'. Its first line must name: {', '.join(needed)}.")
    problems, found = [], []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(head) and any(cell.strip() for cell in row[len(head) :]):
            problems.append(f"row {number}: {len(row)} cells under {len(head)} headings")
        cells = [*(cell.strip() for cell in row), *[""] * len(head)]
        found.append((number, dict(zip(head, cells, strict=False))))
    _refuse(path, problems)
    return found


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError(f"{path}:\n  " + "\n  ".join(problems[:20]) + more)
