"""apt-bench: does a robot policy follow the instruction, or only what it sees?

The public API is `__all__`; docs/api.md describes it. A name is imported when it is first used.
"""

__version__ = "0.1.0"

__all__ = [
    "EpisodeSpec",
    "Observation",
    "Policy",
    "PolicySpec",
    "Provenance",
    "Resources",
    "Run",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "load_run",
    "make_env",
    "register_suite",
    "run",
]

TYPE_CHECKING = False  # importing typing takes time; type checkers accept this name
if TYPE_CHECKING:
    from apt_bench.api.environments import make_env
    from apt_bench.api.evaluate import evaluate, run
    from apt_bench.api.runs import Run, compare, load_run
    from apt_bench.core.errors import UserError
    from apt_bench.envs.base import Observation
    from apt_bench.policies.base import Policy, PolicySpec, Provenance, Resources
    from apt_bench.suites import EpisodeSpec, register_suite

_MODULES = {
    "Run": "api.runs",
    "compare": "api.runs",
    "evaluate": "api.evaluate",
    "load_run": "api.runs",
    "make_env": "api.environments",
    "run": "api.evaluate",
    "EpisodeSpec": "suites",
    "Observation": "envs.base",
    "Policy": "policies.base",
    "PolicySpec": "policies.base",
    "Provenance": "policies.base",
    "Resources": "policies.base",
    "UserError": "core.errors",
    "register_suite": "suites",
}
"""Name -> module that defines it."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'apt_bench' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"apt_bench.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
