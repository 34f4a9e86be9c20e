"""Calls into a policy, guarded: whatever it raises or answers becomes a checked chunk, its own fault, or a lost server.

A policy is somebody else's code. It may raise `SystemExit`, answer with a tensor that requires grad, or lose its server
in the words of any client library. Every call of the harness goes through `GuardedPolicy`.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.text import one_line
from apt_bench.envs.base import ACTION_DIM, Observation
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.servers import server_lost

ERROR_LENGTH = 2000
"""Characters of what a policy raised that a message keeps."""


@dataclass(frozen=True)
class GuardedPolicy:
    """A policy that raises PolicyFault, ServerLost, UserError, or what a signal raised, and nothing else; each with a
    plain message of bounded length that can cross processes. Its chunks are checked, float64."""

    policy: Policy
    spec: PolicySpec  # read once: a property may raise, or change

    def reset(self, episodes: Sequence[str]) -> None:
        """`Policy.reset`."""
        self._guarded(lambda: self.policy.reset(episodes))

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """`Policy.act`. Raises the first fault among the answers."""
        chunks = []
        for answer in self.answers(observations):
            if isinstance(answer, PolicyFault):
                raise answer
            chunks.append(answer)
        return chunks

    def answers(self, observations: Sequence[Observation]) -> list[np.ndarray | PolicyFault]:
        """The same, with the fault in the place of each chunk that is none: a bad answer is not its neighbours'."""
        chunks = self._guarded(lambda: list(self.policy.act(observations)))
        if len(chunks) != len(observations):
            raise PolicyFault(f"answered {len(chunks)} chunks to {len(observations)} observations")
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
    """The policy, guarded. Raises PolicyFault where it has no `spec`."""
    if isinstance(policy, GuardedPolicy):
        return policy
    spec = guarded(lambda: policy.spec)
    if not isinstance(spec, PolicySpec):
        raise PolicyFault("has no `spec` of type apt_bench.policies.base.PolicySpec")
    return GuardedPolicy(policy, spec)


def guarded(call: Callable[[], Any]) -> Any:
    """The result of a call into a policy's code.

    Whatever that raises becomes a PolicyFault that says what and where, `SystemExit` and `KeyboardInterrupt` included;
    a ServerLost where its server is gone; a UserError stays one. What a signal raised (Ctrl-C, the end of a worker) is
    the harness's and passes."""
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
    """What was raised, and where, in one bounded line; a UserError's message is written for people and stands alone."""
    try:
        text = one_line(error, ERROR_LENGTH)
    except BaseException:  # its __str__ raises
        text = "(its message cannot be read)"
    if isinstance(error, UserError):
        return text
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    place = f"{frame.f_code.co_filename}:{line}"
    return one_line(f"{type(error).__name__}: {text} ({place})", ERROR_LENGTH + 500)


def check_chunk(chunk: Any, horizon: int) -> np.ndarray:
    """The chunk as float64 (n, 7), 1 <= n <= horizon, finite. Raises PolicyFault otherwise. Nothing larger than such a
    chunk is ever copied."""
    actions: np.ndarray = guarded(lambda: _chunk(chunk, horizon))
    if not np.isfinite(actions).all():
        raise PolicyFault("answered a chunk with NaN or infinite values")
    return actions


def _chunk(value: Any, horizon: int) -> np.ndarray:
    def fits(shape: Sequence[int]) -> None:
        if len(shape) != 2 or shape[1] != ACTION_DIM or not 1 <= shape[0] <= horizon:
            raise PolicyFault(
                f"answered a chunk of shape {tuple(shape)} instead of (n, {ACTION_DIM}) with 1 <= n <= {horizon}"
            )

    if not isinstance(value, list | tuple):
        return _numbers(value, fits)
    if len(value) > horizon:  # before its rows are looked at: there may be a billion
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
    """An array, a tensor or what turns into one, as float64; `fits` raises where its shape is not one to copy."""
    given = value
    if hasattr(value, "detach"):  # torch's, on any device, of any dtype: numpy knows no bfloat16
        value = value.detach()
        fits(value.shape)
        value = (value.double() if value.is_floating_point() else value).numpy(force=True)
    if np.ma.is_masked(value):
        raise PolicyFault("answered a chunk with masked values")
    array = np.asarray(value)
    if array.dtype.kind not in "iufVO" or (array.dtype.kind == "O" and not array.shape):
        raise _no_numbers(given)
    fits(array.shape)
    if array.dtype.kind == "O":
        return _floats(array.ravel().tolist()).reshape(array.shape)
    with np.errstate(over="ignore"):  # a long double becomes infinite, and is refused as such
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
    return PolicyFault(f"answered a {one_line(type(value).__name__, 100)} that is not an array of numbers")


@contextmanager
def _signals_seen() -> Iterator[None]:
    """Ctrl-C raises from a handler with a frame of its own, which tells it from a policy's own KeyboardInterrupt."""
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
    """Raises what a handler of SIGINT or SIGTERM raised, where that is what ended the call, even if the policy caught
    it and raised something else: this module's handler, `stop_on_signals`', or Ray's in a worker."""
    handlers = (_interrupt, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    codes = {getattr(handler, "__code__", None) for handler in handlers} - {None}
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if any(frame.f_code in codes for frame, _ in traceback.walk_tb(one.__traceback__)):
            raise one
        one = one.__context__  # what was handled when it was raised, `from None` or not
