"""Records and run directories: every value is kept, every interrupted run resumes, damage is named."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.core.errors import UserError
from apt_bench.runs.records import EpisodeRecord, RunStore, finished_keys
from tests.core.test_jsonable import anything
from tests.runs import record

PROTOCOL = {"suite": "toy", "seed": 7, "execute": 3, "cells": {"a": {"max_steps": 5}}}
POLICY = {"policy": "m:P", "args": {"noise": 0.5}, "name": "p", "weights_sha256": "aa", "horizon": 4}
RUN = {"policy": POLICY, "requested": {"a": {"t": 3}}}
ONE = record("a", "t", 0, True)


@given(anything, anything, st.text(st.characters()), st.floats() | st.integers())
def test_a_record_of_any_values_is_written_and_reads_back(events, seconds, text, number):
    odd = dataclasses.replace(
        ONE, events={"x": events}, seconds={"policy": seconds}, error=text, steps=number, prompt=text
    )
    line = odd.to_json()
    line.encode()
    assert "\n" not in line
    again = EpisodeRecord.from_json(line)
    assert again.key == ONE.key
    assert again.to_json() == line
    assert pickle.loads(pickle.dumps(odd)) == again


def test_what_environments_and_policies_bring_is_kept(tmp_path):
    odd = dataclasses.replace(
        ONE,
        steps=np.int64(5),
        decisions=2.0,
        seconds={"physics": np.float32(0.5), "policy": float("nan")},
        events={
            "at": np.zeros(3),
            "grad": torch.ones(1, requires_grad=True) * 2,
            3: {"a"},
            "lock": threading.Lock(),
        },
        flags=np.array(["odd"]),
        error=["two", "\ud800"],
        failure=ValueError("no"),
    )
    store = RunStore.create(tmp_path / "run", PROTOCOL, RUN)
    store.append(odd)
    (back,) = store.episodes()
    assert (back.steps, back.decisions, back.flags, back.failure) == (5, 2, ("odd",), "no")
    assert back.events["at"] == [0.0, 0.0, 0.0]
    assert back.events["grad"] == [2.0]
    assert back.events["3"] == ["a"]
    assert json.loads(back.error) == ["two", "\\ud800"]
    assert pickle.loads(pickle.dumps(odd)) == back  # a lock cannot be pickled; its record can


@pytest.mark.parametrize(
    "values",
    [{"events": {"x": list(range(10**6))}}, {"error": "e" * 10**7}, {"prompts": {"a": "\x01" * 10**7}}],
)
def test_an_enormous_record_is_bounded(values):
    assert len(dataclasses.replace(ONE, **values).to_json()) < 30e6


def test_records_of_older_versions_are_read():
    line = (
        ONE.to_json()
        .replace('"physics":1.0', '"physics":NaN')
        .replace('"attempt":1', '"attempt":1,"newer":[]')
    )
    assert np.isnan(EpisodeRecord.from_json(line).seconds["physics"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"steps":100', '"steps":1e400'),
        ('"steps":100', '"steps":100.5'),
        ('"steps":100', '"steps":true'),
        ('"steps":100', '"steps":-1'),
        ('"steps":100', '"steps":99999999999999999999'),
        ('"init":0', '"init":-1'),
        ('"init":0', '"init":"0"'),
        ('"outcome":"success"', '"outcome":"won"'),
        ('"outcome":"success"', '"outcome":null'),
        ('"events":{}', '"events":[]'),
        ('"flags":[]', '"flags":"x"'),
        ('"prompts":{}', '"prompts":{},"prompts":{}'),
        ('"suite":"libero_pro",', ""),
        ("{", "["),
    ],
)
def test_a_line_that_is_no_record_is_damaged(tmp_path, old, new):
    store = RunStore.create(tmp_path / "run", PROTOCOL, RUN)
    store.append(ONE)
    damaged = ONE.to_json().replace(old, new)
    assert damaged != ONE.to_json()
    assert EpisodeRecord.from_json(ONE.to_json()) == ONE  # its entries are not checked again
    store.episodes_path.write_text(f"{ONE.to_json()}\n{damaged}\n{ONE.to_json()}\n")
    with pytest.raises(UserError, match=r"line 2, is damaged"):
        store.episodes()


def _die_at(number: int) -> None:
    """End this process at the given file operation, before it happens, as a kill would."""
    left = [number]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate"):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

    sys.addaudithook(hook)


def test_a_run_directory_that_was_cut_at_any_write_goes_on(tmp_path):
    def whole(out: Path) -> None:
        store = RunStore.create(out, PROTOCOL, RUN)
        store.put("actions/a/t_init0.npz", b"x")
        store.append(ONE)

    cuts = 0
    for number in range(100):
        out = tmp_path / str(number) / "run"
        out.parent.mkdir()
        if (child := os.fork()) == 0:
            _die_at(number)
            whole(out)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        whole(out)
        RunStore(out).sweep()
        assert [r.key for r in RunStore.open(out).episodes()] == [ONE.key]
        assert not list(out.rglob("*.part"))
        if code == 0:
            break
        cuts += 1
    assert 8 <= cuts < 99


@pytest.mark.parametrize("left", ["actions/a/x.npz", "videos/x.mp4.part", "run.json", "protocol.json.part"])
def test_what_a_killed_start_leaves_is_no_obstacle_but_other_files_are(tmp_path, left):
    store = RunStore.create(tmp_path / "run", PROTOCOL, RUN)
    (store.path / left).parent.mkdir(exist_ok=True, parents=True)
    (store.path / left).write_bytes(b"torn")
    other = {**PROTOCOL, "seed": 8}
    assert RunStore.create(store.path, other, RUN).protocol()["seed"] == 8  # nothing was recorded yet
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and holds no run"):
        RunStore.create(tmp_path / "full", PROTOCOL, RUN)


def _begun(path: Path) -> RunStore:
    store = RunStore.create(path, PROTOCOL, RUN)
    store.append(ONE)
    return store


def test_a_name_is_for_people_and_identity_is_class_arguments_and_weights(tmp_path):
    store = _begun(tmp_path / "run")
    same = {**POLICY, "name": "typed", "num_gpus": 1.0, "max_batch": 3, "newer": 1, "weights": "elsewhere"}
    assert store.earlier(PROTOCOL, same) == store.run()
    for change in (
        {"args": {"noise": 0.5, "x": 1}},
        {"args": {}},
        {"policy": "m:Q"},
        {"weights_sha256": "bb"},
    ):
        with pytest.raises(UserError, match="holds a run of another policy"):
            store.earlier(PROTOCOL, {**POLICY, **change})
    with pytest.raises(UserError, match=r"another protocol \(seed: 7 there, 8 now"):
        store.earlier({**PROTOCOL, "seed": 8}, POLICY)


def test_a_vanished_run_directory_is_never_written_to_again(tmp_path):
    store = _begun(tmp_path / "run")
    shutil.move(store.path, tmp_path / "gone")
    for folder_is_there in (False, True):  # gone, or the empty place where a disk was mounted
        if folder_is_there:
            store.path.mkdir()
        for write in (
            lambda: store.append(ONE),
            lambda: store.put("videos/a/x.mp4", b""),
            lambda: store.update_run(RUN),
        ):
            with pytest.raises(FileNotFoundError, match="vanished"):
                write()
        assert not store.path.exists() or not list(store.path.iterdir())
    store.path.rmdir()
    shutil.move(tmp_path / "gone", store.path)
    store.append(dataclasses.replace(ONE, key=dataclasses.replace(ONE.key, init=1)))
    assert len(finished_keys(store.episodes())) == 2


@pytest.mark.parametrize("call", ["fsync", "truncate"])
def test_an_error_of_the_device_leaves_whole_lines(tmp_path, monkeypatch, call):
    store = _begun(tmp_path / "run")

    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        if call == "truncate":
            patch.setattr(os, "truncate", broken)
        with pytest.raises(OSError, match="Input/output"):
            store.append(dataclasses.replace(ONE, key=dataclasses.replace(ONE.key, init=1)))
    store.append(dataclasses.replace(ONE, key=dataclasses.replace(ONE.key, init=2)))
    found = {r.key.init for r in store.episodes()}
    assert {0, 2} <= found
    assert all(json.loads(line) for line in store.episodes_path.read_text().splitlines())


FIELDS = [
    "policy",
    "requested",
    "requested_probes",
    "unavailable",
    "sequential",
    "wall_seconds",
    "workers",
    "started",
]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value", ['"apt"', "3", "[1]", '{"x": "y"}', "1e400", "true", "-1", "null", '{"name": [], "looks": 3}']
)
def test_run_json_is_of_the_types_that_readers_expect_or_damaged(tmp_path, name, value):
    store = _begun(tmp_path / "run")
    (store.path / "run.json").write_text(f'{{"{name}": {value}}}')
    try:
        read = store.run()
    except UserError as error:
        damaged = str(error)
        read = {}
    else:
        damaged = "run.json is damaged" if value != "1e400" else ""
    assert "run.json is damaged" in damaged
    if name in read:
        kinds = {"wall_seconds": (int, float), "workers": int, "started": str}
        assert isinstance(read[name], kinds.get(name, dict))


def test_a_damaged_protocol_is_named(tmp_path):
    store = _begun(tmp_path / "run")
    for text in (
        "[]",
        '{"suite": 3}',
        '{"cells": [1]}',
        '{"suite": "a", "suite": "b"}',
        "\xff",
        '{"x": NaN}',
    ):
        (store.path / "protocol.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=r"protocol\.json"):
            store.protocol()
