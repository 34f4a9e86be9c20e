"""Every answer or exception of a policy becomes a checked chunk, a fault of the policy, or a lost server."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.guard import check_chunk, guard, guarded
from tests.wild import LOST, WILD, RaisingSpec


class Answers:
    """Whatever it was made with."""

    spec = PolicySpec("answers", horizon=4)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def reset(self, episodes):
        self._call()

    def act(self, observations):
        return self._call()


@pytest.mark.parametrize("how", WILD)
def test_whatever_a_policy_raises_is_its_fault_in_one_bounded_line(how: str) -> None:
    with pytest.raises(PolicyFault) as stop:
        guard(Answers(WILD[how])).act([None])
    text = str(pickle.loads(pickle.dumps(stop.value)))  # it crosses processes
    assert len(text) < 3000
    assert text.isprintable()


@pytest.mark.parametrize("how", LOST)
def test_a_lost_server_is_not_its_fault(how: str) -> None:
    policy = guard(Answers(LOST[how]))
    for call in (lambda: policy.act([None]), lambda: policy.reset(["x"])):
        with pytest.raises(ServerLost):
            call()


def test_a_spec_that_raises_is_a_fault() -> None:
    with pytest.raises(PolicyFault, match="raised SystemExit"):
        guard(RaisingSpec())


def test_bad_input_that_a_policy_finds_names_the_policy() -> None:
    def call():
        raise UserError("needs an image of 'wrist'")

    with pytest.raises(UserError, match="Policy 'answers': needs an image") as stop:
        guard(Answers(call)).act([None])
    assert not isinstance(stop.value, PolicyFault)


def test_a_signal_is_the_harnesss_and_not_the_policys() -> None:
    def pressed():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)  # the handler runs now

    def pressed_and_hidden():
        try:
            pressed()
        except KeyboardInterrupt:
            raise ValueError("something else") from None

    for call in (pressed, pressed_and_hidden):
        with pytest.raises(KeyboardInterrupt):
            guarded(call)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(PolicyFault, match="raised KeyboardInterrupt"):
        guarded(WILD["interrupt"])


def test_what_the_handlers_of_a_run_or_of_a_worker_raise_passes() -> None:
    def handler(number, frame):
        raise SystemExit(1)  # as Ray's in its workers

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit):
            guarded(lambda: os.kill(os.getpid(), signal.SIGTERM) or [None for _ in range(10**6)])
        with pytest.raises(PolicyFault, match="raised SystemExit"):
            guarded(WILD["exit"])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_bad_answer_is_not_its_neighbours() -> None:
    first, second, third = guard(Answers(lambda: [np.zeros((2, 7)), "left", np.ones((1, 7))])).answers(
        [1, 2, 3]
    )
    assert isinstance(second, PolicyFault)
    assert (first.shape, third.shape) == ((2, 7), (1, 7))


ROWS = np.arange(14.0).reshape(2, 7)


@pytest.mark.parametrize(
    "chunk",
    [
        ROWS.astype(np.float32),
        ROWS.astype(np.int16),
        ROWS.astype(object),
        ROWS.tolist(),
        [tuple(row) for row in ROWS],
        list(ROWS),
        [[np.float32(x) for x in row] for row in ROWS],
        np.ma.masked_array(ROWS, mask=False),
        torch.tensor(ROWS, requires_grad=True),
        torch.tensor(ROWS, dtype=torch.bfloat16),
        torch.tensor(ROWS).to(torch.int64),
        list(torch.tensor(ROWS, requires_grad=True)),
        [[torch.tensor(x, requires_grad=True) for x in row] for row in ROWS],
    ],
    ids=lambda chunk: type(chunk).__name__,
)
def test_every_kind_of_number_becomes_float64(chunk: object) -> None:
    checked = check_chunk(chunk, 4)
    assert type(checked) is np.ndarray
    assert checked.dtype == np.float64
    np.testing.assert_array_equal(checked, ROWS)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (ROWS * 1j, "a ndarray that is not an array of numbers"),
        (torch.tensor(ROWS) * 1j, "a Tensor that is not an array of numbers"),
        ("left", "a str that is not an array of numbers"),
        (np.array([["1"] * 7]), "a ndarray that is not an array of numbers"),
        ([["1"] * 7], "a str that is not an array of numbers"),
        (np.array([[None] * 7]), "not an array of numbers"),
        (np.zeros((2, 7), bool), "not an array of numbers"),
        ([[10**400] * 7], "not an array of numbers"),
        (np.ma.masked_array(ROWS, mask=ROWS > 3), "with masked values"),
        ({"actions": ROWS}, "a dict that is not an array of numbers"),
        (None, "a NoneType that is not an array of numbers"),
        ([[0.0] * 7, [0.0] * 6], r"shape \(2, "),
        ([], r"shape \(0,\)"),
        ([0.0] * 7, r"shape \(7,\)|shape \(7"),
        (np.zeros((5, 7)), r"shape \(5, 7\) instead of \(n, 7\) with 1 <= n <= 4"),
        (np.zeros((2, 8)), r"shape \(2, 8\)"),
        (torch.zeros(1, 2, 7), r"shape \(1, 2, 7\)"),
        (ROWS + np.nan, "NaN or infinite"),
        (np.full((1, 7), 1e4000, np.longdouble), "NaN or infinite"),
        (torch.zeros(2, 7, device="meta"), "raised"),
        (torch.zeros(2, 7).to_sparse(), "raised"),
    ],
)
def test_whatever_is_no_chunk_is_a_fault_with_a_plain_message(chunk: object, message: str) -> None:
    with pytest.raises(PolicyFault, match=message):
        check_chunk(chunk, 4)


@pytest.mark.parametrize(
    "huge",
    [
        np.broadcast_to(np.float32(0), (10**9, 7)),
        torch.zeros(1).expand(10**9, 7),
        [0.0] * 10**7,
        [[0.0] * 7] * 10**6,
        [np.broadcast_to(np.float32(0), 10**10)],
    ],
    ids=["array", "tensor", "flat list", "rows", "long row"],
)
def test_a_huge_answer_is_refused_before_it_is_copied(huge: object, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(np, "stack", lambda rows: copied.append(rows))
    with pytest.raises(PolicyFault, match="shape"):
        check_chunk(huge, 4)
    assert not copied
