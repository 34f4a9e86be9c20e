"""Environments: one robot, one scene, one episode at a time."""
