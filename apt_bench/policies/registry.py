"""Policies by name: one YAML each in `baselines/`, or any class as `my_module:MyPolicy`."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from apt_bench.core.config import build, load_object, read_yaml
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.paths import data_dir
from apt_bench.policies.base import Policy, PolicySpec


@dataclass(frozen=True)
class PolicyRef:
    """How to make a policy. Small and picklable: weights are loaded where the policy runs.

    placement and num_gpus: where it will run, for classes that only know their spec once loaded.
    """

    name: str
    policy: str  # "module:Class"
    about: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None  # the argument that `--policy NAME FILE` fills
    placement: Literal["worker", "actor"] = "actor"
    num_gpus: float = 0.0
    published: str | None = None  # its row in the paper's tables
    conventions: Mapping[str, str] = field(
        default_factory=dict
    )  # what its wire or weights expect, for people

    def load(self) -> Policy:
        """Make the policy. Raises UserError where the class or its arguments do not fit."""
        kind = load_object(self.policy)
        if not (callable(kind) and hasattr(kind, "act") and hasattr(kind, "reset")):
            raise UserError(f"'{self.policy}' is no policy: it needs `spec`, `reset` and `act`.")
        try:
            inspect.signature(kind).bind(**self.args)
        except TypeError as error:
            raise UserError(
                f"Policy '{self.name}': {error}. Give arguments as --policy-arg key=value."
            ) from None
        try:
            policy: Policy = kind(**self.args)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"Policy '{self.name}' cannot be made: {type(error).__name__}: {error}."
            ) from error
        if not isinstance(getattr(policy, "spec", None), PolicySpec):
            raise UserError(f"Policy '{self.name}' has no `spec` of type apt_bench.policies.base.PolicySpec.")
        if policy.spec.privileged and policy.spec.placement != "worker":
            raise UserError(f"Policy '{self.name}' is privileged: its spec must say placement='worker'.")
        return policy

    def resolve(self) -> PolicyRef:
        """The same with `placement` and `num_gpus` of the class's own spec, where the class has one."""
        declared = getattr(load_object(self.policy), "spec", None)
        if isinstance(declared, PolicySpec):
            return dataclasses.replace(self, placement=declared.placement, num_gpus=declared.num_gpus)
        return self

    def identity(self, spec: PolicySpec) -> dict[str, Any]:
        """What `run.json` keeps: enough to say whether two runs are of one policy."""
        return {"policy": self.policy, "args": dict(self.args), **dataclasses.asdict(spec)}

    def label(self, spec: PolicySpec) -> str:
        """A folder's name: the policy's, and six hex digits where arguments or weights tell two apart."""
        if not self.args and spec.weights is None:
            return spec.name
        text = json.dumps(self.identity(spec), sort_keys=True, default=str)
        return f"{spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def baseline_names() -> list[str]:
    """Names of the shipped policies."""
    return sorted(p.stem for p in data_dir("baselines").glob("*.yaml"))


def load_baseline(name: str) -> PolicyRef:
    """A shipped policy by name, or any by the path of its YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else data_dir("baselines") / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"No policy '{name}'. {did_you_mean(name, baseline_names())} Your own: --policy my_module:MyPolicy."
        )
    ref: PolicyRef = build(PolicyRef, {"name": path.stem, **read_yaml(path)}, str(path))
    return ref


def find_policy(name: str, args: Sequence[str] = (), file: str | None = None) -> PolicyRef:
    """The policy that the command line means.

    args: `key=value` texts, values read as YAML scalars. file: for policies that execute one.
    """
    ref = PolicyRef(name.rpartition(":")[2], name) if ":" in name else load_baseline(name)
    values = dict(ref.args)
    for text in args:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--policy-arg takes key=value, not '{text}'.")
        values[key] = yaml.safe_load(value)
    if file is not None:
        if ref.file is None:
            raise UserError(f"Policy '{name}' takes no file, but '{file}' was given.")
        values[ref.file] = file
    elif ref.file is not None and ref.file not in values:
        raise UserError(f"Policy '{name}' needs a file: --policy {name} FILE.")
    return dataclasses.replace(ref, args=values).resolve()
