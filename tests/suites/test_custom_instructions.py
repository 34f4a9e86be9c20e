"""A user's own sentences: which episodes get them, and what is wrong with a file of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_bench.analysis.run import load_run
from apt_bench.core.errors import UserError
from apt_bench.runs.protocol import differing_settings
from apt_bench.runs.records import RunStore
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.suites.custom_instructions import CustomInstructions, custom_instructions
from apt_bench.suites.probes import expand

TOY = load_suite("tests/toy_suite.yaml")
LEFT, RIGHT = "push_the_puck_left", "push_the_puck_right"


@pytest.fixture
def specs() -> list[EpisodeSpec]:
    return TOY.select(["push", "slide"], episodes=2)


def read(folder: Path, text: str) -> CustomInstructions:
    (folder / "mine.csv").write_text(text)
    found = custom_instructions(None, folder / "mine.csv")
    assert found
    return found


def test_one_sentence_is_for_every_episode(specs: list[EpisodeSpec]) -> None:
    found = custom_instructions("  go home ", None)
    assert found
    assert found.sentences(TOY, specs) == dict.fromkeys((s.key for s in specs), "go home")
    assert custom_instructions(None, None) is None


def test_a_file_chooses_cells_tasks_and_initial_states(tmp_path: Path, specs: list[EpisodeSpec]) -> None:
    rows = f'init,task,cell,sentence\n1,0,push,"left, please"\n,{RIGHT},,right\n,,,\n'
    found = read(tmp_path, rows).sentences(TOY, specs)
    assert {(k.cell, k.task, k.init): v for k, v in found.items()} == {
        ("push", LEFT, 1): "left, please",
        **{(cell, RIGHT, init): "right" for cell in ("push", "slide") for init in (0, 1)},
    }


def test_the_episodes_are_a_probe_of_their_own(specs: list[EpisodeSpec]) -> None:
    keys = [s.key for s in specs if s.key.cell == "push"]
    probed = expand(specs, ["null"], specs, dict.fromkeys(keys, "go home"))
    mine = [s for s in probed if s.key.prompt == "custom"]
    assert [(s.prompt, s.prompt_source) for s in mine] == [("go home", "probe:custom")] * len(keys)
    assert {s.noise_key for s in mine} == {s.noise_key for s in specs if s.key.cell == "push"}
    assert sum(s.key.prompt == "repeat" for s in probed) == len(specs)
    same = expand(specs, [], specs, {specs[0].key: specs[0].prompt})  # nothing changes: no probe
    assert same == specs


def test_the_hash_follows_the_sentences_not_their_order(tmp_path: Path) -> None:
    one = read(tmp_path, "cell,sentence\npush,a\nslide,b\n").digest
    assert read(tmp_path, "sentence,cell\nb,slide\na,push\n").digest == one
    assert read(tmp_path, "cell,sentence\npush,a\nslide,c\n").digest != one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cell,sentence\npusch,x\n", "line 2: Suite 'toy' has no cell 'pusch'. Did you mean 'push'?"),
        ("task,sentence\npush_the_puck_lef,x\n", "line 2: no task 'push_the_puck_lef' in push, slide. Did you mean"),
        ("cell,task,sentence\npush,0,x\npush,7,x\n", "line 3: no task '7' in push"),
        ("cell,init,sentence\npush,99,x\n", "line 2: init is 99, but task"),
        ("cell,init,sentence\npush,two,x\n", "line 2: init is 'two'. Write a number from 0"),
        ("cell,sentence\npush,\n", "line 2: the sentence is empty. Use --probe null"),
        ("cell,sentence\npush," + "x" * 501 + "\n", "line 2: the sentence has 501 characters. Shorten it to 500"),
        ('cell,sentence\npush,"a\nb"\n', "line 3: the sentence has a line break"),
        ("cell,task,sentence\n,,x\n", "line 2: cell and task are empty. Fill in one"),
        ("cell,init\npush,0\n", "line 1: a column is missing. The header needs 'sentence'"),
        ("init,sentence\n0,x\n", "line 1: a column is missing"),
        ("cell,sentense\npush,x\n", "line 1: an unknown column 'sentense'. Did you mean 'sentence'?"),
        ("cell,cell,sentence\npush,push,x\n", "line 1: a second column 'cell'"),
        ("cell,sentence\npush,a,b\n", "line 2: there are more cells than columns. Put a sentence"),
        ('cell,sentence\npush,"a"b\n', "this is not CSV"),
        ("cell,sentence\n", "has no sentence. Add a row"),
        ("cell,sentence\npush,a\npush,b\n", "line 3 and .*line 2 give one episode two sentences. Remove one"),
        ("cell,task,sentence\npush,,a\n,0,b\n", "give one episode two sentences"),
        ("cell,sentence\nno_gl,a\n", "no selected episode gets a sentence. Select the cells"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_and_the_line(
    text: str, said: str, tmp_path: Path, specs: list[EpisodeSpec]
) -> None:
    with pytest.raises(UserError, match=said) as found:
        read(tmp_path, text).sentences(TOY, specs)
    assert str(tmp_path / "mine.csv") in str(found.value)


def test_a_run_records_them_apart_from_the_benchmark(cli: Any, tmp_path: Path) -> None:
    words = ["run", "--suite", "tests/toy_suite.yaml", "--cells", "push", "--episodes", "2", "--workers", "0"]
    words += ["--policy", "tests.toy:PushPolicy"]
    plain, mine, other = (tmp_path / name for name in ("plain", "mine", "other"))
    cli(*words, "--out", plain, code=0)
    out = cli(*words, "--instruction", "go home", "--out", mine, code=0)
    assert "push (custom)" in out
    runs = [RunStore.open(path) for path in (plain, mine)]
    cards = [store.protocol() for store in runs]
    assert "custom_instructions" not in cards[0]
    assert cards[0]["hash"] != cards[1]["hash"]
    assert differing_settings(*cards) == []  # compared under the cells' own instructions
    sent = [r for r in runs[1].episodes() if r.key.prompt == "custom"]
    assert {(r.prompt, r.prompt_source) for r in sent} == {("go home", "probe:custom")}
    assert len(sent) == 4
    assert runs[1].run()["requested_probes"]["custom"] == {"push": {LEFT: 2, RIGHT: 2}}
    found = load_run(mine)
    assert len(found.frame) == 4
    assert set(found.probed.prompt.unique()) == {"custom", "repeat"}
    card = json.loads(cli(*words, "--instruction", "go home", "--out", mine, "--json", code=0))
    assert (card["overall"]["requested"], card["new_episodes"]) == (4, 0)
    assert "custom_instructions" in cli(*words, "--instruction", "go away", "--out", mine)
    (tmp_path / "mine.csv").write_text("cell,sentence\npush,go home\n")
    assert "not both" in cli(
        *words, "--instruction", "x", "--instructions", tmp_path / "mine.csv", "--out", other
    )
    excluded = [*words, "--stop-when", "decided", "--against", plain, "--instruction", "x", "--out", other]
    assert "and your own sentences" in cli(*excluded)


def test_probe_lists_them(cli: Any, tmp_path: Path) -> None:
    words = [
        "probe",
        "--suite",
        "tests/toy_suite.yaml",
        "--cells",
        "push",
        "--episodes",
        "1",
        "--probe",
        "null",
    ]
    out = cli(*words, "--policy", "tests.toy:PushPolicy", "--instruction", "go home", code=0)
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["repeat", "2"],
        ["null", "2"],
        ["custom", "2"],
    ]
