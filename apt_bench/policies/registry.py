"""Find a policy by its name and make it.

A name is that of a YAML file in `baselines/`, of an entry point of an installed package, the path of a YAML file, or a
class as `my_module:MyPolicy`.
"""

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
from types import MappingProxyType
from typing import Annotated, Any, Literal

from apt_bench.core.config import Range, argv_of_module, build, load_object, parse_yaml, read_yaml
from apt_bench.core.errors import PolicyFault, ServerLost, UserError, did_you_mean
from apt_bench.core.paths import data_dir
from apt_bench.core.plugins import find_plugins
from apt_bench.core.text import file_name, one_line
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import GuardedPolicy, guard, guarded
from apt_bench.policies.remote.links import expand_ports

LEDGER = "llm_questions.jsonl"
"""File of a run directory: what each question to a language model cost."""


@dataclass(frozen=True)
class PolicyRef:
    """How to make a policy: a class, its arguments, and where it runs. It is small and can be pickled; the weights are
    loaded in the process that runs the policy.

    The fields are the keys of a policy's YAML file, whose name gives `name`. `placement` and `num_gpus` are those of
    `Resources`. They are needed here for a class whose `spec` exists only after loading.

    Args:
        name: The name on the command line. "module:Class" means the name in the class's spec.
        policy: "module:Class".
        about: One sentence for `apt-bench ls policies`.
        args: Arguments of the class.
        file: Name of the argument that `--policy NAME FILE` fills; None where it takes no file.
        without_file: "module:Class" of the policy where no file is given; None where it needs one.
        server: Example of an address for `--server`, whose addresses the class gets as `server`; None where the policy
            has no server.
        servers: The servers' addresses, one each. They are not part of the policy's identity.
        llm: Whether the policy asks a language model. It then takes --llm-model, --max-cost and --cassette, and
            `server` is the model's API, which the environment may name instead of --server.
        local: Names of arguments that are not part of the policy's identity, such as paths and budgets.
        placement: "actor" or "worker".
        num_gpus: GPUs of one actor.
        published: The policy's row in the tables of the paper.
        conventions: What the policy's protocol or weights expect, for readers of the file.
    """

    name: str
    policy: str
    about: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    without_file: str | None = None
    server: str | None = None
    servers: tuple[str, ...] = ()
    llm: bool = False
    local: tuple[str, ...] = ()
    placement: Literal["worker", "actor"] = "actor"
    num_gpus: Annotated[float, Range(least=0, most=1024)] = 0.0
    published: str | None = None
    conventions: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> GuardedPolicy:
        """Import the class and make the policy.

        Raises:
            UserError: The class cannot be imported, is not a policy, does not take these arguments, or raised anything.
        """
        return self.make(load_object(self.policy))

    def make(self, kind: Any) -> GuardedPolicy:
        """`load` with the class `kind`, which need not be importable."""
        return self._ready(lambda: self._made(kind))

    def checked(self, policy: Policy) -> GuardedPolicy:
        """`load` with an instance, which is only checked."""
        if not (hasattr(policy, "act") and hasattr(policy, "reset")):
            raise UserError(f"'{self.policy}' is not a policy: it needs `spec`, `reset` and `act`.")
        return self._ready(lambda: policy)

    def _ready(self, make: Callable[[], Policy]) -> GuardedPolicy:
        try:
            found = guard(guarded(make))
        except PolicyFault as fault:
            raise UserError(f"Policy '{self.name}' cannot be made: it {fault}.") from fault
        except ServerLost as error:
            start = self.conventions.get("start")
            how = f" Start the server first: {start}" if start else ""
            raise UserError(f"Policy '{self.name}' cannot reach its server: {error}.{how}") from error
        except UserError as error:
            raise UserError(f"Policy '{self.name}': {error}") from error
        spec = self.named(found.spec)
        if spec.privileged and spec.resources.placement != "worker":
            raise UserError(
                f"Policy '{self.name}' is privileged: its spec must have resources=Resources(placement='worker')."
            )
        return dataclasses.replace(found, spec=spec)

    def named(self, spec: PolicySpec) -> PolicySpec:
        """The spec with the name that reports show: the one on the command line, unless that was a class."""
        return spec if ":" in self.name else dataclasses.replace(spec, name=self.name)

    def check(self) -> None:
        """Raise UserError where the class is not a policy or does not take these arguments. Makes nothing."""
        try:
            self._fits(load_object(self.policy))
        except UserError as error:
            raise UserError(f"Policy '{self.name}': {error}") from error

    def declared(self) -> PolicySpec | None:
        """The class's own `spec`; None where only the instance has one."""
        kind = load_object(self.policy)
        try:
            found = guarded(lambda: getattr(kind, "spec", None))
        except (PolicyFault, ServerLost):  # `load` reports the error
            return None
        return found if isinstance(found, PolicySpec) else None

    def digest(self) -> str | None:
        """Hash of the weights that the policy would load, from the class's own `digest(**args)`.

        Returns:
            The hash; None where the class has no `digest` or it fails.

        Raises:
            UserError: The weights are missing.
        """
        kind = load_object(self.policy)
        if not callable(getattr(kind, "digest", None)):
            return None
        try:
            return str(guarded(lambda: kind.digest(**self.args)))
        except (PolicyFault, ServerLost):  # `load` reports the error
            return None

    def _made(self, kind: Any) -> Policy:
        self._fits(kind)
        with argv_of_module(self.policy.partition(":")[0]):
            policy: Policy = kind(**self._arguments())
        return policy

    def _arguments(self) -> dict[str, Any]:
        return {**self.args, "server": list(self.servers)} if self.servers else dict(self.args)

    def for_worker(self, number: int) -> PolicyRef:
        """A copy for rollout worker `number`, whose list of servers starts with another server than its neighbour's."""
        first = number % len(self.servers) if self.servers else 0
        return dataclasses.replace(self, servers=self.servers[first:] + self.servers[:first])

    def for_run(self, out: Path) -> PolicyRef:
        """A copy for the workers of a run. What a language model costs is counted in the run directory `out`."""
        if not self.llm:
            return self
        return dataclasses.replace(self, args={**self.args, "ledger": str(out.resolve() / LEDGER)})

    def _fits(self, kind: Any) -> None:
        if not (callable(kind) and hasattr(kind, "act") and hasattr(kind, "reset")):
            raise UserError(f"'{self.policy}' is not a policy: it needs `spec`, `reset` and `act`.")
        try:
            inspect.signature(kind).bind(**self._arguments())
        except TypeError as error:
            raise UserError(f"{error}. Give arguments as --policy-arg key=value.") from None

    def resolve(self) -> PolicyRef:
        """A copy with `placement` and `num_gpus` of the class's own spec, or else of its `resources(**args)`, where
        the class has one of them."""
        declared, kind = self.declared(), load_object(self.policy)
        if declared is not None:
            found = declared.resources
        elif callable(getattr(kind, "resources", None)):
            found = kind.resources(**self.args)
        else:
            return self
        return dataclasses.replace(self, placement=found.placement, num_gpus=found.num_gpus)

    @property
    def own_args(self) -> dict[str, Any]:
        """The arguments that are part of the policy's identity."""
        return {name: value for name, value in self.args.items() if name not in self.local}

    def identity(self, spec: PolicySpec) -> dict[str, Any]:
        """The `policy` entry of `run.json`, which shows whether two runs are of one policy."""
        return {"policy": self.policy, "args": self.own_args, **spec.to_record()}

    def label(self, spec: PolicySpec) -> str:
        """The policy's part of a run directory's name. Six hex digits distinguish arguments and weights."""
        name = file_name(spec.name)
        if not self.own_args and spec.provenance.weights is None:
            return name
        recorded = self.identity(dataclasses.replace(spec, interface=None))  # follows from the rest
        text = json.dumps(recorded, sort_keys=True, default=str)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def baseline_names() -> list[str]:
    """Names of the shipped policies, sorted."""
    return sorted(p.stem for p in data_dir("baselines").glob("*.yaml"))


def policy_names() -> list[str]:
    """Names of the shipped policies, then of those that installed packages add. Imports none of them."""
    shipped = baseline_names()
    return [*shipped, *(name for name in find_plugins("apt_bench.policies") if name not in shipped)]


def load_baseline(name: str) -> PolicyRef:
    """Find a policy by its name or the path of its YAML file.

    Args:
        name: A shipped policy, one that an installed package adds, or a path that ends in .yaml or .yml.

    Returns:
        The reference, without the user's arguments.

    Raises:
        UserError: There is no such policy, or its YAML file is invalid.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not os.path.isfile(path):  # False also for a text that is too long for a path
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


LLM_OPTIONS = {"model": "--llm-model", "max_cost": "--max-cost", "cassette": "--cassette"}
"""Argument of a policy that asks a language model -> its option."""


def find_policy(
    name: str,
    args: Sequence[str] | Mapping[str, Any] = (),
    file: str | None = None,
    servers: Sequence[str] = (),
    llm: Mapping[str, Any] = MappingProxyType({}),
) -> PolicyRef:
    """Find a policy and give it arguments, as `--policy NAME FILE --policy-arg KEY=VALUE --server ADDRESS` does.

    Args:
        name: A name or path, see `load_baseline`, or "module:Class".
        args: Texts `key=value`, whose values are read as YAML; or a mapping of values.
        file: The file of a policy that takes one.
        servers: Addresses of the policy's servers; `host:8000-8003` means four.
        llm: Arguments of a policy that asks a language model, from --llm-model, --max-cost and --cassette. None and
            empty values count as not given.

    Returns:
        The reference, with `placement` and `num_gpus` of the class's spec.

    Raises:
        UserError: There is no such policy, an argument is invalid or given twice, or `file` is missing or not wanted.
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
    for key, value in llm.items():
        if value is None or value == ():
            continue
        if not ref.llm:
            raise UserError(f"Policy '{name}' asks no language model, but {LLM_OPTIONS[key]} was given.")
        if key in given:
            raise UserError(
                f"{LLM_OPTIONS[key]} and --policy-arg {key} are the same argument. Give one of them."
            )
        given[key] = list(value) if isinstance(value, tuple) else value
    values = {**ref.args, **given}
    if file is not None:
        if ref.file is None:
            raise UserError(f"Policy '{name}' takes no file, but '{file}' was given.")
        values[ref.file] = file
    elif ref.without_file is not None and ref.file not in values:
        ref = dataclasses.replace(ref, policy=ref.without_file)
    elif ref.file is not None and ref.file not in values:
        raise UserError(f"Policy '{name}' needs a file: --policy {name} FILE, or --checkpoint FILE.")
    for key, value in values.items():
        _check_argument(value, f"Policy '{name}': argument '{key}'")
    servers = tuple(servers) or ref.servers
    if servers and ref.server is None and ":" not in name:
        raise UserError(f"Policy '{name}' has no server, but --server {servers[0]} was given.")
    if ref.server is not None and not servers and not ref.llm:
        raise UserError(f"Policy '{name}' needs its server's address: --server {ref.server}.")
    each = tuple(address for text in servers for address in expand_ports(text))
    return dataclasses.replace(ref, args=values, servers=each).resolve()


def _argument(text: str, where: str) -> Any:
    """The value of an argument. YAML reads 1e-4 as text; here it is a number."""
    value = parse_yaml(text, where)
    if value == text.strip() and value.lstrip("+-.")[:1].isdigit():
        with suppress(ValueError):
            return float(value)
    return value


def _check_argument(value: Any, where: str) -> None:
    """Raise UserError for a value that `run.json` cannot store: dates, NaN, infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        shown = one_line(repr(value), 80)
        raise UserError(
            f"{where} is {shown}; it must be text, a finite number, true, false, null or a list."
        ) from None
