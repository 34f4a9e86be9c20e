"""Training: from demonstrations to checkpoints, in one stage or two. docs/training.md shows the path of the data."""
