"""Environments: one robot in one scene, one episode at a time."""
