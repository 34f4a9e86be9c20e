"""User modules are found, and never replace an installed module. Their messages name them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.module_search_path import installed_first

SHADOWS = ("random", "token", "queue", "tempfile", "yaml", "rich", "typer", "numpy", "ray", "scipy", "h5py")
POLICY = """
class MyPolicy:
    def reset(self, episodes): ...
    def act(self, observations): ...
"""


def apt_bench(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """As the console script starts it: the working directory is not on the path yet."""
    script = "import sys; sys.path.remove(''); from apt_bench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("where", ["working directory", "PYTHONPATH"])
def test_a_module_with_a_dependencys_name_breaks_nothing(where, tmp_path):
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was imported')\n")
    here = where == "working directory"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = apt_bench(
        tmp_path if here else elsewhere, "ls", "policies", PYTHONPATH="" if here else str(tmp_path)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "oracle" in done.stdout


@pytest.mark.parametrize("where", ["working directory", "PYTHONPATH"])
def test_a_users_module_is_found(where, tmp_path):
    (tmp_path / "my_module.py").write_text(POLICY)
    here = where == "working directory"
    words = ("run", "--suite", "rigid_pick_place", "--policy", "my_module:MyPolicy", "--dry-run")
    done = apt_bench(tmp_path if here else tmp_path.parent, *words, PYTHONPATH="" if here else str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    missing = apt_bench(tmp_path.parent, *words, PYTHONPATH="")
    assert missing.returncode == 2
    assert "Cannot import 'my_module'" in missing.stderr


def test_a_users_module_that_an_installed_one_hides_is_named(tmp_path):
    (tmp_path / "yaml.py").write_text(POLICY)
    (tmp_path / "time").mkdir()
    for name, path in {"yaml": "yaml.py", "time": "time"}.items():
        words = ("run", "--suite", "rigid_pick_place", "--policy", f"{name}:MyPolicy", "--dry-run")
        done = apt_bench(tmp_path, *words)
        assert done.returncode == 2
        assert f"Module '{name}' has no 'MyPolicy'. {tmp_path / path} was not imported: an" in done.stderr


def test_the_users_folders_come_last_once_each(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{other}:{other}:{tmp_path}")
    monkeypatch.setattr(sys, "path", ["", str(other), "/usr/lib/elsewhere", str(tmp_path)])
    for _ in range(2):
        installed_first()
        assert sys.path == ["/usr/lib/elsewhere", str(tmp_path), str(other)]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "argued.py").write_text(text)
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        monkeypatch.delitem(sys.modules, "argued", raising=False)
        monkeypatch.setattr(sys, "argv", ["apt-bench", "run", "--policy", "argued:x"])
        return "argued:x"

    return write


PARSES = "import argparse\nparser = argparse.ArgumentParser()\n"


def test_a_module_that_reads_arguments_speaks_in_its_own_name(module, capfd):
    with pytest.raises(UserError, match=r"it exited with exit code 2\. Put code that runs as a program"):
        load_object(module(PARSES + "parser.add_argument('--data', required=True)\nparser.parse_args()\n"))
    said = capfd.readouterr().err
    assert "argued: error: the following arguments are required: --data" in said
    assert "apt-bench" not in said
    assert sys.argv[0] == "apt-bench"


def test_our_command_line_is_not_a_modules(module):
    assert load_object(module(PARSES + "x = vars(parser.parse_args())\n")) == {}


@pytest.mark.parametrize("raised", ["sys.exit(0)", "sys.exit()", "raise GeneratorExit", "raise Unprintable"])
def test_whatever_an_import_raises_is_bad_input(raised, module):
    text = "import sys\nclass Unprintable(Exception):\n    def __str__(self): raise RuntimeError\n"
    with pytest.raises(UserError, match="Cannot import 'argued'"):
        load_object(module(text + raised + "\n"))
