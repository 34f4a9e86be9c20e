from __future__ import annotations

import pytest

from apt_bench.policies.remote import groot, links, openpi, vla_eval


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APT_BENCH_API_KEY", raising=False)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits of a second or less."""
    for module, name, seconds in (
        (links, "CONNECT_SECONDS", 1.0),
        (links, "REPLY_SECONDS", 1.0),
        (openpi, "GREETING_SECONDS", 0.6),
        (vla_eval, "GREETING_SECONDS", 0.6),
        (groot, "PING_SECONDS", 0.6),
    ):
        monkeypatch.setattr(module, name, seconds)
