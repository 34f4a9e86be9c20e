"""Bounds of processor time. They are stated for one machine, and a slower one is allowed more in proportion."""

import json
import statistics
import time

FIXED_WORK = 0.040  # s of processor time that `_work` takes on the machine for which the bounds are stated
SLOWEST = 3.0  # times FIXED_WORK; a still slower machine is not allowed more


def in_time(seconds: float, bound: float) -> bool:
    """Whether `seconds` of processor time are below the bound, or below it for this machine as it is now."""
    if seconds < bound:
        return True
    slowness = statistics.median(_work() for _ in range(7)) / FIXED_WORK
    return seconds < bound * min(max(1.0, slowness), SLOWEST)


def _work() -> float:
    begin = time.process_time()
    squares = {str(i): i * i % 97 for i in range(60_000)}
    total = 0
    for name in squares:
        total += squares[name]
    assert json.loads(json.dumps(squares)) == squares
    return time.process_time() - begin
