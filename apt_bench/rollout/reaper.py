"""Ends the processes of a local Ray and removes its files, even where the driver was killed. Run as a script:

`python reaper.py FOLDER` waits until stdin closes, kills every process that still has a file of FOLDER open (Ray's logs
and sockets) except the one that started this, and removes FOLDER. Without it, two of Ray's helpers would run for
another minute, and the folder would stay.
"""

import os
import shutil
import signal
import sys
import time


def holders(folder: str) -> list[int]:
    """Processes with an open file below the folder."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _holds(pid, folder)]


def _holds(pid: str, folder: str) -> bool:
    try:
        handles = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended, or belongs to another user
        return False
    for handle in handles:
        try:
            if os.readlink(f"/proc/{pid}/fd/{handle}").startswith(folder + os.sep):
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def children(name: str) -> set[int]:
    """Running processes of this name that this one started."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                own, _, rest = file.read().partition(" (")
        except OSError:  # it has ended
            continue
        called, _, facts = rest.rpartition(") ")
        state, parent = facts.split()[:2]
        if called == name and int(parent) == os.getpid() and state not in "ZX":
            found.add(int(own))
    return found


if __name__ == "__main__":
    driver = os.getppid()  # it may still run with a log open, and ends by itself
    sys.stdin.read()
    for _ in range(20):  # a process may start another one before it is killed
        pids = [pid for pid in holders(sys.argv[1]) if pid != driver]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not pids:
            break
        time.sleep(0.1)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
