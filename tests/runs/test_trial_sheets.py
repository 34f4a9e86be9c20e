"""Sheets as spreadsheets save them, and texts that a spreadsheet must not run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apt_bench.core.errors import UserError
from apt_bench.runs.robot_trials import (
    Condition,
    import_sheet,
    new_sheet,
    read_plan,
    read_sheet,
    write_sheets,
)
from apt_bench.runs.trial_sheets import read_rows, write_csv

PLAN = 'cell,task,instruction,trials\nso,cup,"move, the\ncup",2\nuo,lemon,go;now,1\n'
FOUND = [Condition("so", "cup", "move, the\ncup", 2), Condition("uo", "lemon", "go;now", 1)]


def semicolons(text: str) -> str:
    return text.replace(",", ";").replace("move; the", "move, the").replace("go;now", '"go;now"')


@pytest.mark.parametrize(
    "save",
    [
        str.encode,
        lambda t: ("\ufeff" + t).encode(),
        lambda t: t.replace("\n", "\r\n").replace("the\r\n", "the\n").encode(),
        lambda t: semicolons(t).encode(),
        lambda t: ("sep=;\n" + semicolons(t)).encode(),
        lambda t: ("\ufeffSEP=;\r\n" + semicolons(t)).encode(),
        lambda t: ("sep=,\n" + t).encode(),
        lambda t: ("sep=;,,,\n" + t).encode(),  # a spreadsheet that took the line for a row has saved it again
        lambda t: ("sep=\t\n" + t.replace(",", "\t").replace("move\t", "move,")).encode(),
        lambda t: t.replace(",", "\t").replace("move\t", "move,").encode("utf-16"),
        lambda t: ("\ufeff" + t).encode("utf-16-be"),
        lambda t: t.replace("cell,task", "Cell , TASK").encode(),
        lambda t: ("\n,,,\n" + t + ",,,\n\n").encode(),
        lambda t: t.replace("trials\n", "trials,,,\n").replace(",2\n", ",2,,,\n").encode(),
    ],
)  # fmt: skip
def test_a_plan_is_understood_however_a_spreadsheet_saves_it(
    tmp_path: Path, save: Callable[[str], bytes]
) -> None:
    (tmp_path / "plan.csv").write_bytes(save(PLAN))
    assert read_plan(tmp_path / "plan.csv") == FOUND


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cell,task,instruction,trials\nso,caf\u00e9,x,1\n".encode("cp1252"), "not text in UTF-8 .*'CSV UTF-8'"),
        (PLAN.encode("utf-16-le"), "null bytes"),
        (b"cell,task,task,instruction,trials\na,b,c,d,1\n", "two columns 'task'"),
        (b"cell,task,instruction,trials\na,b,c,1,,x\n", "row 2: 6 cells under 4 headings; 'x' has no heading"),
        (b'cell,task,instruction,trials\na,"b,c,1\n', "is not a CSV file"),
        (b"cell,task,instruction,trials\n" + b"".join(b"a,%d,c,10000\n" % i for i in range(11)), "than 100,000"),
        (b"cell,tasks,instruction,trials\n", "no column 'task'.*Did you mean 'tasks'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "plan.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path / "plan.csv")


texts = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), max_size=12
) | st.sampled_from(
    ["=1+1", "'=1", "''@x", "-x", "+4", "-4", "@a", 'a"b', "a,b", "a;b", "a\nb", "'x", "\uff1dx"]
)
words = texts.map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words, words, words, st.lists(words, min_size=1, max_size=3, unique=True), st.integers(0, 2**63 - 1))
def test_whatever_new_writes_is_read_back(
    tmp_path: Path, cell: str, task: str, instruction: str, policies: list[str], seed: int
) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    try:
        sheet, key = new_sheet([Condition(cell, task, instruction, 2)], policies, "my suite", seed)
    except UserError as error:
        assert "share the folder name" in str(error)  # noqa: PT017
        return
    for row in sheet:
        row["outcome"] = "1"
    hidden = write_sheets(folder / "sheet.csv", sheet, key)
    with open(folder / "sheet.csv", newline="", encoding="utf-8") as file:
        for row in list(csv.reader(file))[1:]:
            assert not any(c[:1] in "=@\uff1d" for c in row if c)
    filled = read_sheet(folder / "sheet.csv", hidden)
    assert len(filled.records) == 2 * len(policies)
    assert {(r.policy, r.key.cell, r.key.task, r.prompt, r.key.seed) for r in filled.records} == {
        (p, cell, task, instruction, seed) for p in policies
    }  # fmt: skip


def test_a_seed_of_19_digits_comes_back_and_one_that_a_spreadsheet_rounded_is_named(tmp_path: Path) -> None:
    seed = 1234567890123456789
    sheet, key = new_sheet([Condition("so", "cup", "go", 1)], ["a"], "s", seed)
    sheet[0]["outcome"] = "success"
    hidden = write_sheets(tmp_path / "sheet.csv", sheet, key)
    (path,) = import_sheet(tmp_path / "sheet.csv", hidden, tmp_path / "runs")
    assert f'"seed": {seed}' in (path / "protocol.json").read_text()
    text = (tmp_path / "sheet.csv").read_text().replace(str(seed), "1.23457E+18")
    (tmp_path / "rounded.csv").write_text(text)
    with pytest.raises(
        UserError, match="a spreadsheet has rounded the seed: restore the seed that `trials new` was given"
    ):
        read_sheet(tmp_path / "rounded.csv", hidden)


@pytest.mark.parametrize(
    ("outcome", "score", "seconds"),
    [("1", "1", "12.5"), ("1,0", "1,00", "12,5"), ("TRUE", "1.", "12.5"), ("Yes", "1", "12,50"), ("y", "1.0", "12.5")],
)  # fmt: skip
def test_numbers_and_words_as_a_spreadsheet_writes_them(
    tmp_path: Path, outcome: str, score: str, seconds: str
) -> None:
    sheet, key = new_sheet([Condition("so", "cup", "go", 1)], ["a"], "s", 0, ["t1"])
    sheet[0] |= {"outcome": outcome, "score_t1": score, "seconds": seconds}
    (record,) = read_sheet(tmp_path / "s.csv", write_sheets(tmp_path / "s.csv", sheet, key)).records
    assert (record.outcome, record.events["scores"], record.seconds) == (
        "success",
        {"t1": 1},
        {"trial": 12.5},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": ["a/b", "a_b"]}, "'a/b' and 'a_b' share the folder name"),
        ({"policies": ["A", "a"]}, "share the folder name"),
        ({"suite": " "}, "Name the suite"),
        ({"seed": 2**63}, "below 2 to the power of 63"),
        ({"seed": -1}, "a whole number from 0"),
        ({"scores": ["t 1"]}, "'t 1' is not a name of a score"),
    ],
)
def test_what_could_not_be_imported_is_refused_before_any_trial(
    change: dict[str, object], message: str
) -> None:
    values = {"plan": [Condition("so", "cup", "go", 1)], "policies": ["a"], "suite": "s", "seed": 0, **change}
    with pytest.raises(UserError, match=message):
        new_sheet(**values)  # type: ignore[arg-type]


def test_sheet_and_key_are_written_both_or_not_at_all(tmp_path: Path) -> None:
    sheet, key = new_sheet([Condition("so", "cup", "go", 1)], ["a"], "s", 0)
    (tmp_path / "s.key.csv").write_text("mine")
    with pytest.raises(UserError, match=r"s\.key\.csv already exists"):
        write_sheets(tmp_path / "s.csv", sheet, key)
    assert [p.name for p in tmp_path.iterdir()] == ["s.key.csv"]
    with pytest.raises(UserError, match="is not the name of a file"):
        write_sheets(Path("."), sheet, key)
    with pytest.raises(UserError, match="Cannot write"):
        write_csv(Path("/proc/none/s.csv"), sheet)


def test_rows_are_numbered_as_a_spreadsheet_does(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n"one\ntwo",1\n\n3,4\n')
    assert [n for n, _ in read_rows(tmp_path / "x.csv", ("a", "b"))] == [2, 4]


def test_a_folder_whose_name_is_a_files_is_not_called_a_sheet(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write .*file/x\.csv: "):
        write_csv(tmp_path / "file/x.csv", [{"a": "1"}])
