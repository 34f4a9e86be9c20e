#!/usr/bin/env bash
# Installs everything: missing Debian packages for rendering, then apt-bench and its dependencies into .venv.
# Run it again at any time: it skips what is done. PYTHON=python3.12 picks the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has() { ldconfig -p 2>/dev/null | grep -q "$1"; }
need=()
has libOSMesa.so || need+=(libosmesa6)
has libEGL.so || need+=(libegl1)
has libGL.so || need+=(libgl1 libgl1-mesa-dri)
if ((${#need[@]})); then
  command="apt-get update && apt-get install -y --no-install-recommends ${need[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Debian packages for headless rendering: ${need[*]}"
    bash -c "$command" >/dev/null
  elif sudo -n true 2>/dev/null; then
    sudo bash -c "$command" >/dev/null
  else
    echo "Headless rendering needs Debian packages that only root can install. Run this, then repeat:" >&2
    echo "  sudo bash -c '$command'" >&2
    exit 1
  fi
fi

# Tests of pages need a browser. Without one they are skipped, so a failed installation does not stop the set-up.
browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome chrome; do browser=${browser:-$(command -v "$name" || true)}; done
if [ -z "$browser" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing the Debian package chromium, for tests of pages (about 300 MB) ..."
  timeout 300 bash -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium' \
    >/dev/null 2>&1 || echo "Chromium was not installed; tests of pages will be skipped." >&2
fi

if [ ! -x .venv/bin/python ]; then
  for python in "${PYTHON:-}" python3.11 python3.12 python3; do
    [ -n "$python" ] && command -v "$python" >/dev/null &&
      "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' && break
    python=
  done
  [ -n "$python" ] || { echo "apt-bench needs Python 3.11 or 3.12; set PYTHON to its path." >&2; exit 1; }
  "$python" -m venv .venv
fi

# Keep a torch that is already installed, for example a CUDA build.
stamp=.venv/installed
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
  echo "Installing apt-bench into .venv (about 3 GB with LIBERO's assets; a few minutes) ..."
  constraints=$(mktemp)
  if .venv/bin/python -c 'import torch' 2>/dev/null; then grep -v '^torch==' constraints.txt >"$constraints"; else cp constraints.txt "$constraints"; fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" -e '.[dev]'
  rm -f "$constraints"
  touch "$stamp"
fi
echo "Ready: source .venv/bin/activate; apt-bench --help"
