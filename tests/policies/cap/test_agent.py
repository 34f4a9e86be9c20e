"""The agent's loop: a real sandbox and a real HTTP server, with an API of three functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.envs.base import Observation
from apt_bench.policies.code_as_policies import llm, policy, prompts
from apt_bench.policies.code_as_policies.api import ApiError
from apt_bench.policies.code_as_policies.llm import Reply
from apt_bench.policies.code_as_policies.policy import CodeAsPolicies
from apt_bench.policies.registry import find_policy
from apt_bench.suites import EpisodeKey, EpisodeSpec
from tests.policies.cap.model_server import ModelServer


class ThreeFunctions:
    """Stands in for the API: `double`, `move`, `fail`."""

    names = ("double", "move", "fail")
    cameras: tuple[str, ...] = ()
    privileged = False

    def __init__(self) -> None:
        self.seen: list[int] = []

    def describe(self) -> str:
        return "def double(x): ..."

    def reset(self, episode: EpisodeSpec) -> None:
        self.seen = []

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation.step)

    def call(self, name: str, args: Sequence[Any], kwargs: Any) -> Any:
        if name == "fail":
            raise ApiError("no such object")
        if name == "move":
            for number in range(args[0]):
                observation = yield np.full((2, 7), number, float)
            return observation.step
        return args[0] * 2

    def hold(self) -> np.ndarray:
        return np.full((10, 7), -1.0)


@pytest.fixture(autouse=True)
def api(monkeypatch: pytest.MonkeyPatch) -> ThreeFunctions:
    found = ThreeFunctions()
    monkeypatch.setattr(policy, "_api", lambda tier, segmenter: found)
    monkeypatch.setattr(llm, "LONGEST_WAIT", 0.05)
    return found


def spec(init: int = 0) -> EpisodeSpec:
    key = EpisodeKey("suite", "cell", "task", init, 7)
    return EpisodeSpec(
        key=key, env="e", group="g", max_steps=220, settle_steps=0, prompt="stack", prompt_source="text",
        prompts={}, args={}, flags=(),
    )  # fmt: skip


class Episode:
    """Runs the agent without an environment: every row of a chunk is one step."""

    def __init__(self, agent: CodeAsPolicies, init: int = 0) -> None:
        self.agent, self.spec, self.step = agent, spec(init), 0
        self.chunks: list[np.ndarray] = []
        self.instruction = "stack the cups"
        agent.reset([self.spec])

    def act(self, times: int = 1) -> list[tuple[int, float]]:
        """The next chunks: number of rows, and their value."""
        for _ in range(times):
            seen = Observation({}, np.zeros(8, np.float32), self.instruction, self.spec.key.id, self.step)
            (chunk,) = self.agent.act([seen])
            self.chunks.append(chunk)
            self.step += len(chunk)
        return [(len(chunk), chunk[0, 0]) for chunk in self.chunks[-times:]]

    def notes(self) -> dict[str, Any]:
        return dict(self.agent.notes(self.spec))


HOLD, PAUSE = (10, -1.0), (1, -1.0)


def block(code: str) -> str:
    return f"Thinking.\n\n```python\n{code}\n```\n"


def agent(server: ModelServer, **more: Any) -> CodeAsPolicies:
    return CodeAsPolicies("m", "privileged", server.url, **more)


def said(server: ModelServer, question: int = -1) -> list[str]:
    """The messages of a question."""
    return [message["content"] for message in server.questions[question]["messages"]]


def test_an_episode(api: ThreeFunctions) -> None:
    script = [
        block("x = double(21)\nprint('x is', x)"),
        block("print(x + 1, move(3))\nimport sys; print('e', file=sys.stderr)"),
        "FINISH",
    ]
    with ModelServer(script) as server:
        episode = Episode(agent(server))
        assert episode.act(7) == [PAUSE, (2, 0.0), (2, 1.0), (2, 2.0), PAUSE, HOLD, HOLD]
    assert api.seen == [0, 1, 3, 5, 7, 8, 18]
    roles = [message["role"] for message in server.questions[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    system, first, _, second, answer, third = said(server)
    assert "FINISH" in system
    assert "numpy" in system
    assert "Task: stack the cups\n" in first
    assert "220 control steps" in first
    assert "def double(x): ..." in first
    assert (
        "Block 1 of at most 10 was run. The episode has taken 0 control steps.\n\nstdout:\nx is 42\n\nstderr:\n(empty)"
        in second
    )
    assert answer == script[1].strip()
    assert "taken 7 control steps.\n\nstdout:\n43 7\n\nstderr:\ne\n" in third
    notes = episode.notes()
    assert notes.pop("thinking_seconds") > 0
    assert notes == {
        "turns": 3, "blocks": 2, "raised": 0, "stopped": 0, "prompt_tokens": 300, "completion_tokens": 60,
        "ended": "finished", "answers": "live",
    }  # fmt: skip


def test_errors_reach_the_code_and_the_model() -> None:
    caught = "try:\n    fail()\nexcept ApiError as error:\n    print('caught', error)"
    with ModelServer([block(caught), block("fail()"), block("def broken(:"), "FINISH"]) as server:
        episode = Episode(agent(server))
        episode.act(4)
    assert "caught no such object" in said(server, 1)[-1]
    assert "ApiError: no such object" in said(server, 2)[-1]
    assert "SyntaxError" in said(server, 3)[-1]
    assert episode.notes()["raised"] == 2


def test_a_block_that_the_sandbox_stops() -> None:
    with ModelServer(
        [block("y = 1\nfor _ in range(5000): double(1)"), block("print('y' in globals())"), "FINISH"]
    ) as server:
        episode = Episode(agent(server))
        episode.act(4)
    assert "The process was stopped: it called functions more than" in said(server, 1)[-1]
    assert "stdout:\nFalse" in said(server, 2)[-1]
    assert (episode.notes()["stopped"], episode.notes()["ended"]) == (1, "finished")


def test_the_number_of_blocks_is_limited() -> None:
    with ModelServer([block("print(1)")] * 3) as server:
        episode = Episode(agent(server, turns=3))
        assert episode.act(5) == [PAUSE, PAUSE, HOLD, HOLD, HOLD]
    assert len(server.questions) == 3
    assert episode.notes()["ended"] == "turns"


def test_an_answer_that_cannot_be_read_is_asked_for_once_more() -> None:
    with ModelServer(["I cannot.", block("print(1)"), "Hm.", "Hm."]) as server:
        episode = Episode(agent(server))
        assert episode.act(5) == [PAUSE, PAUSE, PAUSE, HOLD, HOLD]
    assert "it has neither a ```python fence nor FINISH" in said(server, 1)[-1]
    assert (episode.notes()["ended"], episode.notes()["turns"]) == ("unreadable", 4)


def test_reasoning_is_not_sent_back() -> None:
    with ModelServer(["<think>\nLong.\n</think>\n" + block("print(1)"), "FINISH"]) as server:
        Episode(agent(server)).act(2)
    assert said(server)[2] == block("print(1)").strip()


def test_each_decision_asks_one_question_at_most() -> None:
    """So a decision takes less time than the one after which a worker counts as hanging."""
    script = [block("print(1)"), "what?", block("move(1)"), block("print(2)"), "FINISH"]
    with ModelServer(script) as server:
        episode = Episode(agent(server))
        asked = []
        for _ in range(8):
            episode.act()
            asked.append(len(server.questions))
    assert np.diff([0, *asked]).max() == 1
    assert asked[-1] == 5


def test_an_episode_starts_with_an_empty_conversation_and_namespace() -> None:
    """Also where the last one ended in the middle of a motion."""
    with ModelServer([block("z = 1\nmove(100)"), block("print('z' in globals())"), "FINISH"]) as server:
        found = agent(server)
        first = Episode(found)
        first.act(3)
        assert first.notes()["ended"] == "interrupted"
        Episode(found, init=1).act(2)
    assert len(server.questions[1]["messages"]) == 2
    assert "stdout:\nFalse" in said(server, 2)[-1]


def test_a_new_instruction_is_a_new_task() -> None:
    """In a chain of subtasks the instruction changes while the arm holds still, or within a block."""
    with ModelServer(["FINISH", block("move(2)"), "FINISH"]) as server:
        episode = Episode(agent(server))
        assert episode.act(2) == [HOLD, HOLD]
        episode.instruction = "open the drawer"
        assert episode.act(2) == [PAUSE, (2, 0.0)]
        episode.instruction = "close the drawer"
        assert episode.act(3) == [(2, 1.0), PAUSE, HOLD]
    assert "The task has changed. It is now: open the drawer" in said(server, 1)[-1]
    assert "The task has changed. It is now: close the drawer" in said(server, 2)[-1]


def test_a_lost_server_is_missing_data_and_the_next_episode_works() -> None:
    with ModelServer([block("move(1)"), *[(503, {})] * 50]) as server:
        found = agent(server, timeout=0.3)
        episode = Episode(found)
        episode.act(2)
        with pytest.raises(ServerLost, match=r"did not answer question 2 within 0\.3 s"):
            episode.act(2)
        server._script = ["FINISH"] * 99
        assert Episode(found).act() == [HOLD]


def test_a_refusal_in_the_middle_is_the_policys_failure() -> None:
    with ModelServer([block("print(1)"), (400, {"error": {"message": "too long"}})]) as server:
        episode = Episode(agent(server))
        with pytest.raises(PolicyFault, match="too long"):
            episode.act(2)


def test_without_a_server_that_answers() -> None:
    with ModelServer([]) as gone:
        pass
    with ModelServer(["FINISH"]) as server:
        assert Episode(CodeAsPolicies("m", "privileged", [gone.url, server.url])).act() == [HOLD]
    with pytest.raises(ServerLost, match="Connection refused"):
        CodeAsPolicies("m", "privileged", [gone.url])
    ref = find_policy("cap-privileged", (), servers=[gone.url], llm={"model": "m"})
    with pytest.raises(UserError, match=r"cannot reach its server: .*Start the server first: vllm serve"):
        ref.load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "Use --llm-model NAME"),
        ({"tier": "other"}, "tier"),
        ({"turns": 0}, "turns"),
        ({"price_in": 1.0}, "Give both"),
        ({"price_in": -1.0, "price_out": 1.0}, "price_in"),
        ({"max_cost": 0.0}, "max_cost"),
        ({"temperature": -1.0}, "temperature"),
        ({"cassette": ["play", "x"]}, "must be .record, FILE. or .replay, FILE."),
        ({"cassette": ["replay"]}, "must be"),
        ({"server": "ftp://x"}, "not the address of an API"),
        ({"server": ()}, "OPENAI_BASE_URL"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(llm.BASE_URL, raising=False)
    with ModelServer([]) as server, pytest.raises(UserError, match=message):
        CodeAsPolicies(**{"model": "m", "tier": "privileged", "server": server.url} | arguments)


# --- reading answers ----------------------------------------------------------------------------------------------


def read(text: str, cut: bool = False) -> prompts.Answer:
    return prompts.read(Reply(text, 0, 0, None, 0.0, cut))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("REGENERATE\n```py\nx = 1\n```\nFINISH", "x = 1\n"),
        ("  ```\n  x\n  ```", "  x\n"),
        ("x = double(1)\nprint(x)", "x = double(1)\nprint(x)"),
        ("<think>```python\nno()\n```</think>```python\nyes()\n```", "yes()\n"),
        ("```json\n{}\n```\n```python\nx()\n```", "x()\n"),
    ],
)
def test_answers_with_code(text: str, code: str) -> None:
    assert read(text) == prompts.Answer(code=code)


@pytest.mark.parametrize(
    "text",
    [
        "FINISH",
        " **FINISH** ",
        "The mug is in the basket.\n\nFINISH.",
        "```\nFINISH\n```",
        "<think>x</think>FINISH",
    ],
)
def test_answers_that_finish(text: str) -> None:
    assert read(text) == prompts.Answer(finish=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("Done", "neither"),
        ("I will FINISH soon", "neither"),
        ("```python\nx()\n```\n```python\ny()\n```", "2 code fences"),
        ("```python\nx()", "neither"),
        ("(" * 10_000, "neither"),
        ("-" * 10_000 + "1", "neither"),
        ("x" * (prompts.LONGEST + 1), "longer than"),
        ("\x00", "neither"),
    ],
)
def test_answers_that_cannot_be_read(text: str, problem: str) -> None:
    found = read(text)
    assert problem in found.problem
    assert not found.code
    assert not found.finish


def test_an_answer_that_was_cut_is_not_run() -> None:
    assert "cut" in read("```python\nx()\n```", cut=True).problem


# --- prompts ------------------------------------------------------------------------------------------------------


def test_images_are_sent_with_the_last_turn_only() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    content = prompts.with_images("text", {"before": image, "after": image[:, ::-1]})
    assert [part["type"] for part in content] == ["text", "text", "image_url", "text", "image_url"]
    assert content[2]["image_url"]["url"].startswith("data:image/png;base64,")
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": content}]
    assert prompts.without_images(messages) == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "text"},
    ]
    assert prompts.with_images("text", {}) == "text"


def test_long_output_is_shortened_in_the_middle() -> None:
    from apt_bench.policies.code_as_policies.sandbox import Ended

    text = prompts.result(Ended("a" * 9000 + "end", ""), 1, 10, 5)
    assert "[5003 characters are left out here]" in text
    assert "aend\n" in text
    assert len(text) < 4500
