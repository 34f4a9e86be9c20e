"""Statistics of runs: data frames, comparisons of two runs, checks against a baseline."""
