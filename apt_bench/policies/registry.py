"""Policies by name: one YAML each in `baselines/`, what installed packages add, or any class as
`my_module:MyPolicy`."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from apt_bench.core.config import Range, argv_of_module, build, load_object, parse_yaml, read_yaml
from apt_bench.core.errors import PolicyFault, ServerLost, UserError, did_you_mean
from apt_bench.core.paths import data_dir
from apt_bench.core.plugins import find_plugins
from apt_bench.core.text import file_name, one_line
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import GuardedPolicy, guard, guarded


@dataclass(frozen=True)
class PolicyRef:
    """How to make a policy. Small and picklable: weights are loaded where the policy runs.

    placement and num_gpus: where it will run, for classes that only know their spec once loaded.
    """

    name: str  # as it was asked for: of a YAML, then also its spec's; or "module:Class", whose spec names itself
    policy: str  # "module:Class"
    about: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None  # the argument that `--policy NAME FILE` fills
    placement: Literal["worker", "actor"] = "actor"
    num_gpus: Annotated[float, Range(least=0, most=1024)] = 0.0
    published: str | None = None  # its row in the paper's tables
    conventions: Mapping[str, str] = field(
        default_factory=dict
    )  # what its wire or weights expect, for people

    def load(self) -> GuardedPolicy:
        """Make the policy. Raises UserError where the class or its arguments do not fit, whatever the class raises."""
        return self.make(load_object(self.policy))

    def make(self, kind: Any) -> GuardedPolicy:
        """The same of the class `kind`, which need not be importable."""
        return self._ready(lambda: self._made(kind))

    def checked(self, policy: Policy) -> GuardedPolicy:
        """The same of a policy that is made already."""
        if not (hasattr(policy, "act") and hasattr(policy, "reset")):
            raise UserError(f"'{self.policy}' is no policy: it needs `spec`, `reset` and `act`.")
        return self._ready(lambda: policy)

    def _ready(self, make: Callable[[], Policy]) -> GuardedPolicy:
        try:
            found = guard(guarded(make))
        except PolicyFault as fault:
            raise UserError(f"Policy '{self.name}' cannot be made: it {fault}.") from fault
        except ServerLost as error:
            raise UserError(f"Policy '{self.name}' cannot be made: its server is gone: {error}.") from error
        except UserError as error:
            raise UserError(f"Policy '{self.name}': {error}") from error
        spec = self.named(found.spec)
        if spec.privileged and spec.resources.placement != "worker":
            raise UserError(
                f"Policy '{self.name}' is privileged: its spec must have resources=Resources(placement='worker')."
            )
        return dataclasses.replace(found, spec=spec)

    def named(self, spec: PolicySpec) -> PolicySpec:
        """The spec under the name that people see: of a YAML the one that they typed."""
        return spec if ":" in self.name else dataclasses.replace(spec, name=self.name)

    def check(self) -> None:
        """Raises UserError where the class is no policy or the arguments do not fit it. Makes nothing."""
        try:
            self._fits(load_object(self.policy))
        except UserError as error:
            raise UserError(f"Policy '{self.name}': {error}") from error

    def declared(self) -> PolicySpec | None:
        """What the class declares before it is made; None where only the made policy says."""
        kind = load_object(self.policy)
        try:
            found = guarded(lambda: getattr(kind, "spec", None))
        except (PolicyFault, ServerLost):  # `load` says what is wrong
            return None
        return found if isinstance(found, PolicySpec) else None

    def digest(self) -> str | None:
        """Hash of the weights that the policy would load, found without loading them: of the class's own
        `digest(**args)`, where it has one. Raises UserError where there are none."""
        kind = load_object(self.policy)
        if not callable(getattr(kind, "digest", None)):
            return None
        try:
            return str(guarded(lambda: kind.digest(**self.args)))
        except (PolicyFault, ServerLost):  # `load` says what is wrong
            return None

    def _made(self, kind: Any) -> Policy:
        self._fits(kind)
        with argv_of_module(self.policy.partition(":")[0]):
            policy: Policy = kind(**self.args)
        return policy

    def _fits(self, kind: Any) -> None:
        if not (callable(kind) and hasattr(kind, "act") and hasattr(kind, "reset")):
            raise UserError(f"'{self.policy}' is no policy: it needs `spec`, `reset` and `act`.")
        try:
            inspect.signature(kind).bind(**self.args)
        except TypeError as error:
            raise UserError(f"{error}. Give arguments as --policy-arg key=value.") from None

    def resolve(self) -> PolicyRef:
        """The same with `placement` and `num_gpus` of the class's own spec, where the class has one."""
        declared = self.declared()
        if declared is not None:
            return dataclasses.replace(
                self, placement=declared.resources.placement, num_gpus=declared.resources.num_gpus
            )
        return self

    def identity(self, spec: PolicySpec) -> dict[str, Any]:
        """What `run.json` keeps: enough to say whether two runs are of one policy."""
        return {"policy": self.policy, "args": dict(self.args), **spec.to_record()}

    def label(self, spec: PolicySpec) -> str:
        """A folder's name: the policy's, and six hex digits where arguments or weights tell two apart."""
        name = file_name(spec.name)
        if not self.args and spec.provenance.weights is None:
            return name
        text = json.dumps(self.identity(spec), sort_keys=True, default=str)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def baseline_names() -> list[str]:
    """Names of the shipped policies."""
    return sorted(p.stem for p in data_dir("baselines").glob("*.yaml"))


def policy_names() -> list[str]:
    """Every name that `--policy` takes: shipped policies, then those that installed packages add. Imports none."""
    shipped = baseline_names()
    return [*shipped, *(name for name in find_plugins("apt_bench.policies") if name not in shipped)]


def load_baseline(name: str) -> PolicyRef:
    """A shipped policy by name, one that an installed package adds, or any by the path of its YAML file."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not os.path.isfile(path):  # False also for what is too long to be a path
            raise UserError(
                f"No file '{name}'. Give --policy the path of a YAML file, or a name of `apt-bench ls policies`."
            )
    elif name in baseline_names():
        path = data_dir("baselines") / f"{name}.yaml"
    elif name in (others := find_plugins("apt_bench.policies")):
        return PolicyRef(name, others[name].target, f"Added by the package {others[name].package}.")
    else:
        known = {*baseline_names(), *others}
        raise UserError(
            f"No policy '{name}'. {did_you_mean(name, known)} Your own: --policy my_module:MyPolicy."
        )
    ref: PolicyRef = build(PolicyRef, {"name": path.stem, **read_yaml(path)}, str(path))
    return ref


def find_policy(
    name: str, args: Sequence[str] | Mapping[str, Any] = (), file: str | None = None
) -> PolicyRef:
    """The policy that the command line means.

    args: `key=value` texts, values read as YAML scalars; or a mapping of values. file: for policies that execute one.
    """
    ref = PolicyRef(name, name) if ":" in name else load_baseline(name)
    given: dict[str, Any] = dict(args) if isinstance(args, Mapping) else {}
    for text in () if isinstance(args, Mapping) else args:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--policy-arg takes key=value, not '{text}'.")
        if key in given:
            raise UserError(f"--policy-arg {key} is given twice.")
        given[key] = _argument(value, f"--policy-arg {key}")
    values = {**ref.args, **given}
    if file is not None:
        if ref.file is None:
            raise UserError(f"Policy '{name}' takes no file, but '{file}' was given.")
        values[ref.file] = file
    elif ref.file is not None and ref.file not in values:
        raise UserError(f"Policy '{name}' needs a file: --policy {name} FILE.")
    for key, value in values.items():
        _check_argument(value, f"Policy '{name}': argument '{key}'")
    return dataclasses.replace(ref, args=values).resolve()


def _argument(text: str, where: str) -> Any:
    """The value that a person typed. YAML reads 1e-4 as text; it is a number."""
    value = parse_yaml(text, where)
    if value == text.strip() and value.lstrip("+-.")[:1].isdigit():
        with suppress(ValueError):
            return float(value)
    return value


def _check_argument(value: Any, where: str) -> None:
    """Arguments go into `run.json`. Raises UserError for what JSON has no word for: dates, NaN, infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        shown = one_line(repr(value), 80)
        raise UserError(
            f"{where} is {shown}; it must be text, a finite number, true, false, null or a list."
        ) from None
