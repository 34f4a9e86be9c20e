#!/usr/bin/env bash
# Tests `apt-bench serve` with the genuine clients, openpi-client and vla-eval. Each gets an environment of its own in
# build/interop: openpi-client needs numpy 1 and typing_extensions (which it does not declare); vla-eval also uses the
# packages of .venv, for LIBERO.
# Run it again at any time: it skips what is installed. Words are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=build/interop
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
if [ ! -e "$env/openpi/installed" ]; then
  "$python" -m venv --clear "$env/openpi"
  "$env/openpi/bin/pip" install --quiet --disable-pip-version-check openpi-client==0.1.2 "numpy<2" typing_extensions
  touch "$env/openpi/installed"
fi
if [ ! -e "$env/vla-eval/installed" ]; then
  "$python" -m venv --clear "$env/vla-eval"
  ours=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  theirs=$("$env/vla-eval/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$ours" >"$theirs/apt_bench_environment.pth"
  "$env/vla-eval/bin/pip" install --quiet --disable-pip-version-check vla-eval==0.8.0
  touch "$env/vla-eval/installed"
fi
"$python" -m pytest -q tests/serving/test_interop.py "$@"
