"""Policies: what is evaluated."""
