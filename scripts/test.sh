#!/usr/bin/env bash
# Sets everything up and runs the tests. `scripts/test.sh fast` is the fast tier, without the tests that take seconds or
# more (markers sim, medium and slow). Other arguments go to pytest.
# Without arguments: all tests that are not slow, in two processes. Those of rollouts run afterwards, because they start
# Ray and kill processes, and those of speed last and alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
[ "${1:-}" != fast ] ||
  exec .venv/bin/python -m pytest -n 2 -m "not sim and not medium and not slow" "${@:2}"
[ "$#" -eq 0 ] || exec .venv/bin/python -m pytest "$@"
.venv/bin/python -m pytest --durations=40 -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/rollout --ignore=tests/tabletop/test_speed.py
.venv/bin/python -m pytest --durations=20 -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder tests/rollout
.venv/bin/python -m pytest -m "not slow" tests/tabletop/test_speed.py
