#!/usr/bin/env bash
# Installs everything, runs the scripted expert on a few tasks of all 8 LIBERO-PRO cells, and writes a report.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/apt-bench run --suite libero_pro --policy oracle --tasks 1,5,8 --episodes 1 --out results/runs/quick "$@"
.venv/bin/apt-bench report results/runs/quick
