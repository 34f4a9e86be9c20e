#!/usr/bin/env bash
# From a clean machine to a LIBERO-PRO table in a few minutes: the scripted expert, all 8 cells, a few tasks of each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/apt-bench run --suite libero_pro --policy oracle --tasks 1,5,8 --episodes 1 --out results/runs/quick "$@"
.venv/bin/apt-bench report results/runs/quick
