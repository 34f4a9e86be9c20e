"""Policies: the contract, the shipped ones, and how a name becomes a policy."""
