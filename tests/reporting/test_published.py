"""Published figures are numbers, or the file, line and column that are wrong are named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apt_bench.core.errors import UserError
from apt_bench.core.paths import data_dir
from apt_bench.reporting.headline_tables import suite_tables
from apt_bench.reporting.published import published, read_published
from tests.runs import make_run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'method'"),
        (b"methods,so\nA,1\n", "no column 'method'. Did you mean 'methods'"),
        ("method,so\nA\u00e9,1\n".encode("cp1252"), "is not UTF-8 text"),
        (b"method,so\nA,1e400\n", "line 2: 'so' is '1e400'; it must be a number from 0 to 100"),
        (b"method,so\nA,nan\n", "'so' is 'nan'"),
        (b"method,so\nA,-1\n", "'so' is '-1'"),
        (b"method,so\nA,101\n", "'so' is '101'"),
        (b"method,so\nA,fifty\n", "'so' is 'fifty'"),
        (b"method,so\n,50\n", "line 2: 'method' is empty"),
        (b"method,so\nA,1,2\n", "3 cells under 2 headings"),
        (b"method,so,so\nA,1,2\n", "column 'so' twice"),
        (b'method,so\n"A,1\n', "is not a CSV file"),
        (b"method,successes,trials\nA,3,2\n", "more successes than trials"),
        (b"method,successes,trials\nA,3,\n", "'trials' is ''; it must be a whole number"),
        (b"method,successes,trials\nA,\xc2\xb2,2\n", "'successes' is"),
    ],
)
def test_a_wrong_file_is_named_with_its_line_and_column(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_column_is_named_before_it_is_used() -> None:
    with pytest.raises(UserError, match=r"libero_pro\.csv has no column 'mode'"):
        published("libero_pro.csv", ("method", "mode"))


def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes("\ufeffmethod,so\r\nA,50\r\nB,\r\n\r\n".encode())
    rows = read_published(path)
    assert [r.method for r in rows] == ["A", "B"]
    assert rows[0].number("so") == 50
    assert math.isnan(rows[1].number("so"))
    assert math.isnan(rows[1].number("uo"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_files_never_crash(tmp_path: Path, place: int, noise: bytes) -> None:
    content = (data_dir("published") / "real_world.csv").read_bytes()
    path = tmp_path / "p.csv"
    path.write_bytes(content[:place] + noise + content[place + 1 :])
    try:
        rows = read_published(path, ("method", "successes", "trials"))
    except UserError:
        return
    assert all(0 <= r.number("successes") <= r.number("trials") for r in rows)


def test_a_shipped_network_is_marked_as_trained_on_other_data(tmp_path: Path) -> None:
    policy = {"about": {"shipped": "1.3 M parameters"}}
    shipped = make_run(tmp_path / "a", lambda c, t, i: True, {"object_pos": 1}, policy=policy)
    own = make_run(tmp_path / "b", lambda c, t, i: True, {"object_pos": 1})
    table = suite_tables([shipped, own], "libero_pro")[0]
    (note,) = [n for n in table.notes if "trained on other data" in n]
    assert note.startswith("a is the network that ships with apt-bench (1.3 M parameters)")


def test_the_table_says_how_its_published_rows_are_measured() -> None:
    (table,) = suite_tables([], "libero_pro")
    (note,) = [n for n in table.notes if n.startswith("To measure a published row")]
    assert "openvla or openvla-rest for OpenVLA" in note
    assert "pi05 for pi0.5, " in note
    assert "apt for APT, apt for APT (Ft VLM) " in note
    assert all(f" for {row.method}" in note for row in published("libero_pro.csv"))
    (other,) = suite_tables([], "rigid_pick_place")
    assert not any(n.startswith("To measure") for n in other.notes)
