"""Simulate what the rule of `run --stop-when decided` decides, and how early.

docs/statistics.md has the result.

python benchmarks/sequential.py
"""

import numpy as np

from apt_bench.analysis.sequential import Look, sequential_mcnemar

RUNS, LOOKS, MARGIN = 300, 10, 0.05
VERDICTS = ("a better", "b better", "equivalent", "undecided")


def main() -> None:
    rng = np.random.default_rng(5)
    print("difference  pairs  differing  " + "  ".join(f"{v:>10}" for v in VERDICTS) + "  played")
    for difference, discordances in ((0.0, (0.0, 0.08, 0.20)), (0.05, (0.08, 0.20)), (0.08, (0.12, 0.20))):
        for maximum in (200, 500):
            for discordance in discordances:
                found = [play(rng, maximum, difference, discordance) for _ in range(RUNS)]
                shares = (np.mean([v == verdict for v, _ in found]) for verdict in VERDICTS)
                played = np.mean([n for _, n in found]) / maximum
                print(
                    f"{difference:10.2f}  {maximum:5d}  {discordance:9.2f}  "
                    + "  ".join(f"{s:10.3f}" for s in shares)
                    + f"  {played:6.2f}",
                    flush=True,
                )


def play(rng: np.random.Generator, maximum: int, difference: float, discordance: float) -> tuple[str, int]:
    up, down = (discordance + difference) / 2, (discordance - difference) / 2
    pairs = rng.choice([1, -1, 0], p=[up, down, 1 - up - down], size=maximum)
    looks = []
    for k in range(1, LOOKS + 1):
        part = pairs[: round(maximum * k / LOOKS)]
        looks.append(Look(len(part), int((part == 1).sum()), int((part == -1).sum())))
        decision = sequential_mcnemar(looks, maximum, margin=MARGIN)
        if decision.final:
            break
    return decision.verdict, looks[-1].pairs


if __name__ == "__main__":
    main()
