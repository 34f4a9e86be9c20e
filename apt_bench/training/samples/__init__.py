"""From demonstrations to batches: sources, episodes, frames, the stream of samples, VLM features, batches."""
