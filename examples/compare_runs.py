"""Compare two runs, matched episode by episode, and plot the difference.

python examples/compare_runs.py RUN_A RUN_B
python examples/compare_runs.py            # runs the scripted expert and random actions first
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import apt_bench


def two_runs() -> tuple[apt_bench.Run, apt_bench.Run]:
    """The runs that the command line names, or two small new ones."""
    if len(sys.argv) == 3:
        return apt_bench.load_run(sys.argv[1]), apt_bench.load_run(sys.argv[2])
    cells = ["so", "uo"]
    a, b = (
        apt_bench.evaluate(
            policy, "rigid_pick_place", cells, tasks=[0], episodes=2, workers=0, progress=False
        )
        for policy in ("oracle", "random")
    )
    return a, b


def main() -> None:
    """Print the verdicts and write comparison.png."""
    a, b = two_runs()
    found = apt_bench.compare(a, b)
    rows = [*found.cells, found.overall]
    for row in rows:
        d = row.difference
        print(
            f"{row.name}: {100 * row.rate_a:.0f}% - {100 * row.rate_b:.0f}% = {100 * d.value:+.0f} points, "
            f"95% interval {100 * d.low:+.0f} to {100 * d.high:+.0f}, p {row.p:.3f}: {row.verdict}"
        )
    figure, axes = plt.subplots(figsize=(5, 0.6 * len(rows) + 1), layout="constrained")
    for y, row in enumerate(rows):
        axes.plot([100 * row.difference.low, 100 * row.difference.high], [y, y], color="tab:blue")
        axes.plot(100 * row.difference.value, y, "o", color="tab:blue")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlabel(f"{a.name} - {b.name}, points of success")
    figure.savefig("comparison.png", dpi=150)
    print("Figure: comparison.png")


if __name__ == "__main__":
    main()
