"""Pretraining of the mini VLM on rendered scenes and sentences about them, without actions."""
