"""Results as JSON on stdout, for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Annotated, Any

import typer

from apt_bench.core.jsonable import jsonable

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, and everything else on stderr.")
]


def print_json(value: Any) -> None:
    """Print a value as one line of JSON. NaN and infinity become null, dataclasses become objects."""
    print(json.dumps(jsonable(_finite(value)), allow_nan=False, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


@contextmanager
def stdout_to_stderr(enabled: bool = True) -> Iterator[None]:
    """Send what the block prints on stdout to stderr, also what C libraries and child processes print."""
    if not enabled:
        yield
        return
    sys.stdout.flush()
    saved = None
    with suppress(OSError):
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)
