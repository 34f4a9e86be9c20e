"""Guarded calls into a policy: each gives a checked chunk, a fault of the policy, or a lost server.

A policy is foreign code. It may raise `SystemExit`, return a tensor that requires grad, or raise the exception of any
client library when its server is gone. Every call of the harness goes through `GuardedPolicy`.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.jsonable import jsonable
from apt_bench.core.text import one_line
from apt_bench.envs.base import ACTION_DIM, Observation, Outcome
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.servers import server_lost
from apt_bench.suites import EpisodeSpec

ERROR_LENGTH = 2000
"""Characters of an exception's text that a message keeps, at most."""


@dataclass(frozen=True)
class GuardedPolicy:
    """A policy whose calls raise only PolicyFault, ServerLost, UserError, or what a signal handler raised.

    The messages are plain text of bounded length, and the exceptions can be pickled. Chunks are checked, float64.

    Args:
        policy: The policy.
        spec: Its spec, read once: a property may raise, or change.
    """

    policy: Policy
    spec: PolicySpec

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """`Policy.reset`."""
        self._guarded(lambda: self.policy.reset(episodes))

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> dict[str, Any]:
        """Call `finish` and `notes`, where the policy has them.

        Returns:
            The notes for the episode's record. An exception becomes the note `error`: the episode has its outcome.
        """
        try:
            if hasattr(self.policy, "finish"):
                finish = self.policy.finish
                guarded(lambda: finish(episode, outcome))
            if not hasattr(self.policy, "notes"):
                return {}
            notes = self.policy.notes
            return dict(guarded(lambda: jsonable(dict(notes(episode)), bounded=True)))
        except (UserError, ServerLost) as error:
            return {"error": one_line(error, ERROR_LENGTH)}

    def close(self) -> None:
        """Call `close`, where the policy has it; what it raises is ignored."""
        if hasattr(self.policy, "close"):
            with suppress(PolicyFault, UserError, ServerLost):
                guarded(self.policy.close)

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """`Policy.act`. Raises the first PolicyFault among the chunks."""
        chunks = []
        for answer in self.answers(observations):
            if isinstance(answer, PolicyFault):
                raise answer
            chunks.append(answer)
        return chunks

    def answers(self, observations: Sequence[Observation]) -> list[np.ndarray | PolicyFault]:
        """`Policy.act`, with a PolicyFault in the place of each invalid chunk. The other chunks stay valid.

        Args:
            observations: One per episode.

        Returns:
            One chunk (n, 7) float64, or one fault, per observation.

        Raises:
            PolicyFault: The whole call failed: it raised, or returned another number of chunks.
        """
        chunks = self._guarded(lambda: list(self.policy.act(observations)))
        if len(chunks) != len(observations):
            raise PolicyFault(f"returned {len(chunks)} chunks for {len(observations)} observations")
        found: list[np.ndarray | PolicyFault] = []
        for chunk in chunks:
            try:
                found.append(check_chunk(chunk, self.spec.horizon))
            except PolicyFault as fault:
                found.append(fault)
        return found

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return guarded(call)
        except PolicyFault:
            raise
        except UserError as error:
            raise UserError(f"Policy '{self.spec.name}': {error}") from error


def guard(policy: Policy) -> GuardedPolicy:
    """Wrap a policy. Raises PolicyFault where it has no `spec`."""
    if isinstance(policy, GuardedPolicy):
        return policy
    spec = guarded(lambda: policy.spec)
    if not isinstance(spec, PolicySpec):
        raise PolicyFault("has no `spec` of type apt_bench.policies.base.PolicySpec")
    return GuardedPolicy(policy, spec)


def guarded(call: Callable[[], Any]) -> Any:
    """Call a policy's code.

    Args:
        call: The call, without arguments.

    Returns:
        What the call returns.

    Raises:
        PolicyFault: The code raised something else, `SystemExit` and `KeyboardInterrupt` included. The message names
            the exception and its line.
        ServerLost: The exception means that the policy's server is gone (`servers.server_lost`).
        UserError: The code raised one.
        BaseException: What the handler of a signal raised (Ctrl-C, the end of a worker).
    """
    try:
        with _signals_seen():
            return call()
    except BaseException as error:
        let_signals_pass(error)
        text = described(error)
        if isinstance(error, UserError):
            kind = PolicyFault if isinstance(error, PolicyFault) else UserError
            raise kind(text) from error
        if server_lost(error):
            raise ServerLost(text) from error
        raise PolicyFault(f"raised {text}") from error


def described(error: BaseException) -> str:
    """An exception and the line that raised it, in one line of bounded length. Of a UserError and a
    ServerLost it is the message alone."""
    try:
        text = one_line(error, ERROR_LENGTH)
    except BaseException:  # its __str__ raises
        text = "(its message cannot be read)"
    if isinstance(error, UserError | ServerLost):
        return text
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    place = f"{frame.f_code.co_filename}:{line}"
    return one_line(f"{type(error).__name__}: {text} ({place})", ERROR_LENGTH + 500)


def check_chunk(chunk: Any, horizon: int) -> np.ndarray:
    """Check a chunk. Nothing larger than a valid chunk is ever copied.

    Args:
        chunk: What a policy returned: an array, a tensor, or lists of numbers.
        horizon: Actions in a chunk, at most.

    Returns:
        The chunk as finite float64 (n, 7), 1 <= n <= horizon.

    Raises:
        PolicyFault: It is anything else.
    """
    actions: np.ndarray = guarded(lambda: _chunk(chunk, horizon))
    if not np.isfinite(actions).all():
        raise PolicyFault("returned a chunk with NaN or infinite values")
    return actions


def _chunk(value: Any, horizon: int) -> np.ndarray:
    def fits(shape: Sequence[int]) -> None:
        if len(shape) != 2 or shape[1] != ACTION_DIM or not 1 <= shape[0] <= horizon:
            raise PolicyFault(
                f"returned a chunk of shape {tuple(shape)} instead of (n, {ACTION_DIM}) with 1 <= n <= {horizon}"
            )

    if not isinstance(value, list | tuple):
        return _numbers(value, fits)
    if len(value) > horizon:  # before its rows are read: there may be a billion
        fits((len(value),))
    rows = [
        _floats(row)
        if isinstance(row, list | tuple) and len(row) == ACTION_DIM
        else _numbers(row, lambda shape: fits((len(value), *shape)))
        for row in value
    ]
    fits((len(rows), ACTION_DIM) if rows else (0,))
    return np.stack(rows)


def _numbers(value: Any, fits: Callable[[Sequence[int]], None]) -> np.ndarray:
    """An array, a tensor or what converts to one, as float64; `fits` raises where its shape is invalid."""
    given = value
    if hasattr(value, "detach"):  # a torch tensor on any device, of any dtype: numpy has no bfloat16
        value = value.detach()
        fits(value.shape)
        value = (value.double() if value.is_floating_point() else value).numpy(force=True)
    if np.ma.is_masked(value):
        raise PolicyFault("returned a chunk with masked values")
    array = np.asarray(value)
    if array.dtype.kind not in "iufVO" or (array.dtype.kind == "O" and not array.shape):
        raise _no_numbers(given)
    fits(array.shape)
    if array.dtype.kind == "O":
        return _floats(array.ravel().tolist()).reshape(array.shape)
    with np.errstate(over="ignore"):  # a long double becomes infinite and is then refused
        return array.astype(np.float64)


def _floats(row: Sequence[Any]) -> np.ndarray:
    for one in row:
        if isinstance(one, bool | np.bool_ | str | bytes):
            raise _no_numbers(one)
    try:
        return np.array([float(one.detach() if hasattr(one, "detach") else one) for one in row])
    except (TypeError, ValueError, OverflowError):
        raise _no_numbers(row) from None


def _no_numbers(value: Any) -> PolicyFault:
    return PolicyFault(f"returned a {one_line(type(value).__name__, 100)} that is not an array of numbers")


@contextmanager
def _signals_seen() -> Iterator[None]:
    """Handle Ctrl-C in `_interrupt`, whose frame distinguishes it from a KeyboardInterrupt that the policy raises."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def let_signals_pass(error: BaseException) -> None:
    """Raise what a handler of SIGINT or SIGTERM raised, if that ended the call, even if the policy caught it and raised
    something else. The handler is this module's, that of `stop_on_signals`, or Ray's in a worker."""
    handlers = (_interrupt, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    codes = {getattr(handler, "__code__", None) for handler in handlers} - {None}
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if any(frame.f_code in codes for frame, _ in traceback.walk_tb(one.__traceback__)):
            raise one
        one = one.__context__  # the exception that was being handled, `from None` or not
