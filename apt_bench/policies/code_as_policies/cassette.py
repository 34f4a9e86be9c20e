"""Cassettes: a language model's answers in a file, so that a run can be repeated without a network.

A cassette is a file of JSON lines. The first names the format, the model, the policy's tier and the digests of the
system prompt and of the API's text. Every other line is one answer with the digests of its question. Several workers
append to one file. An episode that was run again stands there again; its last recording counts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from apt_bench.core.config import Natural, Range, build
from apt_bench.core.errors import UserError
from apt_bench.policies.code_as_policies import lines
from apt_bench.policies.code_as_policies.llm import Chat, Message, Reply, Turn

FORMAT = "apt-bench cassette 1"

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Header:
    """The first line of a cassette: what its answers belong to.

    Args:
        model: The model's name.
        tier: The policy's tier.
        system: Digest of the system prompt.
        api: Digest of the API's text.
        format: Version of the format.
    """

    model: str
    tier: str
    system: str
    api: str
    format: str = FORMAT


@dataclass(frozen=True)
class Line:
    """A recorded answer: see `Turn` and `Reply`. exact and loose: digests of the question, see `digests`."""

    episode: str
    turn: Natural
    call: Natural
    exact: str
    loose: str
    text: str
    prompt_tokens: Natural = 0
    completion_tokens: Natural = 0
    cost: Annotated[float, Range(least=0)] | None = None
    seconds: Annotated[float, Range(least=0)] = 0.0
    cut: bool = False


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def digests(messages: Sequence[Message]) -> tuple[str, str]:
    """Two hashes of what a question adds to the conversation: of its text, and of its text with every number replaced
    by the same sign. Images do not count: renderers differ in single pixels."""
    new = messages if len(messages) <= 2 else messages[-1:]  # the first question has the system prompt, too
    text = "\n".join(f"{one['role']}: {_text(one['content'])}" for one in new)
    return digest(text), digest(NUMBER.sub("#", text))


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "[image]") for part in content)


@dataclass(frozen=True)
class Recorder:
    """A chat whose answers are recorded.

    Args:
        chat: Answers the questions.
        path: The cassette; an existing one is continued.
        header: What its answers belong to.

    Raises:
        UserError: The file cannot be written, or belongs to something else.
    """

    chat: Chat
    path: Path
    header: Header

    def __post_init__(self) -> None:
        if os.path.exists(self.path) and os.path.getsize(self.path):
            _check_header(self.path, lines.read(self.path)[0], self.header)

    def ask(self, messages: Sequence[Message], where: Turn) -> Reply:
        """See Chat."""
        reply = self.chat.ask(messages, where)
        exact, loose = digests(messages)
        answer = {k: v for k, v in asdict(reply).items() if k != "differs"}
        line = {**asdict(where), "exact": exact, "loose": loose, **answer}
        lines.append(self.path, line, first=asdict(self.header))
        return reply


class Player:
    """A chat that answers from a cassette.

    Args:
        path: The cassette.
        header: What the answers must belong to.

    Raises:
        UserError: The file cannot be read, is damaged, or belongs to something else.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        found, _ = lines.read(path)
        _check_header(path, found, header)
        self._answers: dict[str, dict[tuple[int, int], Line]] = {}
        for number, one in enumerate(found[1:], 2):
            line: Line = build(Line, one, f"{path}, line {number}")
            if (line.turn, line.call) == (0, 0):
                self._answers[line.episode] = {}  # the episode was run again
            self._answers.setdefault(line.episode, {})[line.turn, line.call] = line

    def ask(self, messages: Sequence[Message], where: Turn) -> Reply:
        """See Chat. Raises UserError where the cassette has no answer, or one to another first question."""
        episode = self._answers.get(where.episode)
        line = episode.get((where.turn, where.call)) if episode else None
        if line is None:
            why = (
                "It was recorded without this episode."
                if not episode
                else (f"The recorded episode has {len(episode)} answers and went differently there.")
            )
            raise UserError(
                f"{self.path} has no answer for episode {where.episode}, turn {where.turn + 1}, question "
                f"{where.call + 1}. {why} Leave the episode out, or record it with --cassette record."
            )
        exact, loose = digests(messages)
        if exact != line.exact and where.turn == where.call == 0:
            raise UserError(
                f"{self.path}: the first question of episode {where.episode} is not the recorded one, although the "
                "system prompt and the API are. Its instruction or its step budget has changed. Repeat the recording's "
                "options, or record the episode again with --cassette record."
            )
        differs: Literal["", "digits", "text"] = (
            "" if exact == line.exact else "text" if loose != line.loose else "digits"
        )
        return Reply(
            line.text, line.prompt_tokens, line.completion_tokens, line.cost, line.seconds, line.cut, differs
        )


def _check_header(path: Path, found: Sequence[Mapping[str, Any]], expected: Header) -> None:
    """Raise UserError where a cassette belongs to something else; the message names what differs."""
    if not found or not str(found[0].get("format", "")).startswith("apt-bench cassette"):
        raise UserError(f"{path} is not a cassette: its first line does not name the format '{FORMAT}'.")
    if found[0]["format"] != FORMAT:
        raise UserError(f"{path} has the format {found[0]['format']!r:.60}; this version reads '{FORMAT}'.")
    header: Header = build(Header, found[0], f"{path}, line 1")
    if header.model != expected.model:
        raise UserError(
            f"{path} was recorded with the model '{header.model}'. Use --llm-model {header.model}."
        )
    if header.tier != expected.tier:
        raise UserError(
            f"{path} was recorded in the tier '{header.tier}', not '{expected.tier}'. Use its policy."
        )
    for name, what in {"system": "system prompt", "api": "API"}.items():
        if getattr(header, name) != getattr(expected, name):
            raise UserError(
                f"{path} was recorded with another {what}, by another version of apt-bench. Use that version, or "
                "record into a new file with --cassette record."
            )
