"""Which package may import which, checked from the code. Data flow one way; nothing imports back."""

import ast
import importlib
import pkgutil
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import apt_bench

ROOT = Path(apt_bench.__file__).parent

MAY_IMPORT = {
    "core": "",
    "suites": "core",
    "runs": "core suites",
    "analysis": "core suites runs",
    "reporting": "core suites runs analysis",
    "envs": "core suites runs",
    "models": "core",
    "wire": "core",
    "policies": "core suites envs models wire",
    "rollout": "core suites runs analysis envs models wire policies",
    "serving": "core suites runs envs models wire policies rollout",
    "demos": "core suites runs analysis envs models wire policies rollout",
    "training": "core suites runs analysis envs models wire policies rollout demos",
    "api": "core suites runs analysis envs policies rollout",
    "cli": "core suites runs analysis reporting envs models wire policies rollout serving demos training",
}
"""Package -> the packages of apt_bench that it may import, besides itself."""

HEAVY = {"torch", "transformers", "mujoco", "robosuite", "libero", "ray"}
LIGHT = ("core", "suites", "runs", "analysis", "reporting")
"""Packages that read and report runs: no simulator, no torch, no Ray."""


def module(path: Path) -> str:
    parts = ("apt_bench", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it: its own package's by module, others by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            known = names & MODULES.keys()
            found |= known
            if known != names:  # a name that the module itself defines
                found.add(node.module)
    return found


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def package(name: str) -> str:
    """`core` of `apt_bench.core.text`; "" of `apt_bench` itself."""
    return (name + ".").split(".")[1]


def test_the_top_level_holds_packages_only() -> None:
    files = {p.name for p in ROOT.iterdir() if p.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("__pycache__", "data")}
    assert folders == MAY_IMPORT.keys()


def test_the_table_has_no_circle() -> None:
    graph = {name: allowed.split() for name, allowed in MAY_IMPORT.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_package_imports_only_what_the_table_allows(name: str) -> None:
    allowed = {name, "", *MAY_IMPORT[name].split()}
    wrong = [
        f"{one} -> {other}"
        for one, others in IMPORTS.items()
        for other in others
        if package(one) == name and other.split(".")[0] == "apt_bench" and package(other) not in allowed
    ]
    assert not wrong


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = MODULES.keys() - {"apt_bench"}  # it imports the API only when a name is used
    graph = {one: {o for o in IMPORTS[one] if o in modules and o != one} for one in modules}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", LIGHT)
def test_what_reads_runs_imports_no_simulator_and_no_torch(name: str) -> None:
    heavy = {
        f"{one} -> {other}"
        for one, others in IMPORTS.items()
        for other in others
        if package(one) == name and other.split(".")[0] in HEAVY
    }
    assert not heavy


def test_every_module_can_be_imported_first() -> None:
    for name in [m.name for m in pkgutil.walk_packages(apt_bench.__path__, "apt_bench.")]:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_files_stay_short_enough_to_read() -> None:
    long = {str(p.relative_to(ROOT)): n for p in MODULES.values() if (n := p.read_text().count("\n")) > 400}
    assert not long
