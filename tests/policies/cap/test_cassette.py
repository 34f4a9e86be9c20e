"""Cassettes and the budget: files that several processes share, and what is wrong with hostile ones."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from apt_bench.core.errors import UserError
from apt_bench.policies.code_as_policies import lines
from apt_bench.policies.code_as_policies.budget import Budget
from apt_bench.policies.code_as_policies.cassette import FORMAT, Header, Player, Recorder, digests
from apt_bench.policies.code_as_policies.llm import Message, Reply, Turn

HEADER = Header("m", "privileged", "s" * 16, "a" * 16)
REPLY = Reply("answer", 100, 20, 0.5, 1.25)
EPISODE = "suite/cell/task/init0/seed7/default"


class Fixed:
    """A chat that answers with the texts of a list, or always with the same."""

    def __init__(self, *texts: str, reply: Reply = REPLY) -> None:
        self._texts, self._reply = list(texts), reply
        self.asked = 0

    def ask(self, messages: Sequence[Message], where: Turn) -> Reply:
        self.asked += 1
        return dataclasses.replace(self._reply, text=self._texts.pop(0)) if self._texts else self._reply


def conversation(*texts: str) -> list[Message]:
    """System prompt, first prompt, and then answers and prompts by turns."""
    roles = ["system", "user", *["assistant", "user"] * len(texts)]
    return [{"role": role, "content": text} for role, text in zip(roles, ("system", *texts), strict=False)]


def turn(number: int = 0, call: int = 0, episode: str = EPISODE) -> Turn:
    return Turn(episode, number, call)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cassette.jsonl"


def test_what_was_recorded_is_replayed(path: Path) -> None:
    recorder = Recorder(Fixed("one", "two\n\u2028\x00", "three"), path, HEADER)
    asked = [
        (conversation("a"), turn(0)),
        (conversation("a", "one", "b 1.5"), turn(1)),
        (conversation("x"), turn(episode="e")),
    ]
    answers = [recorder.ask(*one) for one in asked]
    player = Player(path, HEADER)
    assert [player.ask(*one) for one in asked] == answers
    assert len({answer.text for answer in answers}) == 3


def test_later_questions_may_differ_and_are_counted(path: Path) -> None:
    recorder = Recorder(Fixed(), path, HEADER)
    recorder.ask(conversation("a"), turn(0))
    recorder.ask(conversation("a", "one", "at 0.123 and -1e-5, 3 left"), turn(1))
    player = Player(path, HEADER)

    def differs(*texts: str) -> str:
        return player.ask(conversation(*texts), turn(1)).differs

    assert differs("a", "one", "at 0.123 and -1e-5, 3 left") == ""
    assert differs("a", "one", "at 0.1229998 and 2e-7, 12 left") == "digits"
    assert differs("a", "one", "at 0.123 and -1e-5, 3 leaves") == "text"


def test_images_do_not_count(path: Path) -> None:
    def shown(pixel: str) -> list[Message]:
        image = {"type": "image_url", "image_url": {"url": pixel}}
        content = [{"type": "text", "text": "see"}, image]
        return [*conversation("a", "one"), {"role": "user", "content": content}]

    assert digests(shown("data:a")) == digests(shown("data:b"))
    assert digests(shown("data:a")) != digests(conversation("a", "one", "see"))


def test_the_first_question_must_be_the_recorded_one(path: Path) -> None:
    Recorder(Fixed(), path, HEADER).ask(conversation("pick up 1 mug"), turn())
    with pytest.raises(UserError, match=f"the first question of episode {EPISODE} is not the recorded one"):
        Player(path, HEADER).ask(conversation("pick up 2 mugs"), turn())


def test_a_missing_answer_names_the_episode(path: Path) -> None:
    Recorder(Fixed(), path, HEADER).ask(conversation("a"), turn())
    player = Player(path, HEADER)
    with pytest.raises(
        UserError, match=r"no answer for episode other, turn 1, question 1\. It was recorded without"
    ):
        player.ask(conversation("a"), turn(episode="other"))
    with pytest.raises(
        UserError, match=rf"{EPISODE}, turn 3, question 2\. The recorded episode has 1 answers"
    ):
        player.ask(conversation("a"), turn(2, 1))


def test_an_episode_that_was_recorded_again_counts_alone(path: Path) -> None:
    recorder = Recorder(Fixed("old", "old", "new"), path, HEADER)
    recorder.ask(conversation("a"), turn(0))
    recorder.ask(conversation("a", "old", "b"), turn(1))
    recorder.ask(conversation("a"), turn(0))  # the second attempt
    player = Player(path, HEADER)
    assert player.ask(conversation("a"), turn(0)).text == "new"
    with pytest.raises(UserError, match="no answer"):
        player.ask(conversation("a", "old", "b"), turn(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "other"}, "recorded with the model 'm'. Use --llm-model m"),
        ({"tier": "perception"}, "recorded in the tier 'privileged', not 'perception'"),
        ({"system": "x"}, "recorded with another system prompt"),
        ({"api": "x"}, "recorded with another API"),
    ],
)
def test_a_cassette_of_something_else_is_neither_replayed_nor_continued(
    changed: dict[str, str], message: str, path: Path
) -> None:
    Recorder(Fixed(), path, HEADER).ask(conversation("a"), turn())
    other = dataclasses.replace(HEADER, **changed)
    with pytest.raises(UserError, match=message):
        Player(path, other)
    with pytest.raises(UserError, match=message):
        Recorder(Fixed(), path, other)


LINE = {"episode": EPISODE, "turn": 0, "call": 0, "exact": "x", "loose": "x", "text": "FINISH"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a cassette"),
        (b"hello", "is not a cassette"),  # not one whole line
        (b"hello\n", "line 1 is damaged"),
        (b"[1]\n", "line 1 is damaged: expected an object"),
        (b'{"format": 7}\n', "is not a cassette"),
        (b'{"a": 1}\n', "is not a cassette"),
        (b'{"format": "apt-bench cassette 99"}\n', "this version reads"),
        ({"format": FORMAT}, "line 1"),
        (b"\xff\xfe\n", "not UTF-8"),
        ({"format": FORMAT, "x": 1}, "line 1"),
        (b"[" * 100_000 + b"\n", "line 1 is damaged"),
        (b"{" + b" " * lines.LONGEST_LINE + b"}\n", "is longer than"),
        ([], "line 2"),
        ({**LINE, "turn": -1}, "line 2"),
        ({**LINE, "turn": True}, "line 2"),
        ({**LINE, "text": 7}, "line 2"),
        ({**LINE, "cost": -1.0}, "line 2"),
        ({**LINE, "more": 1}, "line 2"),
        ({"episode": EPISODE}, "line 2"),
    ],
    ids=str,
)
def test_a_broken_file_gives_a_clear_error(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    if not isinstance(content, bytes):
        header = {} if message == "line 1" else dataclasses.asdict(HEADER)
        first = {**header, **content} if message == "line 1" else header
        second = [] if message == "line 1" else [content]
        content = "".join(json.dumps(one) + "\n" for one in [first, *second]).encode()
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as found:
        Player(path, HEADER)
    assert str(path) in str(found.value)
    assert len(str(found.value)) < 1500


def test_what_is_no_file(tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(UserError):
            Player(wrong, HEADER)
    for wrong in (tmp_path, Path("/dev/null"), Path("a\0b"), Path("/proc/x")):
        with pytest.raises(UserError):
            lines.append(wrong, {})


def test_the_rest_of_a_line_is_removed(path: Path) -> None:
    """A worker that is killed while it writes loses its own line only."""
    recorder = Recorder(Fixed("one", "two"), path, HEADER)
    recorder.ask(conversation("a"), turn(episode="e1"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"episode": "e2", "tu')
    assert Player(path, HEADER).ask(conversation("a"), turn(episode="e1")).text == "one"
    recorder.ask(conversation("a"), turn(episode="e3"))
    assert path.read_bytes().startswith(whole + b'{"episode": "e3"')


WRITER = """
import sys
from pathlib import Path
from apt_bench.policies.code_as_policies import lines
for number in range(150):
    lines.append(Path(sys.argv[1]), {"by": sys.argv[2], "number": number, "text": "x" * 5000}, first={"first": 1})
"""


def test_several_processes_write_whole_lines(path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [one.wait(timeout=60) for one in running] == [0, 0, 0]
    first, *rest = lines.read(path)[0]
    assert first == {"first": 1}
    for name in "abc":
        assert [one["number"] for one in rest if one["by"] == name] == list(range(150))


# --- the budget -------------------------------------------------------------------------------------------------------


def asked(budget: Budget, episodes: int) -> int:
    """How many questions are answered until the budget is spent."""
    for number in range(episodes):
        try:
            budget.ask(conversation("a"), turn(episode=f"e{number}"))
        except UserError:
            return number
    return episodes


def test_a_budget_stops_further_questions() -> None:
    chat = Fixed()
    budget = Budget(chat, dollars=1.2)  # an answer costs 0.5
    assert asked(budget, 9) == chat.asked == 3
    with pytest.raises(
        UserError, match=r"The budget of 1.2 US dollars is spent: 1.5000 by now\. .*larger --max-cost"
    ):
        budget.ask(conversation("a"), turn())
    assert asked(Budget(Fixed(), tokens=360), 9) == 3
    spent = Budget(Fixed(), tokens=1)
    spent.ask(conversation("a"), turn())
    with pytest.raises(UserError, match="The budget of 1 tokens is spent: 120"):
        spent.ask(conversation("a"), turn())


def test_the_budget_is_that_of_the_run_not_of_a_worker(tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger.jsonl"
    first, second = Budget(Fixed(), ledger, dollars=2.0), Budget(Fixed(), ledger, dollars=2.0)
    assert asked(first, 2) == 2
    assert asked(second, 1) == 1
    assert asked(first, 9) == 1
    assert asked(second, 9) == 0
    assert asked(Budget(Fixed(), ledger, dollars=2.0), 9) == 0  # a worker that was started again
    assert asked(Budget(Fixed(), ledger, dollars=3.0), 9) == 2
    with pytest.raises(UserError, match=r"ledger\.jsonl"):
        second.ask(conversation("a"), turn())


@pytest.mark.parametrize(
    ("reply", "limit", "message"),
    [
        (dataclasses.replace(REPLY, cost=None), {"dollars": 1.0}, "price_in=... --policy-arg price_out=..."),
        (Reply("a", 0, 0, None, 0.0), {"tokens": 9}, "the server does not report it"),
    ],
)
def test_a_budget_needs_what_it_counts(reply: Reply, limit: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Budget(Fixed(reply=reply), **limit).ask(conversation("a"), turn())


def test_a_damaged_ledger_is_an_error_not_a_new_budget(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    budget = Budget(Fixed(), ledger, dollars=9.0)
    assert asked(budget, 2) == 2
    ledger.write_text(ledger.read_text() + "nonsense\n")
    with pytest.raises(UserError, match="is damaged"):
        budget.ask(conversation("a"), turn())


def test_costs_are_written_even_without_a_budget(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    Budget(Fixed(), ledger).ask(conversation("a"), turn(2, 1))
    (line,), _ = lines.read(ledger)
    assert line.pop("time") > 1e9
    assert line == {
        "episode": EPISODE,
        "turn": 2,
        "call": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cost": 0.5,
    }
