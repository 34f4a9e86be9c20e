"""Demonstrations: record them, store them, read them back, replay them."""
