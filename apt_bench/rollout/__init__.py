"""Rollouts: episodes from specs and a policy, in one process or many."""
