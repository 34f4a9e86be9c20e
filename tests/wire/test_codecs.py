"""The codecs against recorded frames of the genuine packages, and against damaged ones."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from apt_bench.wire import groot, json_numpy, openpi, vla_eval
from apt_bench.wire.arrays import WireError, array_of

GOLDEN = Path(__file__).parent / "golden"
CODECS: dict[str, ModuleType] = {
    "openpi": openpi,
    "starvla": openpi,
    "vlaeval": vla_eval,
    "groot": groot,
    "openvla": json_numpy,
    "oft": json_numpy,
}
FRAMES = sorted(p for d in CODECS for p in (GOLDEN / d).iterdir() if p.suffix in (".bin", ".http"))
BODIES = [p for p in FRAMES if "health" not in p.name and "config" not in p.name]


def body(path: Path) -> bytes:
    data = path.read_bytes()
    return data.partition(b"\r\n\r\n")[2] if path.suffix == ".http" else data


def read(name: str) -> Any:
    path = GOLDEN / name
    return CODECS[path.parent.name].decode(body(path))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, vla_eval.Message):
        return same(
            [a.type, a.seq, a.timestamp, dict(a.payload)], [b.type, b.seq, b.timestamp, dict(b.payload)]
        )
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(type(a) is type(b) and a == b)


@pytest.mark.parametrize("path", BODIES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_recorded_frame_survives_a_round_trip(path: Path) -> None:
    codec = CODECS[path.parent.name]
    message = codec.decode(body(path))
    again = codec.encode(message)
    assert same(codec.decode(again), message)
    compressed = b"__image__" in body(path)
    spaced = path.suffix == ".http" and "response" in path.name  # another writer of JSON
    if not compressed and not spaced:
        assert again == body(path)


def test_what_the_frames_hold() -> None:
    request = read("openpi/04_request_8x8.bin")
    assert (request["observation/image"].dtype, request["observation/image"].shape) == (np.uint8, (8, 8, 3))
    assert request["observation/image"][0, -1].tolist() == [0, 255, 0]  # the upper right corner
    actions = read("openpi/03_reply_h10_f64_first.bin")["actions"]
    assert (actions.dtype, actions.shape, actions[0, 0]) == (np.float64, (10, 7), -0.9)
    actions[:, 6] = 1  # writable
    message = read("vlaeval/04_observation_png_8x8.bin")
    assert (message.type, message.seq) == ("observation", 3)
    np.testing.assert_array_equal(message.payload["images"]["agentview"], request["observation/image"])
    assert read("vlaeval/19_observation_jpeg_16x16.bin").payload["images"]["wrist"].shape == (16, 16, 3)
    chunk, _ = read("groot/08_action_nested_reply.bin")
    assert (chunk["x"].dtype, chunk["x"].shape, chunk["gripper"].shape) == (
        np.float32,
        (1, 16, 1),
        (1, 16, 1),
    )
    assert read("openvla/04_act_double_encoded_response.http").shape == (7,)
    assert len(read("oft/04_act_double_encoded_response.http")) == 8
    assert read("oft/06_act_error_one_image_response.http") == "error"


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "|u1", "<i8", "|b1", ">f4", "<f2"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_arrays_of_every_kind(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for codec in (openpi, groot, json_numpy):
        found = codec.decode(codec.encode({"x": array}))["x"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
        strided = codec.decode(codec.encode({"x": array.T}))["x"]
        np.testing.assert_array_equal(strided, array.T)
    other = groot.decode(groot.encode({"x": array, "y": np.float32(2.5)}, "msgpack_numpy"))
    np.testing.assert_array_equal(other["x"], array)
    assert other["y"] == np.float32(2.5)


@pytest.mark.parametrize(
    "text", ['"__numpy__": ""', '{"__numpy__": ""}', "\\", "ü \u2028 \x00", 'a\\"__numpy__']
)
def test_json_is_what_the_standard_library_writes(text: str) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    found = json_numpy.encode({text: [text, array, {"x": np.float32(0.5)}], "n": None})
    coded = {"__numpy__": "AAECAwQF", "dtype": "|u1", "shape": [2, 3]}
    scalar = {"__numpy__": "AAAAPw==", "dtype": "<f4", "shape": []}
    assert found == json.dumps({text: [text, coded, {"x": scalar}], "n": None}).encode()


def test_a_map_that_looks_like_an_array_is_not_sent() -> None:
    with pytest.raises(WireError, match="the key `__numpy__`"):
        json_numpy.encode({"x": {"__numpy__": ""}, "y": np.zeros(2)})


def test_numbers_of_numpy() -> None:
    found = openpi.decode(openpi.encode({"x": np.float32(0.1), "n": np.int64(7)}))
    assert found == {"x": np.float32(0.1), "n": 7}
    assert isinstance(found["x"], np.float32)
    assert (
        vla_eval.decode(vla_eval.encode(vla_eval.Message("action", {"x": np.float64(0.1)}))).payload["x"]
        == 0.1
    )


def test_an_array_in_fortran_order_is_read() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    file = io.BytesIO()
    np.save(file, array)
    message = openpi.encode({"__ndarray_class__": True, "as_npy": file.getvalue()})
    np.testing.assert_array_equal(groot.decode(message), array)


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (b"1234", "<f4", [2]),
        (b"", "<f4", [10**9, 10**9]),
        (b"1234", "<f4", [-1, -1]),
        (b"1234", "<f4", [True]),
        (b"1234", "<f4", "1"),
        (b"1234", "<f4", [1] * 40),
        (b"12345678", "|O", [1]),
        (b"1234", "|V4", [1]),
        (b"1234", "<U1", [1]),
        (b"1234", "(2,)<i2", [1]),
        (b"1234", "no such dtype", [1]),
        (b"1234", None, [1]),
        (b"1234", [("a", "<f4")], [1]),
        ("1234", "<f4", [1]),
        (None, "<f4", [1]),
    ],
)
def test_an_array_that_does_not_fit_is_refused(data: Any, dtype: Any, shape: Any) -> None:
    with pytest.raises(WireError):
        array_of(data, dtype, shape)
    for message, codec in (
        ({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}, openpi),
        ({"nd": True, "kind": "", "data": data, "type": dtype, "shape": shape}, groot),
    ):
        with pytest.raises(WireError):
            codec.decode(openpi.encode(message))


def test_objects_are_neither_sent_nor_read() -> None:
    for codec in (openpi, groot, json_numpy):
        for value in (np.array([object()]), np.array(["text"]), np.array([1j]), object(), {1, 2}):
            with pytest.raises(WireError):
                codec.encode({"x": value})


@pytest.mark.parametrize("path", BODIES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_damaged_frames_raise_one_kind_of_error(path: Path) -> None:
    codec, data = CODECS[path.parent.name], body(path)
    rng = random.Random(path.name)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged) + 1)]
        with contextlib.suppress(WireError):
            codec.decode(bytes(damaged))


@pytest.mark.parametrize("codec", [openpi, vla_eval, groot, json_numpy])
def test_deep_and_huge_claims_are_refused(codec: ModuleType) -> None:
    text = codec is json_numpy
    for frame in (
        b"[" * 100_000 if text else b"\x91" * 100_000,  # nested
        b"" if text else b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xff\xfe" if text else b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes
        b'{"__numpy__": "!!", "dtype": "<f4", "shape": [1]}' if text else b"\x81\x90\x01",  # a list as a key
    ):
        with pytest.raises(WireError):
            codec.decode(frame)


def test_a_text_frame_is_refused() -> None:
    text = (GOLDEN / "openpi/07_error_traceback.txt").read_text()
    for codec in (openpi, vla_eval, groot):
        with pytest.raises(WireError, match="text frame"):
            codec.decode(text)


@pytest.mark.parametrize(
    "message", [[], {}, {"type": 3}, {"type": "hello", "payload": []}, {"type": "x", "seq": "1"}]
)
def test_vla_eval_messages_have_their_parts(message: Any) -> None:
    with pytest.raises(WireError):
        vla_eval.decode(openpi.encode(message))


def test_an_image_that_lies_about_its_size_is_refused() -> None:
    frame = body(GOLDEN / "vlaeval/04_observation_png_8x8.bin").replace(
        b"\x93\x08\x08\x03", b"\x93\x09\x08\x03"
    )
    with pytest.raises(WireError, match="claims the shape"):
        vla_eval.decode(frame)
