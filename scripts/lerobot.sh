#!/usr/bin/env bash
# Makes an environment with lerobot (build/lerobot) and tests the policy `lerobot` in it against lerobot's own code.
# It needs Python 3.12 (PYTHON=PATH picks it) and 8 GB: lerobot needs a torch below 2.12, whose Linux wheel has CUDA.
# Rerun it at any time: it skips what is installed. Words are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=build/lerobot
if [ ! -e "$env/installed" ] || [ pyproject.toml -nt "$env/installed" ]; then
  python=${PYTHON:-python3.12}
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null ||
    { echo "lerobot needs Python 3.12; set PYTHON to its path." >&2; exit 1; }
  [ -x "$env/bin/python" ] || "$python" -m venv "$env"
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[lerobot]' hypothesis pytest pytest-timeout
  touch "$env/installed"
fi
HF_HUB_OFFLINE=1 "$env/bin/python" -m pytest -q tests/policies/test_lerobot_genuine.py "$@"
