"""Commands run in a pseudo-terminal, as a person runs them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys, time
from apt_bench.cli import main
from apt_bench.core import status
status.LIVE_AFTER = status.PLAIN_AFTER = 0.0
update = status._Step.update
def update_and_draw(step, text):
    with status._lock:
        update(step, text)
        step._draw(time.monotonic())
status._Step.update = update_and_draw
for words in json.loads(sys.argv[1]):
    print(f"$ {' '.join(words)}", flush=True)
    sys.argv = ["apt-bench", *words]
    try:
        main()
    except SystemExit as ended:
        print(f"exit code {ended.code}", flush=True)
"""
"""Runs several commands in one process, because every start imports for seconds. Every step is named at once: the
thread that draws steps would miss those that are shorter than its tick."""


def in_terminal(
    commands: Sequence[Sequence[object]],
    columns: int = 80,
    environment: Mapping[str, str] = {},
    heard: Callable[[int, bytes], None] = lambda process, block: None,
) -> str:
    """What a terminal of this width gets from the commands, `\\r` and escapes included.

    `heard` is called with the process id and each piece of the output."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, words],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=inherited | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(theirs)
    text = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the process has ended
            break
        heard(process.pid, block)
        text += block
    os.close(ours)
    process.wait()
    return text.decode().replace("\r\n", "\n")
