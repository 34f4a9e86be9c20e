"""Hostile files: reading one never blocks, fills the memory or writes elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from apt_bench.core import config, files
from apt_bench.core.config import parse_yaml
from apt_bench.core.errors import UserError
from apt_bench.core.files import parse_json, read_json, sha256, write_json
from tests.clock import in_time


@pytest.mark.parametrize("read", [read_json, files.read_text, files.read_bytes])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused_at_once(read, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(UserError, match="pipe, a socket or a device"):
            read(tmp_path / name)


def test_the_digest_of_a_pipe_is_an_error(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        sha256(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_is_never_written_through_what_lies_under_the_name_of_its_part(kind: str, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.write_text("kept")
    part = tmp_path / "run.json.part"
    part.symlink_to(mine) if kind == "link" else os.mkfifo(part)
    write_json(tmp_path / "run.json", {"a": 1})
    assert mine.read_text() == "kept"
    assert read_json(tmp_path / "run.json") == {"a": 1}


def test_a_repeated_key_among_very_many_is_found_quickly():
    text = "{" + ",".join(f'"k{i}": 0' for i in range(50_000)) + ', "k49999": 1}'
    begun = time.process_time()
    with pytest.raises(ValueError, match="'k49999' is repeated"):
        parse_json(text)
    assert in_time(time.process_time() - begun, 3)


def test_json_that_would_fill_the_memory_is_not_parsed():
    with pytest.raises(ValueError, match="more than 4,000,000 values"):
        parse_json("[" + "[]," * 3_000_000 + "[]]")


DOUBLED = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))
WIDE = "a: &a {" + ",".join(f"k{i}: 1" for i in range(1000)) + "}\nb: {<<: [" + "*a," * 10_000 + "]}"


@pytest.mark.parametrize("text", [DOUBLED, WIDE, "[" + "1," * 300_000 + "]"], ids=["doubled", "wide", "long"])
def test_yaml_that_grows_is_refused_before_it_has_grown(text: str):
    begun = time.process_time()
    with pytest.raises(UserError, match="more than 100,000 values"):
        parse_yaml(text, "x.yaml")
    assert in_time(time.process_time() - begun, 8)


def test_keys_do_not_count_as_values_of_yaml(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config, "YAML_VALUES", 1000)
    entries = [f"k{i}: 0" for i in range(1000)]
    assert parse_yaml("\n".join(entries[:-1]), "x.yaml")  # with the mapping itself 1,000 values
    with pytest.raises(UserError, match="more than 1,000 values"):
        parse_yaml("\n".join(entries), "x.yaml")


def test_very_many_keys_of_yaml_are_read_quickly():
    begun = time.process_time()
    assert len(parse_yaml("\n".join(f"k{i}: 0" for i in range(20_000)), "x.yaml")) == 20_000
    assert in_time(time.process_time() - begun, 4)


def test_a_number_of_yaml_has_a_bounded_length():
    with pytest.raises(UserError, match="a number of 59,999 characters"):
        parse_yaml("a: " + ":".join(["59"] * 20_000), "x.yaml")
    assert parse_yaml("a: [1:30, 0x10, 1.5, -.inf]", "x.yaml")["a"] == [90, 16, 1.5, float("-inf")]
