#!/usr/bin/env bash
# Builds the wheel, checks it, installs it into a new environment outside the checkout and runs it there.
# Without PYTHON, the new environment uses the dependencies of .venv: about a minute; .ci/run does this.
# PYTHON=python3.12 picks an interpreter and installs every dependency anew: minutes, and some GB with torch.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu then picks PyTorch's CPU build.
# KEEP=FOLDER keeps everything in FOLDER; otherwise a temporary folder is used and removed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH VIRTUAL_ENV
python=${PYTHON:-.venv/bin/python}
if [ -n "${KEEP:-}" ]; then
  mkdir -p "$KEEP"
  folder=$(cd "$KEEP" && pwd)
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
step() { echo "[${SECONDS} s] $*"; }

step "Building the source archive, and the wheel from it"
"$python" -m venv "$folder/tools"
"$folder/tools/bin/python" -m pip install -qq --disable-pip-version-check build hatchling twine "readme-renderer[md]"
rm -rf "$folder/dist"
"$folder/tools/bin/python" -m build --no-isolation --outdir "$folder/dist" . >"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
"$folder/tools/bin/twine" check --strict "$folder"/dist/*
wheel=$(echo "$folder"/dist/*.whl)
ls -l "$folder/dist"

step "Checking what the wheel contains"
"$python" - "$wheel" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

inside = {name for name in zipfile.ZipFile(sys.argv[1]).namelist() if not name.endswith("/")}
folders = {
    "apt_bench": "apt_bench",
    "suites": "apt_bench/data/suites",
    "baselines": "apt_bench/data/baselines",
    "results/published": "apt_bench/data/published",
}
expected = {
    f"{packed}/{path.relative_to(source).as_posix()}"
    for source, packed in folders.items()
    for path in Path(source).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
missing = sorted(expected - inside)
foreign = sorted(n for n in inside - expected if ".dist-info/" not in n)
for what in ("simulator.json", "py.typed", ".safetensors", "html.j2", "/licenses/LICENSE"):
    if not any(name.endswith(what) for name in inside):
        missing.append(what)
if missing or foreign:
    sys.exit(f"missing from the wheel: {missing}; not meant to be in it: {foreign}")
print(f"{len(inside)} files, complete, and nothing else")
PYTHON

step "Installing it into a new environment ($("$python" --version))"
rm -rf "$folder/fresh"
"$python" -m venv "$folder/fresh"
pip=("$folder/fresh/bin/python" -m pip install -qq --disable-pip-version-check)
if [ -n "${PYTHON:-}" ]; then
  "${pip[@]}" "$(grep '^torch==' constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
  "${pip[@]}" --constraint constraints.txt "$wheel"
else # A folder that a .pth file names is searched last, and the .pth file of the editable install in it is not read.
  site='import sysconfig; print(sysconfig.get_path("purelib"))'
  .venv/bin/python -c "$site" >"$("$folder/fresh/bin/python" -c "$site")/dependencies.pth"
  "${pip[@]}" --no-deps --force-reinstall "$wheel"
fi

step "Running it in an empty folder"
rm -rf "$folder/empty" "$folder/run"
mkdir "$folder/empty"
cd "$folder/empty"
bin=$folder/fresh/bin
"$bin/python" -c 'import apt_bench, sys; sys.exit(not apt_bench.__file__.startswith(sys.argv[1] + "/"))' "$folder/fresh"
"$bin/apt-bench" --version
"$bin/python" -m apt_bench --version
"$bin/apt-bench" ls suites
"$bin/apt-bench" run --suite rigid_pick_place --policy random --cells so --tasks 0 --episodes 1 --workers 0 --out "$folder/run"
"$bin/apt-bench" report "$folder/run"
[ -z "$(ls -A)" ] || { echo "the run left files in the working directory: $(ls -A)" >&2; exit 1; }
step "The wheel works"
