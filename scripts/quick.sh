#!/usr/bin/env bash
# Installs everything, runs three policies on two tasks of each of LIBERO-PRO's eight cells, and writes a report that
# compares them: the small learned policies that ship (apt), the scripted expert (oracle) and random actions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
runs=results/runs/quick
.venv/bin/apt-bench run --suite libero_pro --policy apt --policy oracle --policy random --tasks 1,5 --episodes 1 \
  --out "$runs" "$@"
.venv/bin/apt-bench report "$runs/apt" "$runs/oracle" "$runs/random" --out "$runs/report"
