"""The errors that a person can mend, and those that the harness gives its own meaning."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The message says what was wrong, where, and how to mend it. Exit code 2."""

    exit_code = 2


class PolicyFault(UserError):
    """A policy raised, or returned something that is not a finite (n, 7) chunk."""


class ServerLost(ConnectionError):
    """A policy raises this when its server cannot be reached or does not answer: missing data, not a failure of the
    policy. The episode is run again."""


class RayLost(UserError):
    """Ray cannot be started, or died under the run. What is recorded is safe. Exit code 1: not the user's input."""

    exit_code = 1


INTERNAL_ERROR = 70
"""Exit code of an error that apt-bench did not expect (`EX_SOFTWARE`)."""


def describe_error(error: BaseException) -> str:
    """`Type: message`, also of an error whose message cannot be made: somebody else wrote its class."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return f"{type(error).__name__} (its message cannot be read)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing sentence for an unknown name: the nearest known name, or the list of all of them."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
