#!/usr/bin/env bash
# Sets everything up and runs the tests. Arguments go to pytest: `scripts/test.sh -m "not sim and not slow"` is the fast tier.
# Without arguments: all tests that are not slow, in two processes. Those of rollouts run afterwards, because they start
# Ray and kill processes, and those of speed last and alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
[ "$#" -eq 0 ] || exec .venv/bin/python -m pytest "$@"
.venv/bin/python -m pytest --durations=40 -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/rollout --ignore=tests/tabletop/test_speed.py
.venv/bin/python -m pytest --durations=20 -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder tests/rollout
.venv/bin/python -m pytest -m "not slow" tests/tabletop/test_speed.py
