"""The prompts of the agent, and how it reads the model's answers."""

from __future__ import annotations

import ast
import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.policies.code_as_policies.llm import Message, Reply
from apt_bench.policies.code_as_policies.sandbox import Ended
from apt_bench.policies.code_as_policies.sandbox_child import AVAILABLE
from apt_bench.suites import EpisodeSpec

FINISH = "FINISH"

SHOWN = 4000
"""Characters of stdout, and of stderr, that the model reads; the middle of a longer text is left out."""

LONGEST = 200_000
"""Characters of an answer, at most."""

SYSTEM = f"""\
You control a robot arm with a two-finger gripper on a table by writing Python code. You are given a task and the \
functions that your code may call.

How it works:
- Each of your answers is one block of executable Python in a single ```python fence. Only the code in the fence is run.
- Blocks are run one after another in the same namespace: variables, functions and imports of earlier blocks remain.
- After each block you are told what it wrote to stdout and stderr. Print what you need to know. Then answer with the \
next block, or with the single word {FINISH} once the task is done.
- A function that moves the robot returns when the motion has ended. Failed calls raise ApiError, which code can catch.
- `np` (numpy) and `math` are imported. These modules can be imported: {AVAILABLE}. There are no files, no network and \
no other programs.
- Units are m and rad. Positions are in the world frame: its x axis points away from the robot's base, its y axis to \
the robot's left, its z axis up. Quaternions are (w, x, y, z).
- Motions take control steps, 20 per second, and an episode has a limited number of them. Move only where needed.
- The episode ends by itself as soon as the task is done, or when its control steps are used up."""


def task(instruction: str, episode: EpisodeSpec, api: str, blocks: int) -> str:
    """The first prompt of an episode."""
    return (
        f"Task: {instruction}\n\n"
        f"The episode has {episode.max_steps} control steps. You may write at most {blocks} blocks of code.\n\n"
        f"The functions that your code may call, which are defined already:\n\n```python\n{api}\n```\n\n"
        f"Write the first block."
    )


def result(ended: Ended, number: int, blocks: int, steps: int, instruction: str = "") -> str:
    """The prompt after a block.

    Args:
        ended: What the block did.
        number: The block's number, from 1.
        blocks: How many blocks there may be.
        steps: Control steps that the episode has taken.
        instruction: The instruction, where it has changed since the last prompt.
    """
    parts = [f"Block {number} of at most {blocks} was run. The episode has taken {steps} control steps."]
    if ended.stopped:
        parts.append(ended.stopped)
    parts += [
        f"{name}:\n{_shown(text)}" for name, text in (("stdout", ended.stdout), ("stderr", ended.stderr))
    ]
    if instruction:
        parts.append(new_task(instruction))
    parts.append(
        f"Answer with the next block in a single ```python fence, or with {FINISH} if the task is done."
    )
    return "\n\n".join(parts)


def new_task(instruction: str) -> str:
    """The prompt for an instruction that replaces the one before."""
    return f"The task has changed. It is now: {instruction}"


def with_images(text: str, images: Mapping[str, np.ndarray]) -> str | list[dict[str, Any]]:
    """The content of a message: the text alone, or followed by images, each after its heading."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    for heading, image in images.items():
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts += [{"type": "text", "text": heading}, {"type": "image_url", "image_url": {"url": url}}]
    return parts if images else text


def without_images(messages: Sequence[Message]) -> list[Message]:
    """The messages with their texts alone. Only the last turn's images are sent, because each costs many tokens."""
    return [
        one if isinstance(one["content"], str) else {**one, "content": one["content"][0]["text"]}
        for one in messages
    ]


def _shown(text: str) -> str:
    text = text.strip()
    if not text:
        return "(empty)"
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]}\n[{len(text) - SHOWN} characters are left out here]\n{text[-SHOWN // 2 :]}"


@dataclass(frozen=True)
class Answer:
    """What an answer of the model means: `code`, or `finish`, or what is wrong with it."""

    code: str = ""
    finish: bool = False
    problem: str = ""


FENCE = re.compile(r"^[ \t]*```([\w+-]*)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


def read(reply: Reply) -> Answer:
    """Read an answer: one fenced block, bare code, or FINISH. Code counts before FINISH."""
    text = reply.text
    if reply.cut:
        return Answer(problem="it was cut at the limit of tokens. Write less")
    if len(text) > LONGEST:
        return Answer(problem=f"it is longer than {LONGEST:,} characters")
    text = without_reasoning(text)
    blocks = [
        code for language, code in FENCE.findall(text) if language.lower() in ("", "python", "py", "python3")
    ]
    if len(blocks) > 1:
        return Answer(problem=f"it has {len(blocks)} code fences instead of one")
    if blocks and blocks[0].strip() not in ("", FINISH):
        return Answer(code=blocks[0])
    if any(line.strip(" *_`.#\"'") == FINISH for line in text.splitlines()):
        return Answer(finish=True)
    if _is_code(text):
        return Answer(code=text)
    return Answer(problem="it is empty" if not text else "it has neither a ```python fence nor FINISH")


def without_reasoning(text: str) -> str:
    """An answer without the reasoning that servers without a parser for it leave at its beginning."""
    return text.rpartition("</think>")[2].strip()


def again(problem: str) -> str:
    """The prompt after an answer that cannot be read."""
    return (
        f"Your answer cannot be used: {problem}. Answer with one block of code in a single ```python fence, or with "
        f"the single word {FINISH}."
    )


def _is_code(text: str) -> bool:
    """Whether a text without a fence is Python that does something."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(one, ast.Expr) or isinstance(one.value, ast.Call) for one in tree.body)
