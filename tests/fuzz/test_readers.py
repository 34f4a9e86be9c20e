"""Every format that is read, damaged at random: a message or a result, never a traceback, never slow, never large.

`pytest tests/fuzz` takes about a minute; `pytest tests/fuzz --hypothesis-profile=long` takes hours. What once failed
is kept in corpus/TARGET/NAME/, a folder as the reader gets it, and is read first."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import mutate
from tests.fuzz.limits import only_user_errors
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
IDS = [t.name.replace(" ", "_") for t in TARGETS]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seeds")


def _seed(target: Target, seeds: Path) -> Path:
    folder = seeds / target.name
    if not folder.exists():
        folder.mkdir()
        target.make(folder)
    return folder


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
def test_a_valid_example_is_read(target: Target, seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(_seed(target, seeds), tmp_path / "valid")
    target.read(tmp_path / "valid")


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
def test_whatever_is_damaged_ends_in_a_message(target: Target, seeds: Path) -> None:
    folder = _seed(target, seeds)
    files = [p.relative_to(folder) for p in target.files(folder)]

    @given(st.integers(0, 2**63 - 1))
    def damage(seed: int) -> None:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / "x"
            shutil.copytree(folder, copy)
            mutate.file(rng, copy / files[rng.randrange(len(files))])
            with only_user_errors():
                target.read(copy)

    damage()


@pytest.mark.parametrize("folder", sorted(CORPUS.glob("*/*")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_what_once_failed(folder: Path, tmp_path: Path) -> None:
    (target,) = (t for t, name in zip(TARGETS, IDS, strict=True) if name == folder.parent.name)
    shutil.copytree(folder, tmp_path / "x")
    with only_user_errors():
        target.read(tmp_path / "x")
