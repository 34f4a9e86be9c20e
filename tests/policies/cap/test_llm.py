"""The client of a language model against a real HTTP server: answers, errors, retries, time limits."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.policies.code_as_policies import llm
from apt_bench.policies.code_as_policies.llm import OpenAiChat, Turn, base_url
from tests.policies.cap.model_server import ModelServer, completion, reply

ASKED = [{"role": "user", "content": "hello"}]
FIRST, LATER = Turn("s/c/t/init0/seed7/default", 0, 0), Turn("s/c/t/init0/seed7/default", 3, 0)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (llm.BASE_URL, llm.OPENAI_KEY, llm.API_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(llm, "LONGEST_WAIT", 0.05)


def ask(script: Any, where: Turn = FIRST, seconds: float = 20, **more: Any) -> Any:
    with ModelServer(script) as server:
        return OpenAiChat(server.url, "m", timeout=seconds, **more).ask(ASKED, where)


def error(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, **more}}


def test_a_question_and_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llm.OPENAI_KEY, "sk-secret")
    with ModelServer(["hi"]) as server:
        chat = OpenAiChat(server.url, "m", temperature=0.5, max_tokens=77)
        chat.check()
        found = chat.ask(ASKED, FIRST)
    assert server.questions == [{"model": "m", "messages": ASKED, "max_tokens": 77, "temperature": 0.5}]
    assert [one["Authorization"] for one in server.headers] == ["Bearer sk-secret"] * 2
    assert (found.text, found.prompt_tokens, found.completion_tokens, found.cost) == ("hi", 100, 20, None)
    assert 0 < found.seconds < 20
    assert not found.cut


def test_our_own_key_comes_first_and_none_is_sent_where_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer(["hi", "hi"]) as server:
        OpenAiChat(server.url, "m").ask(ASKED, FIRST)
        monkeypatch.setenv(llm.OPENAI_KEY, "a")
        monkeypatch.setenv(llm.API_KEY, "b")
        OpenAiChat(server.url, "m").ask(ASKED, FIRST)
    assert [one.get("Authorization") for one in server.headers] == [None, "Bearer b"]


@pytest.mark.parametrize(
    ("usage", "prices", "cost"),
    [
        ({"cost": 0.125}, None, 0.125),
        ({"cost": 0.125}, (1.0, 1.0), 0.125),  # what the server reports counts
        ({}, (2.0, 10.0), (2 * 100 + 10 * 20) / 1e6),
        ({}, None, None),
        ({"cost": True}, None, None),
        ({"cost": -1}, None, None),
    ],
)
def test_costs(usage: dict[str, Any], prices: Any, cost: float | None) -> None:
    body = completion("hi") | {"usage": {"prompt_tokens": 100, "completion_tokens": 20, **usage}}
    assert ask([(200, body)], prices=prices).cost == pytest.approx(cost)


def test_forms_of_answers() -> None:
    assert ask([(200, completion(None))]).text == ""
    assert ask([(200, completion("hi", usage=None))]).prompt_tokens == 0
    parts: Any = [{"type": "text", "text": "a"}, {"type": "reasoning"}, {"type": "text", "text": "b"}]
    assert ask([(200, completion(parts))]).text == "ab"
    cut = completion("hi")
    cut["choices"][0]["finish_reason"] = "length"
    assert ask([(200, cut)]).cut


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_a_passing_error_is_tried_again(status: int) -> None:
    assert ask([(status, error("busy")), (status, b"<html>"), "hi"]).text == "hi"


def test_an_error_that_a_gateway_reports_with_status_200_is_tried_again() -> None:
    assert ask([(200, error("overloaded", code=502)), (200, error("no code")), "hi"]).text == "hi"


def test_a_lost_connection_is_tried_again() -> None:
    def drop(handler: Any) -> None:
        handler.connection.close()

    def cut(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "500")
        handler.end_headers()
        handler.wfile.write(b'{"choices"')

    assert ask([drop, cut, "hi"]).text == "hi"


def test_the_server_may_say_when_to_try_again() -> None:
    def busy(handler: Any) -> None:
        reply(handler, 429, error("slow down"), Retry_After="0.7")

    start = time.monotonic()
    assert ask([busy, "hi"]).text == "hi"
    assert time.monotonic() - start > 0.7


def test_a_server_that_wants_too_long_a_break_is_lost_at_once() -> None:
    def busy(handler: Any) -> None:
        reply(handler, 429, error("slow down"), Retry_After="3600")

    start = time.monotonic()
    with pytest.raises(ServerLost, match=r"did not answer question 1 within 20 s \(HTTP 429: slow down\)"):
        ask([busy])
    assert time.monotonic() - start < 5


def test_a_server_that_hangs_is_lost_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(ServerLost, match="within 1 s"):
        ask([lambda handler: time.sleep(3)] * 9, seconds=1)
    assert time.monotonic() - start < 2.5


def test_an_answer_that_trickles_is_lost_in_time() -> None:
    def trickle(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    start = time.monotonic()
    with pytest.raises(ServerLost, match="within 1 s"):
        ask([trickle] * 9, seconds=1)
    assert time.monotonic() - start < 2.5


def test_a_server_that_is_not_there_is_lost() -> None:
    with ModelServer([]) as server:
        url = server.url
    chat = OpenAiChat(url, "m", timeout=0.5)
    with pytest.raises(ServerLost, match="Connection refused"):
        chat.check()
    with pytest.raises(ServerLost, match=r"within 0.5 s \(.*Connection refused"):
        chat.ask(ASKED, FIRST)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, error("bad key"), "HTTP 401: bad key.*Set the key in APT_BENCH_API_KEY or OPENAI_API_KEY"),
        (402, error("no credit"), "HTTP 402: no credit"),
        (403, error("no access"), "whether it may use this model"),
        (404, error("model m not found"), "model m not found.*Check --llm-model and the address"),
        (429, error("pay", code="insufficient_quota"), "HTTP 429: pay.*Pay for more"),
        (400, error("bad image"), "HTTP 400: bad image"),
        (200, b"<html>hello</html>", "does not answer in the form of the OpenAI API: <html>"),
        (200, b"[]", "form of the OpenAI API"),
        (200, b"[" * 100_000, "form of the OpenAI API"),
        (200, b"\xff\xfe", "form of the OpenAI API"),
        (200, {"choices": []}, "form of the OpenAI API"),
        (200, {"choices": [{"message": {"content": 7}}]}, "form of the OpenAI API"),
        (200, {"choices": [{"message": "x"}]}, "form of the OpenAI API"),
        (200, b"x" * (llm.MOST_BYTES + 1), "more than 8,388,608 bytes"),
        (302, b"", "HTTP 302"),
    ],
)
def test_what_the_user_must_change_is_asked_once(status: int, body: Any, message: str) -> None:
    with ModelServer([(status, body)]) as server, pytest.raises(UserError, match=message) as found:
        OpenAiChat(server.url, "m").ask(ASKED, FIRST)
    assert not isinstance(found.value, PolicyFault)
    assert len(server.questions) == 1


def test_no_redirect_carries_the_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llm.API_KEY, "secret")
    with ModelServer(["stolen"]) as thief:
        with pytest.raises(UserError, match="HTTP 307"):
            ask([lambda handler: reply(handler, 307, b"", Location=f"{thief.url}/chat/completions")])
        assert thief.headers == []


def test_a_conversation_that_became_too_long_is_the_policys_failure() -> None:
    with pytest.raises(PolicyFault, match="HTTP 400: context length"):
        ask([(400, error("context length"))], where=LATER)
    with pytest.raises(UserError, match="HTTP 401") as found:  # a key that has expired is not
        ask([(401, error("expired"))], where=LATER)
    assert not isinstance(found.value, PolicyFault)


def test_servers_that_want_the_newer_name_of_the_limit_get_it() -> None:
    refusal = (400, error("Unsupported parameter: use 'max_completion_tokens' instead"))
    with ModelServer([refusal, "hi", "hi"]) as server:
        chat = OpenAiChat(server.url, "m", temperature=None, max_tokens=5)
        assert [chat.ask(ASKED, FIRST).text, chat.ask(ASKED, FIRST).text] == ["hi", "hi"]
    names = [sorted({*body} - {"model", "messages"}) for body in server.questions]
    assert names == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (("a/b", "c"), "has no model 'm'. Use --llm-model with one of: a/b, c."),
        (tuple(map(str, range(30))), "and 10 more"),
        (401, "Set the key"),
        (403, "Check the key"),
    ],
)
def test_the_list_of_models_is_checked_without_a_question(models: Any, message: str) -> None:
    with ModelServer([], models) as server, pytest.raises(UserError, match=message):
        OpenAiChat(server.url, "m").check()
    assert server.questions == []


@pytest.mark.parametrize("models", [("m",), ("m*",), (), 404, 405, 500])
def test_a_list_that_has_the_model_or_that_is_missing_is_fine(models: Any) -> None:
    with ModelServer([], models) as server:
        OpenAiChat(server.url, "m").check()
        OpenAiChat(server.url, "m:free").check()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://a.example/v1/", "https://a.example/v1"),
        (" http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(text: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_url(text) == url
    monkeypatch.setenv(llm.BASE_URL, text)
    assert base_url("") == url
    assert base_url("http://other/v1") == "http://other/v1"


@pytest.mark.parametrize(
    "text", ["a.example/v1", "ws://a/v1", "http://", "http://a:x/v1", "http://u:p@a/v1", "http://a/ b"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="is not the address of an API"):
        base_url(text)


def test_no_address_at_all() -> None:
    with pytest.raises(UserError, match="--server https://HOST/v1, or set OPENAI_BASE_URL"):
        base_url("")


def test_questions_are_json_whatever_they_hold() -> None:
    with ModelServer(["hi"]) as server:
        OpenAiChat(server.url, "m").ask([{"role": "user", "content": "\ud800 ü \x00"}], FIRST)
    assert json.loads(json.dumps(server.questions[0]["messages"][0]["content"])) == "\ud800 ü \x00"
