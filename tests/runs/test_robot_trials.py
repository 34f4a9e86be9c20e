"""Trial sheets: randomised, blinded, matched, and read back without losing or inventing a trial."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from apt_bench.analysis.compare import compare
from apt_bench.analysis.run import load_runs
from apt_bench.cli import build
from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive
from apt_bench.reporting.headline_tables import real_table
from apt_bench.reporting.table import Rate
from apt_bench.runs.robot_trials import Condition, import_sheet, new_sheet, read_plan, read_sheet, write_csv

PLAN = [
    Condition("so", "cup", "move the cup to the plate", 6),
    Condition("uo", "lemon", "move the lemon to the bowl", 4),
]


def write_sheet(
    folder: Path, fill: bool = True, policies: tuple[str, ...] = ("apt", "pi05")
) -> tuple[Path, Path]:
    """A sheet whose trials `apt` all wins and `pi05` all loses."""
    sheet, key = new_sheet(PLAN, policies, "real_pick_place", 3, ("t1",))
    who = {row["code"]: row["policy"] for row in key}
    for row in sheet if fill else []:
        row["outcome"] = "success" if who[row["code"]] == "apt" else "failure"
    folder.mkdir(exist_ok=True)
    write_csv(folder / "sheet.csv", sheet)
    write_csv(folder / "sheet.key.csv", key)
    return folder / "sheet.csv", folder / "sheet.key.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def change(path: Path, number: int, **values: str) -> None:
    """Change the line that a spreadsheet calls `number`."""
    table = rows(path)
    table[number - 2].update(values)
    path.unlink()
    write_csv(path, table)


def test_sheet_is_blinded_matched_and_random() -> None:
    sheet, key = new_sheet(PLAN, ["apt", "pi05"], "real_pick_place", 3)
    assert len(sheet) == 20
    assert not any("apt" in value or "pi05" in value for row in sheet for value in row.values())
    assert [k["code"] for k in key] == sorted(row["code"] for row in sheet)
    who = {row["code"]: row["policy"] for row in key}
    tries = Counter((row["cell"], row["task"], row["init"], who[row["code"]]) for row in sheet)
    assert len(tries) == 20
    assert set(tries.values()) == {1}
    for first, second in zip(
        sheet[::2], sheet[1::2], strict=True
    ):  # one block: same condition, both policies
        assert (first["task"], first["init"]) == (second["task"], second["init"])
    order = [who[row["code"]] for row in sheet[::2]]
    assert 0 < order.count("apt") < 10  # neither always goes first
    assert new_sheet(PLAN, ["apt", "pi05"], "real_pick_place", 3)[0] == sheet
    assert new_sheet(PLAN, ["apt", "pi05"], "real_pick_place", 4)[0] != sheet


def test_from_sheet_to_table_three(tmp_path: Path) -> None:
    sheet, key = write_sheet(tmp_path)
    change(sheet, 2, score_t1="1", notes="slipped, then held", seconds="12,5")
    runs = load_runs([str(p) for p in import_sheet(sheet, key, tmp_path / "runs")])
    assert [r.label for r in runs] == ["apt", "pi05"]
    first = real_table(runs).rows[0].values
    assert isinstance(first["pick_place.so"], Rate)
    assert (first["pick_place.so"].text(), first["pick_place.total"].text()) == ("6/6", "10/10")  # type: ignore[union-attr]
    found = compare(*runs)
    assert (found.overall.paired, found.overall.n_a, found.overall.only_a, found.overall.verdict) == (
        True,
        10,
        10,
        "A better",
    )
    assert sum(r.frame.seconds_trial.sum() for r in runs if "seconds_trial" in r.frame) == 12.5


def test_a_sheet_can_be_imported_as_it_fills(tmp_path: Path) -> None:
    sheet, key = write_sheet(tmp_path, fill=False)
    with pytest.raises(UserError, match="already exists"):
        write_sheet(tmp_path)
    change(sheet, 3, outcome="1")
    change(sheet, 5, outcome="error", notes="gripper jammed")
    assert read_sheet(sheet, key).open == 18
    import_sheet(sheet, key, tmp_path / "runs")
    change(sheet, 4, outcome="no", failure="dropped")
    paths = import_sheet(sheet, key, tmp_path / "runs")
    runs = load_runs([str(p) for p in paths])
    assert sum(len(r.frame) for r in runs) == 3
    assert sum(int(r.frame.finished.sum()) for r in runs) == 2
    assert [sum(r.requested.values()) for r in runs] == [10, 10]
    change(sheet, 4, outcome="yes")
    with pytest.raises(UserError, match="imported before with another outcome"):
        import_sheet(sheet, key, tmp_path / "runs")


def test_every_bad_row_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    sheet, key = write_sheet(tmp_path)
    change(sheet, 3, outcome="maybe")
    change(sheet, 4, score_t1="2", seconds="long")
    change(sheet, 5, code="AAAA")
    change(sheet, 6, code=rows(sheet)[5]["code"])
    change(sheet, 8, init="first", cell="")
    with pytest.raises(UserError) as caught:
        import_sheet(sheet, key, tmp_path / "runs")
    text = str(caught.value)
    for part in ["row 3: outcome 'maybe' is not one of success", "row 4: 'score_t1' must be 0, 1", "row 4: 'seconds'",
                 "row 5: code 'AAAA' is not in the key", "row 7: code", "row 8: 'init'", "row 8: 'cell'"]:  # fmt: skip
        assert part in text, text
    assert not (tmp_path / "runs").exists()


def test_a_lost_row_is_noticed(tmp_path: Path) -> None:
    sheet, key = write_sheet(tmp_path)
    kept = rows(sheet)[:-2]
    sheet.unlink()
    write_csv(sheet, kept)
    with pytest.raises(UserError, match=r"2 codes of sheet\.key\.csv have no row"):
        read_sheet(sheet, key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'cell'"),
        ("cell,task,instruction,trials\n", "has no condition"),
        (
            "cell,task,instruction,trials\nso,cup,,many\n,x,,1\n",
            "row 2: 'trials'.*\n.*row 3: 'cell' and 'task'",
        ),
        ("cell,task,instruction,trials\nso,cup,,1\nso,cup,,2\n", "occurs twice"),
        ("cell,task,instruction,trials\nso,cup,,1,extra\n", "5 cells under 4 headings"),
    ],
)
def test_bad_plans(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path / "plan.csv")


def test_spreadsheets_semicolons_and_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "plan.csv").write_text("\ufeffCell;Task;Instruction;Trials\nso;cup;;2\n\n", encoding="utf-8")
    assert read_plan(tmp_path / "plan.csv") == [Condition("so", "cup", "cup", 2)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=12), st.booleans())
def test_damaged_sheets_never_crash(tmp_path: Path, place: int, noise: bytes, in_key: bool) -> None:
    if not (tmp_path / "sheet.csv").exists():
        write_sheet(tmp_path)
    files = [(tmp_path / name).read_bytes() for name in ("sheet.csv", "sheet.key.csv")]
    which = int(in_key)
    at = place % len(files[which])
    files[which] = files[which][:at] + noise + files[which][at + random.Random(place).randrange(4) :]
    (tmp_path / "a.csv").write_bytes(files[0])
    (tmp_path / "b.csv").write_bytes(files[1])
    try:
        filled = read_sheet(tmp_path / "a.csv", tmp_path / "b.csv")
    except UserError:
        return
    assert len(filled.records) + filled.open == 20


def test_verbs(tmp_path: Path) -> None:
    plan, sheet = tmp_path / "plan.csv", tmp_path / "sheet.csv"
    plan.write_text("cell,task,instruction,trials\nso,cup,move the cup,3\n")
    done = CliRunner().invoke(build(), ["trials", "new", str(plan), "--policies", "a,b", "--out", str(sheet)])
    assert done.exit_code == 0, done.output
    assert "6 trials" in done.output
    change(sheet, 2, outcome="success")
    done = CliRunner().invoke(build(), ["trials", "import", str(sheet), "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert sorted(line.split(": ")[1] for line in done.output.splitlines()) == [
        "0 of 3 trials",
        "1 of 3 trials",
    ]


def test_two_imports_at_once_are_kept_apart(tmp_path: Path) -> None:
    """Each reads what is there before it adds to it."""
    with (
        exclusive(tmp_path / "out", "apt-bench trials import"),
        pytest.raises(UserError, match="Another apt-bench trials import"),
    ):
        import_sheet(*write_sheet(tmp_path), tmp_path / "out")
