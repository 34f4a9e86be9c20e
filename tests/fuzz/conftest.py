"""Count the fuzzed inputs, and print the counts at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.limits import TALLY


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None] | None:
    if TALLY.inputs:
        terminalreporter.write_line(str(TALLY))
    return None
