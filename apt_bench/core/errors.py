"""Errors that the user can fix, and errors that the harness treats in a special way."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The message names what is wrong, where, and how to fix it. Exit code 2."""

    exit_code = 2


class PolicyFault(UserError):
    """A policy raised an exception or returned something other than a finite (n, 7) action chunk."""


class ServerLost(ConnectionError):
    """A policy raises this when its server cannot be reached or does not answer.

    This is an infrastructure error, not a policy failure. The episode is run again."""


class RayLost(UserError):
    """Ray cannot be started, or it died during the run. Recorded episodes are kept.

    Exit code 1, since the user's input is not the cause."""

    exit_code = 1


INTERNAL_ERROR = 70
"""Exit code of an unexpected error (`EX_SOFTWARE`)."""


def describe_error(error: BaseException) -> str:
    """`Type: message`. It never raises, even if the error's own `__str__` does."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return f"{type(error).__name__} (its message cannot be read)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The last sentence of a message about an unknown name: the most similar known name, or all known names."""
    names = sorted(set(known))
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
