"""Run blocks of code in a sandbox, for tests."""

from collections.abc import Callable
from typing import Any

from apt_bench.policies.code_as_policies.sandbox import Call, Ended, Sandbox

FUNCTIONS = ("look", "move")


def run(sandbox: Sandbox, code: str, reply: Callable[[Call], Any] = lambda call: None) -> Ended:
    """Run one block to its end. `reply` answers the calls."""
    sandbox.start(code)
    while isinstance(event := sandbox.next(), Call):
        sandbox.answer(reply(event))
    return event
