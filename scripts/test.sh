#!/usr/bin/env bash
# Sets everything up and runs the tests. Arguments go to pytest: `scripts/test.sh -m "not sim and not slow"` is the fast tier.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
[ "$#" -gt 0 ] || set -- -m "not slow"
exec .venv/bin/python -m pytest "$@"
