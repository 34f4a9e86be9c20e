"""Stored actions are read within limits, whatever size the file declares, and each episode executes its own."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.core.errors import UserError
from apt_bench.policies.simple import ReplayPolicy, load_actions, packed_actions, save_actions

ONE = np.linspace(-1, 1, 35).reshape(5, 7)


def test_actions_come_back_exactly(tmp_path):
    save_actions(tmp_path / "new/folder/a.npz", "toy/a", ONE)
    episode, actions = load_actions(tmp_path / "new/folder/a.npz")
    assert episode == "toy/a"
    assert np.array_equal(actions, ONE)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["a.npz"]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _claims(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


META = _npy(np.array(json.dumps({"episode": "e"})))


def _zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        _npy(ONE),  # an .npy called .npz
        _zip(meta=META),
        _zip(actions=_npy(ONE)),
        _zip(meta=_npy(np.array("{")), actions=_npy(ONE)),
        _zip(meta=_npy(np.array("[]")), actions=_npy(ONE)),
        _zip(meta=_npy(np.array('{"episode": 3}')), actions=_npy(ONE)),
        _zip(meta=_npy(ONE), actions=_npy(ONE)),
        _zip(meta=META, actions=_npy(ONE[:, :6])),
        _zip(meta=META, actions=_npy(ONE[0])),
        _zip(meta=META, actions=_npy(ONE * np.nan)),
        _zip(meta=META, actions=_npy(ONE.astype(str))),
        _zip(meta=META, actions=_npy(ONE.astype(complex))),
        _zip(meta=META, actions=_claims((10**12, 7))),  # 56 TB
        _zip(meta=META, actions=_claims((5, 7), "|O")),
        _zip(meta=META, actions=bytes(10**9 // 8)),  # 125 MB of zeros in 120 kB
        _zip(meta=META, actions=_npy(ONE))[:-30],
    ],
)
def test_what_holds_no_actions_is_a_user_error(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz"):
        load_actions(tmp_path / "x.npz")


@given(st.data())
def test_a_damaged_byte_is_actions_or_a_user_error(tmp_path_factory, data):
    content = bytearray(packed_actions("e", ONE))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert load_actions(path)[1].shape[1] == 7


def test_two_files_of_one_episode_must_agree(tmp_path):
    for name in ("a", "b"):
        save_actions(tmp_path / f"{name}.npz", "e", ONE)
    digest = ReplayPolicy(str(tmp_path)).spec.provenance.weights_sha256
    assert digest == ReplayPolicy.digest(str(tmp_path))
    save_actions(tmp_path / "b.npz", "e", ONE[:3])
    with pytest.raises(UserError, match="other actions for episode e"):
        ReplayPolicy(str(tmp_path))
    assert ReplayPolicy.digest(str(tmp_path)) != digest


@pytest.mark.parametrize("path", ["nowhere", "", "a\0b"])
def test_a_place_without_actions_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No stored actions"):
        ReplayPolicy(path)
    assert not list(Path.cwd().iterdir())
