"""Options with meaningless values give exit code 2 and one line, or a result, but never exit code 70."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.cli import main
from tests.fuzz.limits import only_user_errors
from tests.runs import write_run

VALUES = (
    "0", "-1", "1", "2", "²", "٣", "1e400", "nan", "inf", "-inf", "9" * 30, "0.5", "1.5", "", " ", "true", "x", "so,so",
    ",,", "../x", "\x1b[31m", "[/red]", "{0}", "a=b", "a=1e400", "seed=-1", "x" * 5000, "\udcff",
)  # fmt: skip
TOY = "--suite tests/toy_suite.yaml"
VERBS: dict[str, tuple[str, str]] = {
    "run": (
        f"{TOY} --policy tests.toy:PushPolicy --dry-run",
        "--cells --tasks --episodes --seed --limit --probe --execute-horizon --policy-arg --workers --video --attempts "
        "--hang-timeout --margin --track --instruction-source --stop-when --suite --policy",
    ),
    "ls": (f"tasks {TOY}", "--cells --suite"),
    "validate": (TOY, "--cells --tasks --suite"),
    "compare": ("A B", "--seed A"),
    "check": ("A --against B", "--margin --coverage --against"),
    "power": ("", "--margin --rates --discordance --episodes --chance --power"),
    "trials": ("new PLAN --policies a,b --out OUT", "--seed --policies --suite"),
    "collect": (
        f"{TOY} --policy tests.toy:PushPolicy --out OUT",
        "--size --episodes --seed --image-every --workers --format",
    ),
    "train": (
        "--config mini --data NOWHERE",
        "--set --steps --seed --arch --device --config --vlm-mode --budget",
    ),
}
"""For each verb the words that are always given, and the options that get odd values."""


def _call(words: list[str]) -> tuple[int, str]:
    """Exit code and what was printed."""
    out, before = io.StringIO(), sys.argv
    sys.argv = ["apt-bench", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None), out.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    for name in "AB":
        write_run(folder / name, lambda c, t, i: i % 2 > 0, {"spatial_task": 2}, tasks=3)
    (folder / "PLAN").write_text("cell,task,instruction,trials\nso,block,move it,2\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_odd_options_end_in_a_message(verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    fixed, options = (words.split() for words in VERBS[verb])
    fixed = [str(folder / w) if w.isupper() else w for w in fixed]

    @given(st.integers(0, 2**63 - 1))
    def call(seed: int) -> None:
        rng = random.Random(seed)
        chosen = rng.sample(options, rng.randint(1, min(3, len(options))))
        odd = [w for name in chosen for w in (name, rng.choice(VALUES))]
        with only_user_errors():
            code, printed = _call([verb, *fixed, *odd])
            assert code in (0, 1, 2, 3), (odd, code, printed)
            assert "Traceback" not in printed, (odd, printed)
            assert "\x1b" not in printed, (odd, printed)

    call()
