#!/usr/bin/env bash
# Installs everything, runs three policies on two tasks of each of LIBERO-PRO's eight cells, and writes a report that
# compares them: the small learned policies that ship (apt), the scripted expert (oracle) and random actions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
for policy in apt oracle random; do
  .venv/bin/apt-bench run --suite libero_pro --policy "$policy" --tasks 1,5 --episodes 1 --out "results/runs/quick-$policy" "$@"
done
.venv/bin/apt-bench report results/runs/quick-apt results/runs/quick-oracle results/runs/quick-random \
  --out results/runs/quick
