"""The client of a language model: any API of the OpenAI form (`POST {base}/chat/completions`)."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.files import parse_json
from apt_bench.core.text import one_line
from apt_bench.policies.remote.server import API_KEY
from apt_bench.policies.servers import GATEWAY

BASE_URL, OPENAI_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
"""Environment variables: the API's address where --server names none; its key where API_KEY is not set."""

QUESTION_SECONDS = 120.0
"""Time for one question with all of its retries. A run kills a worker that is silent for 180 s."""

MODELS_SECONDS = 20.0
"""Time for the list of models."""

MOST_BYTES = 8 * 2**20
"""Bytes of one reply, at most."""

LONGEST_WAIT = 30.0
"""Seconds between two tries, at most, where the server names no time itself."""

RETRIED = GATEWAY | {409, 500}
"""HTTP status codes after which the same question is sent again."""

Message = dict[str, Any]
"""A message of a conversation as the API takes it: `role` and `content`, a text or a list of parts."""


@dataclass(frozen=True)
class Turn:
    """Identifies a question: the episode's `EpisodeKey.id`, the turn, and the question within the turn, from 0."""

    episode: str
    turn: int
    call: int


@dataclass(frozen=True)
class Reply:
    """The model's answer.

    Attributes:
        text: The answer.
        prompt_tokens: Tokens of the question.
        completion_tokens: Tokens of the answer, those of hidden reasoning included.
        cost: US dollars; None where neither the server nor the user gives a price.
        seconds: Time from the question to the answer, retries included.
        cut: Whether the answer ends at the limit of tokens.
        differs: Of a replayed answer: how the question differs from the recorded one.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float
    cut: bool = False
    differs: Literal["", "digits", "text"] = ""


class Chat(Protocol):
    """Whatever answers questions: a server, a cassette, or one of them with a budget."""

    def ask(self, messages: Sequence[Message], where: Turn) -> Reply:
        """Answer the conversation.

        Raises:
            UserError: The user must change something: the key, the model, the budget, the cassette.
            PolicyFault: The server refuses this question, and accepted the first of the episode.
            ServerLost: The server does not answer.
        """
        ...


@dataclass
class OpenAiChat:
    """A model behind an API of the OpenAI form.

    Args:
        base: Address of the API, such as `https://api.example/v1`.
        model: The model's name there.
        temperature: Sampling temperature; None leaves it to the server.
        max_tokens: Tokens of one answer, at most.
        prices: US dollars for a million tokens of questions and of answers; None where they are unknown.
        timeout: Seconds for one question with all of its retries.
    """

    base: str
    model: str
    temperature: float | None = 1.0
    max_tokens: int = 8192
    prices: tuple[float, float] | None = None
    timeout: float = QUESTION_SECONDS
    _limit: str = field(default="max_tokens", init=False)  # the newer name is max_completion_tokens

    def check(self) -> None:
        """Compare the model's name with the server's list of models, where it has one. It costs no token.

        Raises:
            UserError: The key is refused, the address is not that of an API, or the model is not in the list.
            ServerLost: No server answers.
        """
        try:
            status, _, body = self._send("/models", None, time.monotonic() + MODELS_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(f"{self.base} does not answer ({_reason(error)})") from error
        if status in (401, 402, 403) or 300 <= status < 400:
            raise self._refused(status, body)
        try:
            listed = parse_json(body.decode())["data"] if status == 200 else []
            names = [str(one["id"]) for one in listed]
        except (ValueError, KeyError, TypeError):  # the questions will show what the server is
            return
        known = any(fnmatchcase(self.model, name) or self.model.partition(":")[0] == name for name in names)
        if names and not known:
            shown = one_line(", ".join(sorted(names)[:20]), 600)
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise UserError(
                f"{self.base} has no model '{self.model}'. Use --llm-model with one of: {shown}{more}."
            )

    def ask(self, messages: Sequence[Message], where: Turn) -> Reply:
        """See Chat."""
        start = time.monotonic()
        tries, wait, problem = 0, 0.0, ""
        while True:
            if time.monotonic() + wait >= start + self.timeout:
                raise ServerLost(
                    f"{self.base} did not answer question {where.turn + 1} within {self.timeout:g} s{problem}"
                )
            time.sleep(wait)
            tries += 1
            wait = min(2.0 ** (tries - 1), LONGEST_WAIT)
            try:
                status, headers, body = self._send(
                    "/chat/completions", self._body(messages), start + self.timeout
                )
            except (OSError, http.client.HTTPException) as error:
                problem = f" ({_reason(error)})"
                continue
            text = body.decode(errors="replace")
            if status == 200:
                reply = self._reply(text, time.monotonic() - start)
                if isinstance(reply, Reply):
                    return reply
                status, text = reply
            if status == 400 and "max_completion_tokens" in text and self._limit == "max_tokens":
                self._limit, wait = "max_completion_tokens", 0.0
                continue
            if status not in RETRIED or "insufficient_quota" in text:
                if where.turn and status in (400, 413, 422):  # such as a conversation that is too long
                    raise PolicyFault(
                        f"cannot ask its language model: {self._refused(status, text.encode())}"
                    )
                raise self._refused(status, text.encode())
            problem = f" (HTTP {status}: {_message(text)})"
            wait = _retry_after(headers, wait)

    def _body(self, messages: Sequence[Message]) -> bytes:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), self._limit: self.max_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return json.dumps(body).encode()

    def _send(self, path: str, body: bytes | None, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        """One request. Raises OSError, TimeoutError among them, and HTTPException."""
        headers = {"Content-Type": "application/json", "User-Agent": "apt-bench"}
        if key := os.environ.get(API_KEY) or os.environ.get(OPENAI_KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.base + path, body, headers)  # POST where it has a body
        try:
            response = OPENER.open(request, timeout=max(0.1, deadline - time.monotonic()))
        except urllib.error.HTTPError as error:
            response = error
        with response:
            received = bytearray()
            while part := response.read1(65536):
                received += part
                if len(received) > MOST_BYTES:
                    raise UserError(f"{self.base} answered more than {MOST_BYTES:,} bytes.")
                if time.monotonic() > deadline:
                    raise TimeoutError("the answer is not complete")
            if len(received) < _count_text(response.headers.get("Content-Length")):
                raise http.client.IncompleteRead(bytes(received))
            return response.status, response.headers, bytes(received)

    def _reply(self, text: str, seconds: float) -> Reply | tuple[int, str]:
        """The answer in a reply, or the error that a gateway reports with status 200."""
        try:
            message = parse_json(text)
            if "choices" not in message and isinstance(message.get("error"), dict):
                code = message["error"].get("code")
                return (code if isinstance(code, int) else 500), text
            choice = message["choices"][0]
            content = choice["message"].get("content")
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            if not isinstance(content, str | None):
                raise TypeError("content")
            usage = message.get("usage") or {}
            asked, answered = (_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion"))
            cut = choice.get("finish_reason") == "length"
            cost = self._cost(usage, asked, answered)
            return Reply(content or "", asked, answered, cost, round(seconds, 3), cut)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"{self.base} does not answer in the form of the OpenAI API: {one_line(text, 200)}. Check the address; "
                "most end in /v1."
            ) from None

    def _cost(self, usage: Mapping[str, Any], asked: int, answered: int) -> float | None:
        reported = usage.get("cost")
        if isinstance(reported, int | float) and not isinstance(reported, bool) and reported >= 0:
            return float(reported)
        if self.prices is None or not asked + answered:
            return None
        return (self.prices[0] * asked + self.prices[1] * answered) / 1e6

    def _refused(self, status: int, body: bytes) -> UserError:
        said = _message(body.decode(errors="replace"))
        advice = {
            401: f"Set the key in {API_KEY} or {OPENAI_KEY}.",
            402: "Pay for more, or use another server.",
            403: f"Check the key in {API_KEY} or {OPENAI_KEY}, and whether it may use this model.",
            404: "Check --llm-model and the address; most end in /v1.",
            429: "Pay for more, or use another server.",
        }.get(status, "Check the address, --llm-model and the policy's arguments.")
        return UserError(f"{self.base} refuses the model '{self.model}' (HTTP {status}: {said}). {advice}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: they would send the key to another address."""

    def redirect_request(self, *given: Any) -> None:
        """Follow none."""
        return None


OPENER = urllib.request.build_opener(_NoRedirect())


def base_url(server: str) -> str:
    """The address of an API, without a slash at its end.

    Args:
        server: Address from --server; empty = that of the environment.

    Raises:
        UserError: There is none, or it is not an HTTP address.
    """
    text = (server or os.environ.get(BASE_URL, "")).strip().rstrip("/").removesuffix("/chat/completions")
    source = "--server" if server else BASE_URL
    if not text:
        raise UserError(
            f"The language model's API is not known. Use --server https://HOST/v1, or set {BASE_URL}. --cassette "
            "replay FILE needs none."
        )
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits or parts.username is not None or any(c.isspace() or ord(c) < 33 for c in text):
        raise UserError(f"{source} {one_line(text, 200)} is not the address of an API. Use https://HOST/v1.")
    return text


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else 0


def _count_text(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _message(text: str) -> str:
    """The message in an error's body, or the body itself, in one line."""
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return one_line(text, 300)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error.reason, str):
        error = error.reason
    return one_line(error, 200) or type(error).__name__


def _retry_after(headers: Mapping[str, str], usual: float) -> float:
    """Seconds to wait before the next try: the server's Retry-After (a number or a date), or the usual ones."""
    text = headers.get("Retry-After") or ""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return usual
