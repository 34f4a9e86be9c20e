"""The faults that `benchmarks/faults.py` injects: signals to processes, a disk that fails, a folder that vanishes."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Target:
    """A running command and its output folder."""

    process: subprocess.Popen[str]
    out: Path
    disk: Disk | None = None

    def family(self) -> list[psutil.Process]:
        """All processes that the command started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def named(self, word: str) -> list[psutil.Process]:
        """Those of its processes that have the word in their command line."""
        found = []
        for process in self.family():
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


Fault = Callable[[Target, random.Random], bool]
"""Injects the fault; returns whether that was possible."""


def kill_one(word: str, number: int = signal.SIGKILL) -> Fault:
    """The fault that sends a signal to one process of this name."""

    def fault(target: Target, rng: random.Random) -> bool:
        found = target.named(word)
        if not found:
            return False
        try:
            rng.choice(found).send_signal(number)
        except psutil.Error:
            return False
        return True

    return fault


def signal_driver(number: int, group: bool = False) -> Fault:
    """The fault that sends a signal to the driver, or to its whole process group, as a terminal does."""

    def fault(target: Target, rng: random.Random) -> bool:
        if target.process.poll() is not None:
            return False
        (os.killpg if group else os.kill)(target.process.pid, number)
        return True

    return fault


def full_disk(target: Target, rng: random.Random) -> bool:
    """Let no further byte be written."""
    if target.disk:
        return target.disk.fill()
    try:
        size = max((p.stat().st_size for p in target.out.rglob("*") if p.is_file()), default=0)
        resource.prlimit(target.process.pid, resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return False
    return True


def read_only(target: Target, rng: random.Random) -> bool:
    """Make the disk read-only."""
    return target.disk is not None and target.disk.mount("remount,ro")


def vanish(target: Target, rng: random.Random) -> bool:
    """Move the directory that the command has locked away; `heal` moves it back. (If it were moved before the command
    begins, the command would start a new directory.)"""
    fds = Path(f"/proc/{target.process.pid}/fd")
    try:
        if str(target.out) not in [os.readlink(fd) for fd in fds.iterdir()]:
            return False
        target.out.rename(away(target.out))
    except OSError:
        return False
    return True


def away(out: Path) -> Path:
    """The path to which `vanish` moves a run directory."""
    return out.with_name(out.name + "-away")


RUN_FAULTS: dict[str, Fault] = {
    "worker": kill_one("ray::RolloutActor"),
    "worker hangs": kill_one(
        "ray::RolloutActor.run", signal.SIGSTOP
    ),  # a worker that still starts may take minutes
    "policy": kill_one("ray::PolicyHost"),
    "driver": signal_driver(signal.SIGKILL),
    "interrupt": signal_driver(signal.SIGINT, group=True),
    "terminate": signal_driver(signal.SIGTERM),
    "gcs": kill_one("gcs_server"),
    "raylet": kill_one("raylet/raylet"),
    "full disk": full_disk,
    "read-only disk": read_only,
    "vanished folder": vanish,
}
TRAINING_FAULTS: dict[str, Fault] = {
    "training killed": signal_driver(signal.SIGKILL),
    "training interrupted": signal_driver(signal.SIGINT, group=True),
    "training: full disk": full_disk,
    "training: vanished folder": vanish,
}
PLACES = (
    "full disk",
    "read-only disk",
    "vanished folder",
    "training: full disk",
    "training: vanished folder",
)
"""Faults after which a command that is just starting may report its directory as bad input."""

MILD = ("worker", "worker hangs", "policy")
"""Faults that do not end the command."""


def allowed(fault: str) -> tuple[int, ...]:
    """Exit codes that a command may have after this fault."""
    return (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM, *((2,) if fault in PLACES else ()))


class Disk:
    """A tmpfs for one run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0

    def mount(self, options: str) -> bool:
        """Change the mount's options; return whether that worked."""
        return subprocess.run(["mount", "-o", options, str(self.folder)], capture_output=True).returncode == 0

    def fill(self) -> bool:
        """Fill the disk."""
        try:
            with open(self.folder / "ballast", "wb") as file:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
        except OSError:
            return True

    def heal(self) -> None:
        """Make the disk writable and free its space again."""
        self.mount("remount,rw")
        (self.folder / "ballast").unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount."""
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)
