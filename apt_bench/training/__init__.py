"""Training: demonstrations to checkpoints, in two stages."""
