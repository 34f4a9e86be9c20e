"""Packages add policies, suites and environments. A broken package causes one message and does not end the command."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt_bench.core.errors import UserError
from apt_bench.policies.registry import find_policy, policy_names
from apt_bench.suites import iter_suites, load_suite, register_suite, registry, suite

ROOT = Path(__file__).parents[2]
SUITE = """
name: added_suite
env: added_env
tasks: tests.toy:cell_tasks
episodes: 2
cells:
  push: {label: Push, max_steps: 30, instruction: file}
"""

Package = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Installs a package: its metadata, its entry points, and one module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT))

    def install(name: str, points: str, code: str = "") -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(textwrap.dedent(points))
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        monkeypatch.delitem(sys.modules, name, raising=False)  # of an earlier test
        monkeypatch.syspath_prepend(str(tmp_path))  # what importlib knows of the folder is old now

    return install


def good(package: Package, tmp_path: Path) -> None:
    (tmp_path / "added.yaml").write_text(SUITE)
    package(
        "good",
        """
        [apt_bench.policies]
        added_policy = tests.toy:PushPolicy
        zero = tests.toy:PushPolicy
        [apt_bench.envs]
        added_env = tests.toy:ToyEnv
        [apt_bench.suites]
        added_suite = good:path
        libero = good:path
        """,
        f"""
        def path():
            return {str(tmp_path / "added.yaml")!r}
        """,
    )


def test_what_a_package_adds_is_found_by_name(package: Package, tmp_path: Path, cli: Any) -> None:
    good(package, tmp_path)
    assert "added_policy" in policy_names()
    suite = load_suite("added_suite")
    assert suite.env == "tests.toy:ToyEnv"
    words = ("--policy", "added_policy", "--workers", 0, "--out", tmp_path / "run")
    cli("run", "--suite", "added_suite", *words, code=0)
    assert "added_policy" in cli("ls", "policies", code=0)
    assert "added_suite" in cli("ls", "suites", code=0)


def test_shipped_names_come_first(package: Package, tmp_path: Path) -> None:
    good(package, tmp_path)
    assert find_policy("zero").policy == "apt_bench.policies.simple:ZeroPolicy"
    assert load_suite("libero").env == "apt_bench.envs.libero:LiberoEnv"
    assert len({s.name for s in iter_suites()}) == len(list(iter_suites()))


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("no_such_module:x", "", "No module named"),
        ("broken:nothing", "", "has no 'nothing'"),
        ("broken:suite", "raise RuntimeError('no GPU')", "no GPU"),
        ("broken:suite", "import sys; sys.exit(3)", "exit code 3"),
        ("broken:suite", "def suite(): raise SystemExit(3)", "SystemExit"),
        ("broken:suite", "def suite(): return 3", "TypeError"),
        ("broken:suite", "suite = 'nowhere.yaml'", "No file 'nowhere.yaml'"),
        ("broken:suite", "import apt_bench.suites as s\nsuite = s.load_suite('libero')", "has the name 'libero'"),
        ("broken", "", "not of the form"),
    ],
)  # fmt: skip
def test_a_broken_suite_costs_a_line(
    value: str, code: str, message: str, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    package("broken", f"[apt_bench.suites]\nours = {value}\n", code)
    assert "libero_pro" in {s.name for s in iter_suites()}
    said = capsys.readouterr().err
    assert said.startswith("apt-bench: Suite 'ours' of package broken")
    assert message in said
    assert len(said.splitlines()) == 1
    with pytest.raises(UserError, match="Suite 'ours' of package broken"):
        load_suite("ours")


def test_a_broken_policy_is_told_only_when_it_is_asked_for(package: Package, cli: Any) -> None:
    package("broken", "[apt_bench.policies]\nours = broken:Missing\n")
    assert "ours" in cli("ls", "policies", code=0)
    words = ("run", "--suite", "rigid_pick_place", "--workers", 0, "--policy")
    assert "has no 'Missing'" in cli(*words, "ours")


def test_damaged_metadata_costs_a_line(
    package: Package, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good(package, tmp_path)
    package("damaged", "[apt_bench.policies]\nthis is no entry point\n")
    assert "added_policy" in policy_names()
    assert "damaged" in capsys.readouterr().err


def test_of_two_packages_the_first_counts(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    package("one", "[apt_bench.policies]\nours = tests.toy:PushPolicy\n")
    package("two", "[apt_bench.policies]\nours = tests.toy:BadPolicy\n")
    assert find_policy("ours").policy == "tests.toy:PushPolicy"
    assert "'ours' is added by one and by two" in capsys.readouterr().err


def test_an_unknown_environment_is_named() -> None:
    with pytest.raises(UserError, match=r"no environment 'tabletp'\. Did you mean 'tabletop'"):
        suite._environment("tabletp", "here")


def test_a_registered_suite_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.replace("added_suite", "mine").replace("added_env", "tests.toy:ToyEnv"))
    with pytest.raises(UserError, match="No suite 'mine'"):
        load_suite("mine")
    suite = register_suite(path)
    assert load_suite("mine") is suite
    assert "mine" in {s.name for s in iter_suites()}
    path.write_text(path.read_text().replace("episodes: 2", "episodes: 3"))
    assert register_suite(str(path)).episodes == load_suite("mine").episodes == 3
    path.write_text(path.read_text().replace("name: mine", "name: libero"))
    with pytest.raises(UserError, match="A shipped suite is called 'libero'"):
        register_suite(path)
