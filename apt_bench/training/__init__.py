"""Training: from demonstrations to checkpoints, in one stage or two. docs/training.md draws the path of the data."""
