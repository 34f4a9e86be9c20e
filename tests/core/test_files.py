"""Files are read within limits, written whole or not at all, confined to their folder, and locked."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.core import files
from apt_bench.core.errors import UserError
from apt_bench.core.text import file_name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1e400", "too large"),
        ("[123456789012345678901234]", "too large"),
        ("9223372036854775808", "too large"),
        ("NaN", "not a JSON number"),
        ('{"a": 1, "a": 2}', "repeated"),
        ("[" * 100_000, "nested too deeply"),
        ('"\\ud800"', "surrogates not allowed"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_meant_is_a_value_error(text, why):
    with pytest.raises(ValueError, match=why):
        files.parse_json(text)


def test_json_of_older_versions_may_hold_nan():
    assert str(files.parse_json("[NaN, -Infinity]", constants=True)) == "[nan, -inf]"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"{", b'{"a": 1e999}', b"\x00" * 50, b""])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json"):
        files.read_json(path)


def test_a_byte_order_mark_is_dropped_and_long_files_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa4"}')
    assert files.read_json(path) == {"a": "ä"}
    with pytest.raises(UserError, match="longer than 5 bytes"):
        files.read_json(path, limit=5)
    for missing in (tmp_path / "none", tmp_path, Path("a\0b")):
        with pytest.raises(UserError):
            files.read_bytes(missing)


@given(
    st.dictionaries(st.text(st.characters(), max_size=5), st.floats() | st.text(st.characters(), max_size=5))
)
def test_what_write_json_writes_read_json_reads(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    files.write_json(path, value)
    assert len(files.read_json(path)) == len(value)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    code = (
        "import resource, sys; from pathlib import Path; from apt_bench.core.files import write_whole\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: write_whole(Path(sys.argv[1]), bytes(10**6))\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert files.read_json(path) == {"a": 1}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100


names = st.text(st.characters(), max_size=300) | st.sampled_from(
    ["..", ".", "", "a/../../b", "/etc", "CON", ".x"]
)


@given(names)
def test_a_file_name_is_one_component_of_its_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    made = file_name(name)
    path = files.inside(folder, made)
    assert path.parent == folder
    assert not made.startswith(".")
    assert 0 < len(made) <= 100
    assert file_name(made) == made


@given(names)
def test_inside_never_leaves_the_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    try:
        path = files.inside(folder, name)
    except UserError:
        return
    assert path.resolve().is_relative_to(folder.resolve())


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    (tmp_path / "in/loop").symlink_to("loop")
    for name in ("link/x", "../in2/x", "/etc/passwd", "loop/x"):
        with pytest.raises(UserError, match="leaves the folder"):
            files.inside(tmp_path / "in", name)


def test_a_second_writer_is_kept_out_and_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from apt_bench.core.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'apt-bench run'): print('in', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(UserError, match="Another apt-bench run is writing"),
            files.exclusive(tmp_path, "apt-bench run"),
        ):
            pass
        other.kill()
    with files.exclusive(tmp_path, "apt-bench run"):
        pass


@pytest.mark.parametrize("number", files.NOT_LOCKABLE)
def test_where_nothing_can_be_locked_it_is_said_and_the_work_goes_on(tmp_path, monkeypatch, capsys, number):
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with files.exclusive(tmp_path, "apt-bench train"):
        pass
    assert "cannot be locked here" in capsys.readouterr().err


def test_an_error_inside_is_not_taken_for_the_lock(tmp_path):
    with pytest.raises(BlockingIOError), files.exclusive(tmp_path, "apt-bench run"):
        raise BlockingIOError("of the block itself")


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/x", Path("a\0b")):
        with pytest.raises(UserError, match="Cannot write to"), files.exclusive(folder, "apt-bench run"):
            pass


def test_two_processes_that_write_one_file_do_not_meet(tmp_path):
    path = tmp_path / "x.json"
    code = "import sys; from pathlib import Path; from apt_bench.core.files import write_whole\n"
    code += "for _ in range(200): write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 10000)"
    both = [subprocess.Popen([sys.executable, "-c", code, path, text]) for text in "ab"]
    while any(process.poll() is None for process in both):
        if path.exists():
            content = path.read_bytes()
            assert content in (b"a" * 10000, b"b" * 10000)
    assert [process.returncode for process in both] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_device_or_a_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (Path("/dev/null"), Path("/dev/stdout"), tmp_path / "pipe", tmp_path / "null"):
        before = os.lstat(path)
        with pytest.raises(OSError, match="would be replaced"):
            files.write_whole(path, b"x")
        assert os.lstat(path).st_ino == before.st_ino
