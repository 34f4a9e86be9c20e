"""The oracle: a scripted expert on privileged state. It perceives nothing from images."""

from apt_bench.policies.oracle.policy import OraclePolicy

__all__ = ["OraclePolicy"]
