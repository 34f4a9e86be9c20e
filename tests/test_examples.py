"""The scripts and the notebook in examples/ run, and examples/README.md lists them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.medium

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTED = {
    "compare_runs.py": r"Overall: 100% - 0% = \+100 points, .*: undecided\nFigure: comparison\.png\n",
    "environment_loop.py": r"40 steps, reward 0, gripper lowered by 0\.\d+ m\nImage \(256, 256, 3\): last_image\.png\n",
    "evaluate_policy.py": r"uo +0 +1 +0\.0 .*\nSeconds per episode: \d+\.\d\nNext: apt-bench report results/runs/",
}
"""Script -> pattern of what it prints."""


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_a_script_runs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(PRINTED[script], done.stdout), done.stdout
    for name in re.findall(r"\b\w+\.png\b", done.stdout):
        assert (tmp_path / name).stat().st_size > 1000


def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient  # of the dev extra

    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")  # committed without
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "undecided" in outputs[-1].text
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 2


def test_the_readme_lists_every_example():
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb"))
