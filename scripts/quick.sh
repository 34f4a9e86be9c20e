#!/usr/bin/env bash
# Installs everything, runs three policies on a few tasks of LIBERO-PRO, and writes a report that compares them: the
# small learned policy that ships (apt), the scripted expert (oracle) and random actions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
cells=object_pos,object_task,spatial_pos,spatial_task # four of the eight
for policy in apt oracle random; do
  .venv/bin/apt-bench run --suite libero_pro --policy "$policy" --cells "$cells" --tasks 1,5 --episodes 1 \
    --out "results/runs/quick-$policy" "$@"
done
.venv/bin/apt-bench report results/runs/quick-apt results/runs/quick-oracle results/runs/quick-random \
  --out results/runs/quick
