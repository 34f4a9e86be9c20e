#!/usr/bin/env bash
# Tests apt-bench with genuine clients and servers of its protocols: openpi-client, vla-eval and json-numpy. They get two
# environments in build/interop: openpi-client needs numpy 1 and typing_extensions (which it does not declare); vla-eval
# also uses the packages of .venv, for LIBERO.
# Run it again at any time: it skips what is installed. Words are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=build/interop
python=$(realpath -s "${PYTHON:-.venv/bin/python}")

# make NAME PACKAGE...: an environment with these packages. The file `installed` in it lists them.
make() {
  local folder=$env/$1 packages="${*:2}"
  [ "$(cat "$folder/installed" 2>/dev/null)" != "$packages" ] || return 0
  "$python" -m venv --clear "$folder"
  if [ "$1" = vla-eval ]; then
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
      >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/apt_bench_environment.pth"
  fi
  "$folder/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
  echo "$packages" >"$folder/installed"
}

make openpi openpi-client==0.1.2 json-numpy==2.1.1 "numpy<2" typing_extensions
make vla-eval vla-eval==0.8.0
"$python" -m pytest -q tests/serving/test_interop.py tests/policies/remote/test_genuine_servers.py "$@"
