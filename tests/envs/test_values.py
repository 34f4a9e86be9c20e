"""Environments, their files and their ids reject invalid values and name them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_bench.core import provenance
from apt_bench.core.errors import UserError
from apt_bench.envs.gym import SuiteEnv
from apt_bench.envs.libero import compose
from apt_bench.envs.libero import tasks as libero_tasks
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.envs.tabletop.tasks import check_args
from apt_bench.suites import Cell, load_suite


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"suite": "rigid_pick_plac"}, "No suite 'rigid_pick_plac'"),
        ({"cell": "sso"}, "no cell 'sso'. Did you mean 'so'?"),
        ({"cameras": ("agent_view",)}, "no camera 'agent_view'. Did you mean 'agentview'?"),
        ({"cameras": "wirst"}, "no camera 'wirst'. Did you mean 'wrist'?"),
        ({"cameras": (3,)}, "no camera '3'"),
        ({"render_mode": "human"}, "No render mode 'human'"),
    ],
)
def test_a_gymnasium_environment_names_invalid_arguments(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        SuiteEnv(**{"suite": "rigid_pick_place", "cell": "so", **words})
    assert message in str(refused.value)


@pytest.mark.parametrize("init", [-1, 1000, 1.5, True, "3", np.int64(-2), float("nan"), 10**30])
def test_an_unknown_initial_state_is_named(init: Any) -> None:
    env = SuiteEnv("rigid_pick_place", "so", cameras=())
    with pytest.raises(UserError, match="init"):
        env.reset(seed=0, options={"task": 0, "init": init})
    env.close()


def test_a_gymnasium_environment_refuses_another_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "on_record", lambda: {"mujoco 3.2.3": {"mujoco": ["0" * 64]}})
    with pytest.raises(UserError, match="module 'mujoco' is another"):
        SuiteEnv("rigid_pick_place", "so")
    SuiteEnv("rigid_pick_place", "so", unpinned=True).close()


@pytest.mark.parametrize(
    "args",
    [
        {"ambiguity": True},
        {"ambiguity": float("nan")},
        {"ambiguity": -0.1},
        {"ambiguity": [0.2]},
        {"disturbance": float("inf")},
        {"disturbance": True},
        {"stages": ["plat"]},
        {"stages": [["store"]]},
        {"layout": ["table"]},
        {"robot": {"panda": 1}},
        {"colour": 1},
    ],
)
def test_arguments_of_a_tabletop_cell_are_checked(args: dict[str, Any]) -> None:
    cell = load_suite("rigid_pick_place").cell("train")
    with pytest.raises(UserError, match=r"(?i)cell 'train'"):
        check_args(dataclasses.replace(cell, args={**cell.args, **args}))


@pytest.mark.parametrize(
    "args", [{}, {"mode": "coaching"}, {"mode": "x", "pairs": "done"}, {"mode": ["chaining"]}]
)
def test_arguments_of_a_composed_cell_are_checked(args: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"(?i)cell 'c': args need"):
        compose.cell_tasks(Cell("c", "C", 100, "text", args=args))


BAD_BDDL = {
    "empty": b"",
    "no goal": b"(define (:language a))",
    "empty goal": b"(define (:language a) (:init) (:goal))",
    "a goal of nothing": b"(define (:language a) (:init) (:goal ()))",
    "a dash at the end": b"(define (:language a) (:objects x -) (:init) (:goal (on a b)))",
    "groups as names": b"(define ((x) y) (:language (a)) (:init) (:goal (on a b)))",
    "groups as objects": b"(define (:language a) (:objects (x) - y) (:init) (:goal (on a b)))",
    "an atom of groups": b"(define (:language a) (:init (on (a) b)) (:goal (on a b)))",
    "an atom that is a word": b"(define (:language a) (:init on) (:goal (and on)))",
    "not UTF-8": b"(define (:language \xff))",
    "deep": b"(" * 100_000,
}


@pytest.mark.parametrize("name", BAD_BDDL)
def test_a_broken_bddl_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.bddl").write_bytes(BAD_BDDL[name])
    with pytest.raises(UserError, match=r"x\.bddl"):
        read_bddl(tmp_path / "x.bddl")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"benchmarks": []},
        {"benchmarks": {"libero_goal": 3}},
        {"benchmarks": {"libero_goal": {"base": "libero_goal"}}},
        {"benchmarks": {"libero_goal": {"base": "libero_goal", "tasks": [{"name": 3, "file": "x"}]}}},
        {"benchmarks": {"libero_goal": {"base": "b", "tasks": [{"name": "n", "file": "x", "inits": -1}]}}},
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / libero_tasks.MANIFEST).write_text(json.dumps(content))
    monkeypatch.setattr(libero_tasks, "data_dir", lambda kind: tmp_path)
    with pytest.raises(UserError, match=libero_tasks.MANIFEST):
        libero_tasks.manifest.__wrapped__()


@pytest.mark.parametrize("content", ["[]", '{"mujoco 3.2.3": []}', '{"mujoco 3.2.3": {"mujoco": "x"}}', "{"])
def test_a_damaged_record_of_the_simulator_is_named(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / provenance.PINS).write_text(content)
    monkeypatch.setattr(provenance, "data_dir", lambda kind: tmp_path)
    with pytest.raises(UserError, match=provenance.PINS):
        provenance.on_record.__wrapped__()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY", None])
def test_broken_initial_states_are_named(tmp_path: Path, content: bytes | None, monkeypatch) -> None:
    path = tmp_path / "x.npz"
    if content is None:
        np.savez(path, states=np.array([["a"]]))
    else:
        path.write_bytes(content)
    monkeypatch.setattr(libero_tasks, "init_path", lambda *place: path)
    with pytest.raises(UserError, match=r"x\.npz"):
        libero_tasks.load_inits("a", "b")


@pytest.mark.sim
def test_a_camera_that_the_scene_lacks_is_named() -> None:
    env = TabletopEnv()
    env.reset(load_suite("rigid_pick_place").select(["so"], episodes=1)[0])
    for picture in (env.frame, env.segmentation):
        with pytest.raises(UserError, match="no camera 'front'"):
            picture("front")
    env.close()


def plain(value: Any) -> bool:
    """Return whether JSON stores the value unchanged."""
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.sim
@pytest.mark.parametrize(("suite", "cell"), [("composite", "coaching_seen"), ("libero_compose", "coaching")])
def test_events_are_plain_numbers(suite: str, cell: str) -> None:
    from apt_bench.core.config import load_object

    loaded = load_suite(suite)
    spec = dataclasses.replace(loaded.select([cell], episodes=1)[0], max_steps=12)
    env = load_object(loaded.env)()
    env.reset(spec)
    while not env.outcome().done:
        env.step_chunk(np.random.default_rng(0).uniform(-1, 1, (6, 7)))
    outcome = env.outcome()
    assert plain(dict(outcome.events)), outcome.events
    assert type(outcome.success) is bool
    env.close()
