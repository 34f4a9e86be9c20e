"""A policy's declarations and arguments: impossible values are refused, and the message names them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.policies.base import Interface, PolicySpec, Provenance, Resources
from apt_bench.policies.registry import find_policy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon", 0),
        ("horizon", 10**9),
        ("horizon", 2.5),
        ("horizon", True),
        ("execute", -1),
        ("execute", "3"),
        ("cameras", "agentview"),
        ("cameras", ("agentview", 3)),
        ("cameras", ("wrist", "wrist")),
        ("actions", "joint"),
        ("privileged", "no"),
        ("resources", {"num_gpus": 1}),
        ("resources", None),
        ("provenance", "weights.pt"),
        ("name", ""),
        ("name", None),
        ("name", "two\nlines"),
        ("name", "x" * 101),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"PolicySpec.*{field}"):
        PolicySpec(**{"name": "mine", field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Resources, "max_batch", 0),
        (Resources, "num_gpus", -1),
        (Resources, "num_gpus", math.nan),
        (Resources, "num_gpus", math.inf),
        (Resources, "placement", "somewhere"),
        (Provenance, "weights", 3),
        (Provenance, "about", {"step": math.nan}),
        (Provenance, "about", {"what": object()}),
        (Provenance, "about", [1]),
    ],
)
def test_resources_and_provenance_name_the_field_that_is_wrong(
    kind: type[Resources] | type[Provenance], field: str, value: object
) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}.*{field}"):
        kind(**{field: value})


def test_the_entry_of_run_json_is_flat_and_comes_back() -> None:
    spec = PolicySpec(
        "mine",
        cameras=("wrist",),
        horizon=4,
        execute=2,
        resources=Resources(num_gpus=0.5),
        provenance=Provenance("w.pt", "ab", {"step": 3}),
    )
    record = spec.to_record()
    assert list(record.items()) == [
        ("name", "mine"),
        ("cameras", ("wrist",)),
        ("horizon", 4),
        ("execute", 2),
        ("actions", "delta"),
        ("privileged", False),
        ("placement", "actor"),
        ("num_gpus", 0.5),
        ("max_batch", 16),
        ("weights", "w.pt"),
        ("weights_sha256", "ab"),
        ("about", {"step": 3}),
    ]
    written = json.loads(json.dumps({**record, "policy": "my:Policy", "args": {}, "newer": 1}))
    assert PolicySpec.from_record(written) == spec
    assert PolicySpec.from_record({"name": "old"}) == PolicySpec("old")
    for damaged in ({}, {"name": "mine", "max_batch": 0}, {"name": "mine", "cameras": 3}):
        with pytest.raises(UserError):
            PolicySpec.from_record(damaged)


def test_the_interface_is_recorded_and_comes_back() -> None:
    spec = PolicySpec("mine", interface=Interface("none", "unit_open", (224, 200), "bilinear", "server"))
    record = json.loads(json.dumps(spec.to_record()))
    assert record["interface"] == {
        "state": "none", "gripper": "unit_open", "image_size": [224, 200], "resize": "bilinear", "chunking": "server"
    }  # fmt: skip
    assert PolicySpec.from_record(record) == spec
    record["interface"]["newer"] = 1
    assert PolicySpec.from_record(record) == spec
    for name, value in (("gripper", "0 to 1"), ("image_size", [224]), ("chunking", None)):
        with pytest.raises(UserError, match=f"interface: {name}"):
            PolicySpec.from_record({**record, "interface": {**record["interface"], name: value}})


def test_a_number_from_an_array_and_a_list_of_cameras_are_fine() -> None:
    spec = PolicySpec(
        "mine", cameras=["wrist"], horizon=np.int64(4), resources=Resources(num_gpus=np.float32(0.5))
    )
    assert spec == PolicySpec("mine", cameras=("wrist",), horizon=4, resources=Resources(num_gpus=0.5))
    assert type(spec.horizon) is int


@pytest.mark.parametrize(
    ("policy", "argument", "message"),
    [
        ("random", "seed=-1", "Policy 'random': seed is -1; it must be at least 0"),
        ("random", "seed=true", "Policy 'random': seed is True; it must be a whole number"),
        ("random", "seed=1e400", "'seed' is inf; it must be text, a finite number"),
        ("random", "seed=.nan", "a finite number"),
        ("random", "seed=2020-01-01", "a finite number"),
        ("random", "seed=[1, 2", "--policy-arg seed is not YAML"),
        ("random", "seed=", "seed is None"),
        ("random", "sed=1", "unexpected keyword argument 'sed'"),
        ("oracle", "variation=true", "Policy 'oracle': variation is True"),
        ("oracle", "variation=3", "variation is 3.*at most 2"),
        ("oracle", "seed=-5", "Policy 'oracle': seed is -5"),
        ("apt_mini", "execute=0", "Policy 'apt_mini': execute is 0; it must be at least 1"),
        ("apt_mini", "execute=17", "Policy 'apt_mini': execute=17; the policy's chunks have 16 steps"),
        ("apt_mini", "sample_steps=true", "Policy 'apt_mini': sample_steps is True"),
        ("apt_mini", "sample_steps=7", "sample_steps=7 must divide"),
        ("apt_mini", "seed=-1", "Policy 'apt_mini': seed is -1"),
        ("apt_mini", "max_batch=0", "Policy 'apt_mini': max_batch is 0"),
        ("apt_mini", "cameras=[1]", "Policy 'apt_mini': cameras is 1"),
        ("apt_mini", "precision=fp16", "Policy 'apt_mini': precision is 'fp16'"),
        ("apt_mini", "device=3", "Policy 'apt_mini': device is 3"),
        ("apt_mini", "device=abacus", "Policy 'apt_mini' cannot be made: it raised RuntimeError"),
        ("tests.toy:PushPolicy", "noise=1e400", "'noise' is inf"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_by_name(
    policy: str, argument: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find_policy(policy, (argument,)).load()


def test_numbers_as_people_write_them_are_numbers() -> None:
    args = ("a=1e-3", "b=3", 'c="1e-3"', "d=1e-3 m", "e=-.5e1", "f=[1, two]", "g=nan")
    found = find_policy("tests.toy:PushPolicy", args).args
    assert found == {"a": 0.001, "b": 3, "c": "1e-3", "d": "1e-3 m", "e": -5.0, "f": [1, "two"], "g": "nan"}
    assert type(found["b"]) is int


def test_an_argument_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--policy-arg seed is given twice"):
        find_policy("random", ("seed=1", "seed=2"))


def test_a_policy_bears_the_name_that_was_typed(tmp_path) -> None:
    assert find_policy("apt_mini", ("device=cpu",)).load().spec.name == "apt_mini"
    (tmp_path / "mine.yaml").write_text("policy: apt_bench.policies.simple:RandomPolicy\nargs: {seed: 3}\n")
    assert find_policy(str(tmp_path / "mine.yaml")).load().spec.name == "mine"
    assert find_policy("tests.toy:PushPolicy").load().spec.name == "push"  # a class names itself
    with pytest.raises(UserError, match="Policy 'mine': seed"):
        find_policy(str(tmp_path / "mine.yaml"), ("seed=-1",)).load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aptmini", "No policy 'aptmini'. Did you mean 'apt_mini'"),
        ("nofile.yaml", "nofile.yaml"),
        ("../baselines/random", "No policy"),
        ("x" * 5000, "No policy"),
        ("nul\0.yaml", "nul"),
        ("tests.toy:WORLD", "is not a policy"),
        ("tests.toy:Nothing", "has no 'Nothing'"),
        ("builtins:type", "is not a policy"),
    ],
)
def test_a_name_that_is_no_policy_is_one_message(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_policy(name).load()
