"""Limits of CPU time and memory for one input, and the totals of all inputs."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from apt_bench.core.errors import UserError
from tests.clock import in_time

SECONDS, GIGABYTES = 5.0, 1.0
"""CPU time and additional memory that reading one input may take, at most."""


@dataclass
class Tally:
    """All inputs of a test session."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    largest: float = 0.0

    def __str__(self) -> str:
        return (
            f"fuzz: {self.inputs} inputs, {self.refused} refused with a message; "
            f"one took at most {self.slowest:.2f} s of CPU and {self.largest:.2f} GB more memory"
        )


TALLY = Tally()


def _memory() -> float:
    """Peak memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def only_user_errors() -> Iterator[None]:
    """Check that the block raises only UserError, with a message, and stays within the limits."""
    begun, held = time.process_time(), _memory()
    try:
        yield
    except UserError as error:
        TALLY.refused += 1
        if not str(error).strip():
            raise AssertionError("an error without a message") from error
    finally:
        TALLY.inputs += 1
        seconds, grown = time.process_time() - begun, _memory() - held
        TALLY.slowest, TALLY.largest = max(TALLY.slowest, seconds), max(TALLY.largest, grown)
    assert in_time(seconds, SECONDS), f"{seconds:.1f} s of CPU"
    assert grown < GIGABYTES, f"{grown:.2f} GB"
