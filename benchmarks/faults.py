"""Inject faults into runs and trainings for a given time, resume them, and check that nothing was lost.

    python benchmarks/faults.py --minutes 60 [--seed 0] [--only worker,disk] [--out FOLDER]

Each round starts `apt-bench run` on the toy suite of tests/ (MuJoCo, no renderer) with two Ray workers, or a small
`apt-bench train --two-stage`, injects faults at random moments, and repeats the command until it ends with exit code 0.
Then the records or weights must be those of an undisturbed run: no key is missing, none occurs twice, every hash is
equal. A traceback on the terminal, an unexpected exit code, and a remaining process or file are defects as well.

Needs the `dev` extra. As root (and where `mount` is allowed) the run directory is on a small disk of its own, which
fills up or becomes read-only. Otherwise a limit on the size of files replaces the full disk. The exit code is 0 only
where no defect was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/training")]

from apt_bench.runs.records import EpisodeRecord  # noqa: E402
from benchmarks.injections import (  # noqa: E402
    MILD,
    RUN_FAULTS,
    TRAINING_FAULTS,
    Disk,
    Fault,
    Target,
    allowed,
    away,
)

SUITE = "tests/toy_suite.yaml"
POLICIES = ("tests.toy:PushPolicy", "tests.toy:HostedPushPolicy")
EPISODES = 10
PATIENCE = 300.0
"""Seconds after which a command that does not end is a defect."""

Results = dict[str, tuple[object, ...]]


@dataclass
class Campaign:
    """What was injected and what was found wrong."""

    seed: int
    home: Path
    injections: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    different: int = 0
    defects: list[str] = field(default_factory=list)

    def defect(self, text: str) -> None:
        """Record a defect."""
        self.defects.append(text)
        print(f"DEFECT: {text}", flush=True)

    def card(self) -> dict[str, object]:
        """All counts, as JSON."""
        return {
            "seed": self.seed,
            "injections": dict(sorted(self.injections.items())),
            "injections_total": self.injections.total(),
            "rounds": dict(self.rounds),
            "lost": self.lost,
            "doubled": self.doubled,
            "different": self.different,
            "defects": self.defects,
        }


# --- commands -----------------------------------------------------------------------------------------------


def start(words: list[str], campaign: Campaign) -> subprocess.Popen[str]:
    """Start `apt-bench` with these arguments in a process group of its own. Its output goes to a file."""
    log = open(campaign.home / "output.txt", "w")  # noqa: SIM115  # the child process uses it
    environ = {**os.environ, "TMPDIR": str(campaign.home / "tmp"), "OMP_NUM_THREADS": "1"}
    environ |= {"TOY_FAULTS": str(campaign.home / "toy"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "apt_bench", *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=ROOT,
        env=environ,
    )


def finish(target: Target, campaign: Campaign, allowed: tuple[int, ...]) -> int:
    """Wait for the end. A traceback, or an exit code that is not allowed, is a defect."""
    family = target.family()
    try:
        code = target.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        campaign.defect(f"did not end within {PATIENCE:.0f} s: {tail(campaign)}")
        os.killpg(target.process.pid, signal.SIGKILL)
        code = target.process.wait()
    text = (campaign.home / "output.txt").read_text(errors="replace")
    if code not in allowed or (code != -signal.SIGKILL and "Traceback" in text):
        campaign.defect(f"exit code {code}: {tail(campaign)}")
    leftover = gone(family)
    if leftover:
        campaign.defect(f"left running: {leftover}")
    return code


def gone(family: list[psutil.Process]) -> list[str]:
    """Those of these processes that still run after 30 s."""
    end = time.monotonic() + 30
    while True:
        left = [p for p in family if p.is_running() and status(p) != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > end:
            return [f"{p.pid} {' '.join(command(p))[:80]}" for p in left]
        time.sleep(0.1)


def status(process: psutil.Process) -> str:
    """The status of a process that may have ended."""
    try:
        return process.status()
    except psutil.Error:
        return psutil.STATUS_ZOMBIE


def command(process: psutil.Process) -> list[str]:
    """The command line of a process that may have ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return ["gone"]


def tail(campaign: Campaign) -> str:
    """The end of what the command printed."""
    return (campaign.home / "output.txt").read_text(errors="replace")[-1500:]


def heal(target: Target, campaign: Campaign) -> None:
    """Undo the faults of the disk and of the folder."""
    if target.disk:
        target.disk.heal()
    moved = away(target.out)
    if moved.exists():
        if target.out.exists():
            if any(target.out.rglob("*.jsonl")) or any(target.out.rglob("*.safetensors")):
                campaign.defect(f"{target.out.name} was created again after it had vanished")
            shutil.rmtree(target.out)
        moved.rename(target.out)


# --- rounds -------------------------------------------------------------------------------------------------


def lines(out: Path) -> int:
    """Number of records so far, also in a directory that was moved away."""
    for folder in (out, away(out)):
        if (path := folder / "episodes.jsonl").exists():
            return path.read_bytes().count(b"\n")
    return 0


def results(out: Path, campaign: Campaign) -> Results:
    """The results that must equal those of an undisturbed run. A key with two results is counted as doubled."""
    found: Results = {}
    path = out / "episodes.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        record = EpisodeRecord.from_json(line)
        if record.outcome == "error":
            continue
        campaign.doubled += record.key.id in found
        found[record.key.id] = (
            record.outcome,
            record.steps,
            record.decisions,
            record.start_hash,
            record.end_hash,
        )
    return found


def disturb(
    target: Target,
    faults: dict[str, Fault],
    progress: Callable[[], int],
    campaign: Campaign,
    rng: random.Random,
) -> str:
    """Inject faults at random moments until the command ends, or until a fault that ends it. Return that fault."""
    begun, seen, pause = time.monotonic(), progress(), rng.randint(1, 3)
    wait = rng.uniform(0, 6) if rng.random() < 0.5 else None  # also while it is starting
    while target.process.poll() is None and time.monotonic() - begun < PATIENCE:
        early = wait is not None and time.monotonic() - begun > wait
        if not early and progress() < seen + pause:
            time.sleep(0.05)
            continue
        mild = [name for name in faults if name in MILD]
        name = rng.choice(mild if mild and rng.random() < 0.75 else list(faults))
        if name == "worker hangs" and rng.random() < 0.7:  # each one takes the whole time-out
            continue
        if faults[name](target, rng):
            campaign.injections[name] += 1
            if name not in MILD:
                return name
        wait, seen, pause = None, progress(), rng.randint(1, 3)
    return ""


def run_round(
    number: int, faults: dict[str, Fault], references: dict[str, Results], campaign: Campaign
) -> None:
    """One run directory, from empty to complete."""
    rng = random.Random(f"{campaign.seed}/{number}")
    policy = POLICIES[number % len(POLICIES)]
    disk = Disk(campaign.home / f"disk{number}") if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    if disk and not disk.mounted:
        disk = None
    out = (disk.folder if disk else campaign.home) / f"run{number}"
    words = ["run", "--suite", SUITE, "--policy", policy, "--episodes", str(EPISODES), "--out", str(out)]
    words += ["--workers", "2", "--attempts", "9", "--hang-timeout", "8"]
    for _ in range(60):
        target = Target(start(words, campaign), out, disk)
        last = disturb(target, faults, lambda: lines(out), campaign, rng)
        code = finish(target, campaign, allowed(last))
        heal(target, campaign)
        if code == 0:
            break
    if code != 0:
        campaign.defect(f"round {number} was never complete")
    found, wanted = results(out, campaign), references[policy]
    campaign.lost += len(wanted.keys() - found.keys())
    campaign.different += sum(found[k] != wanted[k] for k in found.keys() & wanted.keys())
    if found.keys() - wanted.keys():
        campaign.defect(f"round {number} has episodes that were not requested")
    if parts := [str(p) for p in out.rglob("*.part")]:
        campaign.defect(f"round {number} left {parts}")
    if disk:
        disk.remove()
    campaign.rounds["run"] += 1


def weights(out: Path) -> str:
    """SHA-256 of the policy of a finished training."""
    return hashlib.sha256((out / "policy/model.safetensors").read_bytes()).hexdigest()


def training_words(campaign: Campaign, out: Path, cache: Path) -> list[str]:
    """A training of half a minute."""
    config = campaign.home / "tiny.yaml"
    if not config.exists():
        from conftest import TINY
        from scripted import write

        data = write(campaign.home / "go.hdf5", 12)
        tiny = {**TINY, "data": {**TINY["data"], "data": [str(data)]}}
        tiny |= {"stage1": {"steps": 120}, "stage2": {"steps": 120}, "cache_features": False}
        tiny["train"] = {**TINY["train"], "save_every": 5, "eval_every": 60}
        config.write_text(yaml.safe_dump(tiny))
    return [
        "train",
        "--two-stage",
        "--config",
        str(config),
        "--device",
        "cpu",
        "--out",
        str(out),
        "--cache",
        str(cache),
    ]


def training_round(number: int, faults: dict[str, Fault], wanted: str, campaign: Campaign) -> None:
    """One training, from nothing to a policy."""
    rng = random.Random(f"{campaign.seed}/training/{number}")
    out = campaign.home / f"training{number}"
    words = training_words(campaign, out, campaign.home / f"cache{number}")

    def steps() -> int:
        found = [0]
        for folder in (out, away(out)):
            found += [int(p.name[5:]) for p in folder.rglob("step_*") if p.name[5:].isdigit()]
        return sum(found) // 5

    for _ in range(60):
        target = Target(start(words, campaign), out)
        last = disturb(target, faults, steps, campaign, rng)
        code = finish(target, campaign, allowed(last))
        heal(target, campaign)
        if code == 0:
            break
    if code != 0:
        campaign.defect(f"training {number} was never complete")
    if (out / "policy").exists():
        campaign.different += weights(out) != wanted
    else:
        campaign.lost += 1
    campaign.rounds["training"] += 1
    shutil.rmtree(out, ignore_errors=True)


def main() -> int:
    """Run the campaign and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="comma list of faults; default: all")
    parser.add_argument("--out", type=Path, help="write the counts to this JSON file")
    args = parser.parse_args()
    known = RUN_FAULTS | TRAINING_FAULTS
    only = [word.strip() for word in args.only.split(",") if word.strip()] or list(known)
    if unknown := [name for name in only if name not in known]:
        parser.error(f"no fault '{unknown[0]}'; known: {', '.join(known)}")
    run_faults = {k: v for k, v in RUN_FAULTS.items() if k in only}
    training_faults = {k: v for k, v in TRAINING_FAULTS.items() if k in only}
    home = Path(tempfile.mkdtemp(prefix="faults-"))
    for folder in ("tmp", "toy"):
        (home / folder).mkdir()
    campaign = Campaign(args.seed, home)
    references, wanted = {}, ""
    if run_faults:
        for i, policy in enumerate(POLICIES):
            out = home / f"reference{i}"
            words = [
                "run",
                "--suite",
                SUITE,
                "--policy",
                policy,
                "--episodes",
                str(EPISODES),
                "--workers",
                "0",
            ]
            finish(Target(start([*words, "--out", str(out)], campaign), out), campaign, (0,))
            references[policy] = results(out, campaign)
    if training_faults:
        out = home / "reference-training"
        finish(Target(start(training_words(campaign, out, home / "cache"), campaign), out), campaign, (0,))
        wanted = weights(out)
    (home / "toy/slow-").touch()  # episodes that last long enough to be hit
    end, number = time.monotonic() + 60 * args.minutes, 0
    while time.monotonic() < end and len(campaign.defects) < 20:
        if training_faults and (number % 4 == 3 or not run_faults):
            training_round(number, training_faults, wanted, campaign)
        else:
            run_round(number, run_faults, references, campaign)
        number += 1
        print(
            f"{campaign.injections.total()} injections, {sum(campaign.rounds.values())} rounds: {campaign.lost} lost, "
            f"{campaign.doubled} doubled, {campaign.different} different, {len(campaign.defects)} other defects",
            flush=True,
        )
        if args.out:
            args.out.write_text(json.dumps(campaign.card(), indent=2) + "\n")
    for name, count in sorted(campaign.injections.items()):
        print(f"{name:28}{count:6}")
    if leftover := [p.name for p in (home / "tmp").iterdir()]:
        print(f"Left in the temporary folder (the next command removes it): {', '.join(leftover[:8])}")
    wrong = campaign.lost + campaign.doubled + campaign.different + len(campaign.defects)
    if not wrong:
        shutil.rmtree(home, ignore_errors=True)
    else:
        print(f"What the commands wrote is in {home}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
