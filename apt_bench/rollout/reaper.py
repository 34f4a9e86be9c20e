"""Clears up after a local Ray, even where the driver was killed and could not. Run as a script of its own:

python reaper.py FOLDER: waits until stdin closes, kills every process that still has a file of FOLDER open (Ray's
logs and sockets) except the one that started this, and removes FOLDER. Without it, two of Ray's helpers linger for a
minute and the folder for good.
"""

import os
import shutil
import signal
import sys
import time


def holders(folder: str) -> list[int]:
    """Processes with an open file below the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            files = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
        except OSError:  # gone, or somebody else's
            continue
        if any(f.startswith(folder + os.sep) for f in files):
            found.append(int(pid))
    return found


if __name__ == "__main__":
    driver = os.getppid()  # it may be alive, with a log open, and has better ways to end
    sys.stdin.read()
    for _ in range(20):  # what is being killed may still start something
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
