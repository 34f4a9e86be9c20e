"""Simulate how often `compare` decides, rightly and wrongly, by the number of tasks and their spread.

docs/statistics.md has the result.

python benchmarks/clusters.py
"""

import numpy as np

from apt_bench.analysis.differences import paired
from apt_bench.analysis.stats import mcnemar

RUNS, EPISODES, NOISE = 400, 50, 0.10
TASKS = (1, 2, 3, 5, 6, 10, 40)


def main() -> None:
    rng = np.random.default_rng(12)
    print("mean  tasks differ by           tasks  decided  pooled McNemar  interval has the mean")
    for mean in (0.0, 0.10):
        for name, effects in EFFECTS.items():
            for tasks in TASKS:
                if tasks == 1 and name != "nothing":
                    continue
                print(f"{mean:4.2f}  {name:24}  {tasks:5d}  " + trial(rng, mean, effects, tasks), flush=True)
    for tasks in TASKS[1:]:
        lost = lambda rng, k: np.where(np.arange(k) == 0, 1.0, 0.0)  # noqa: E731
        print(
            f"      {'one task lost, no other':24}  {tasks:5d}  " + trial(rng, None, lost, tasks), flush=True
        )


EFFECTS = {
    "nothing": lambda rng, k: np.zeros(k),
    "10 points (normal)": lambda rng, k: rng.normal(0, 0.10, k),
    "30 points (normal)": lambda rng, k: rng.normal(0, 0.30, k),
    "one in 10 by 60 (skewed)": lambda rng, k: np.where(rng.random(k) < 0.1, 0.6, 0.0) - 0.06,
}
"""By name, draws of how much the effects of tasks differ from the mean over all possible tasks."""


def trial(rng: np.random.Generator, mean: float | None, effects, tasks: int) -> str:
    found, pooled, covers = 0, 0, 0
    group = np.repeat(np.arange(tasks), EPISODES)
    for _ in range(RUNS):
        effect = np.clip((mean or 0.0) + effects(rng, tasks), -1, 1)[group]
        noise = np.minimum(NOISE, 1 - np.abs(effect))  # pairs that differ either way without any effect
        draw = rng.random(len(group))
        up, down = np.maximum(effect, 0) + noise / 2, np.maximum(-effect, 0) + noise / 2
        a, b = draw < up, (draw >= up) & (draw < up + down)
        result = paired(a, b, group)
        found += result.p <= 0.05
        pooled += mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) <= 0.05
        covers += mean is not None and result.estimate.low <= mean <= result.estimate.high
    inside = (
        f"{covers / RUNS:21.1%}" if mean is not None else ""
    )  # with one lost task, the mean over all possible tasks is not defined
    return f"{found / RUNS:7.1%}  {pooled / RUNS:14.1%}  {inside}"


if __name__ == "__main__":
    main()
