"""The simulator that is imported, compared with the one on record."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apt_bench.core import provenance
from apt_bench.core.errors import UserError
from apt_bench.core.provenance import labels, problems, require, require_same, simulator

PINS = {"fake-sim": "1.0"}
FILES = {"__init__.py": "", "goal.py": "def holds(): return False\n", "assets/cup.xml": "<mujoco/>\n"}


def forget() -> None:
    """Clears the hashes of this process, as in a new process."""
    provenance._KNOWN.clear()
    provenance._stamp.cache_clear()


def write(folder: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        path = folder / "fakesim" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "fakesim"


def record(folder: Path) -> str:
    def line(path: Path) -> str:
        sha = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        return f"{path.relative_to(folder).as_posix()},sha256={sha},{path.stat().st_size}\n"

    return "".join(line(p) for p in sorted((folder / "fakesim").rglob("*")) if p.is_file())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages with fake-sim 1.0 in it, which is on record."""
    site = tmp_path / "site"
    write(site)
    info = site / "fake_sim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-sim\nVersion: 1.0\n")
    (info / "RECORD").write_text(record(site) + "fakesim/__pycache__/goal.pyc,,\n../../bin/fake,sha256=x,3\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("APT_BENCH_CACHE", str(tmp_path / "cache"))
    forget()
    known = provenance.digest(provenance.listing_of("fakesim", [site / "fakesim"]))
    monkeypatch.setattr(provenance, "on_record", lambda: {"fake-sim 1.0": {"fakesim": [known]}})
    yield site
    sys.modules.pop("fakesim", None)
    forget()


@pytest.fixture
def other(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second copy that is imported first, in which the goal always holds."""
    folder = write(tmp_path / "other", {**FILES, "goal.py": "def holds(): return True\n"})
    monkeypatch.syspath_prepend(tmp_path / "other")
    return folder


def test_what_is_installed_is_taken_for_what_is_on_record(site: Path) -> None:
    assert require("toy", PINS, unpinned=False) == []
    assert labels(PINS) == PINS  # a protocol's hash stays what it was
    (package,) = simulator(PINS)
    assert [(t.module, t.path, t.files) for t in package.trees] == [("fakesim", str(site / "fakesim"), 3)]


def test_another_copy_that_is_imported_is_refused_and_named(other: Path) -> None:
    with pytest.raises(UserError) as refused:
        require("toy", PINS, unpinned=False)
    assert str(other) in str(refused.value)
    assert "1 changed (fakesim/goal.py)" in str(refused.value)
    assert "--unpinned" in str(refused.value)


def test_another_copy_on_purpose_marks_the_result(other: Path) -> None:
    (mark,) = require("toy", PINS, unpinned=True)
    assert mark.startswith("defined on fake-sim 1.0; here the module 'fakesim' is another")
    assert labels(PINS)["fake-sim"].startswith("1.0+")


def edit(path: Path) -> None:
    """With the same length and the same time, as `cp --preserve` or a sync may do it."""
    before = path.stat()
    path.write_text(path.read_text().replace("False", "True "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited in place": (lambda root: edit(root / "goal.py"), "1 changed (fakesim/goal.py)"),
    "an asset": (
        lambda root: (root / "assets/cup.xml").write_text("<x/>"),
        "1 changed (fakesim/assets/cup.xml)",
    ),
    "missing": (lambda root: (root / "goal.py").unlink(), "1 missing (fakesim/goal.py)"),
    "added": (lambda root: (root / "goal").mkdir() or (root / "goal/__init__.py").write_text(""), "1 added"),
    "a linked folder": (
        lambda root: (
            shutil.move(root / "assets", root.parent / "x")
            and (root / "assets").symlink_to(root.parent / "x")
        ),
        "1 missing (fakesim/assets/cup.xml)",
    ),
    "unreadable": (
        lambda root: (root / "goal.py").unlink() or (root / "goal.py").symlink_to("nowhere"),
        "1 changed (fakesim/goal.py)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_an_installation_is_seen(site: Path, name: str) -> None:
    assert require("toy", PINS, unpinned=False) == []  # and cached
    change, expected = CHANGES[name]
    change(site / "fakesim")
    forget()
    with pytest.raises(UserError) as refused:
        require("toy", PINS, unpinned=False)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    "name", ["__pycache__/goal.cpython-311.pyc", ".DS_Store", "assets/.cache/x", "datasets/d.hdf5"]
)
def test_what_python_and_systems_leave_behind_does_not_count(
    site: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "LEFT_OUT", {"fakesim": ("datasets",)})
    path = site / "fakesim" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0")
    assert require("toy", PINS, unpinned=False) == []


def test_a_second_part_of_a_namespace_counts(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (site, tmp_path / "more"):
        write(folder, {"more.py": ""})
        (folder / "fakesim/__init__.py").unlink(missing_ok=True)
    monkeypatch.syspath_prepend(tmp_path / "more")
    assert len(provenance.roots("fakesim")) == 2
    assert problems(PINS, simulator(PINS))


def test_a_file_of_the_modules_name_is_another_module(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fakesim.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"fakesim\.py: .* missing"):
        require("toy", PINS, unpinned=False)


def test_what_is_imported_counts_not_what_would_be(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("fakesim")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(other.parent)])
    assert problems(PINS, simulator(PINS))
    sys.modules["fakesim"] = types.ModuleType("fakesim")  # made by hand
    assert "cannot be imported" in problems(PINS, simulator(PINS))[0]


def test_another_version_is_refused_as_before(site: Path) -> None:
    with pytest.raises(UserError, match=r"defined on fake-sim 2\.0; here is 1\.0"):
        require("toy", {"fake-sim": "2.0"}, unpinned=False)
    with pytest.raises(UserError, match=r"defined on no-sim 1\.0; here is not installed"):
        require("toy", {"no-sim": "1.0"}, unpinned=False)


def test_a_version_that_is_not_on_record_is_compared_with_its_own_installation(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "on_record", dict)
    assert labels(PINS) == PINS
    edit(site / "fakesim" / "goal.py")
    forget()
    assert labels(PINS)["fake-sim"].startswith("1.0+")


def test_it_is_hashed_once_per_installation(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = labels(PINS)
    forget()
    monkeypatch.setattr(provenance, "_hash", lambda path: pytest.fail("hashed again"))
    assert labels(PINS) == before


@pytest.mark.parametrize("cache", ["/proc/nowhere", "damaged"])
def test_a_cache_that_cannot_be_used_does_not_matter(
    site: Path, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache == "damaged":
        labels(PINS)
        (path,) = (tmp_path / "cache/simulator").iterdir()
        path.write_text('{"stamp": 3')
    else:
        monkeypatch.setenv("APT_BENCH_CACHE", cache)
    forget()
    assert labels(PINS) == PINS


def test_a_worker_that_imports_something_else_is_refused(other: Path) -> None:
    (here,) = simulator(PINS)
    require_same([here])
    with pytest.raises(
        UserError, match=r"simulates with fake-sim 1\.0\+.*; the command was started with 1\.0\."
    ):
        require_same([replace(here, trees=())])


def test_a_worker_does_not_hash_what_the_driver_has_hashed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = simulator(PINS)
    forget()
    monkeypatch.setenv("APT_BENCH_CACHE", "/proc/nowhere")
    monkeypatch.setattr(provenance, "_hash", lambda path: pytest.fail("hashed again"))
    require_same(found)


def test_versions_say_where_a_module_is_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "imported" not in str(provenance.versions(("numpy", "torch", "mujoco")))
    (tmp_path / "tabulate_x").mkdir()
    info = tmp_path / "tabulate_x-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tabulate_x\nVersion: 1\n")
    (tmp_path / "second/tabulate_x").mkdir(parents=True)
    (tmp_path / "second/tabulate_x/__init__.py").touch()
    (tmp_path / "tabulate_x/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert provenance.versions(["tabulate_x"]) == {"tabulate_x": "1"}
    monkeypatch.syspath_prepend(tmp_path / "second")
    assert "but imported from" in provenance.versions(["tabulate_x"])["tabulate_x"]


def test_the_simulator_of_this_machine_is_the_one_on_record() -> None:
    forget()
    pins = dict(name.split() for name in provenance.on_record())
    assert problems(pins, simulator(pins)) == []
