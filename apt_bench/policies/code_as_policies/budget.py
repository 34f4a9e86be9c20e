"""The budget of a run: what its questions cost, over all workers and all commands that resumed it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.policies.code_as_policies import lines
from apt_bench.policies.code_as_policies.llm import Chat, Message, Reply, Turn


@dataclass
class Budget:
    """A chat whose questions are counted, and which asks none once the budget is spent.

    A question that is being answered is not interrupted. So a run may spend as much more as one question per worker
    costs.

    Args:
        chat: Answers the questions.
        ledger: File in which all workers of a run write what each question cost; None = count in this process alone.
        dollars: US dollars that the run may spend, at most; None = any amount.
        tokens: Tokens of questions and answers together, at most; None = any number.
    """

    chat: Chat
    ledger: Path | None = None
    dollars: float | None = None
    tokens: int | None = None
    _cost: float = field(default=0.0, init=False)
    _tokens: int = field(default=0, init=False)
    _read: int = field(default=0, init=False)  # position in the ledger

    def ask(self, messages: Sequence[Message], where: Turn) -> Reply:
        """See Chat. Raises UserError where the budget is spent, or the server does not report what it must be
        compared with."""
        self._update()
        if self.dollars is not None and self._cost >= self.dollars:
            raise UserError(
                f"The budget of {self.dollars:g} US dollars is spent: {self._cost:.4f} by now{self._in_ledger()}. "
                "Finished episodes are kept. To continue, rerun with a larger --max-cost."
            )
        if self.tokens is not None and self._tokens >= self.tokens:
            raise UserError(
                f"The budget of {self.tokens:,} tokens is spent: {self._tokens:,} by now{self._in_ledger()}. Finished "
                "episodes are kept. To continue, rerun with a larger --policy-arg max_tokens_total."
            )
        reply = self.chat.ask(messages, where)
        self._count(reply, where)
        if self.dollars is not None and reply.cost is None:
            raise UserError(
                "--max-cost needs the cost of each question, and the server does not report it. Give its prices in US "
                "dollars for a million tokens: --policy-arg price_in=... --policy-arg price_out=..."
            )
        if self.tokens is not None and not reply.prompt_tokens + reply.completion_tokens:
            raise UserError("max_tokens_total needs the number of tokens, and the server does not report it.")
        return reply

    def _in_ledger(self) -> str:
        return f" (see {self.ledger})" if self.ledger else ""

    def _count(self, reply: Reply, where: Turn) -> None:
        used = {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cost": reply.cost,
        }
        if self.ledger is None:
            self._add(used)
        else:
            lines.append(self.ledger, {"time": round(time.time(), 3), **asdict(where), **used})

    def _update(self) -> None:
        """Add what the ledger holds since the last time."""
        if self.ledger is not None and os.path.exists(self.ledger):
            found, self._read = lines.read(self.ledger, self._read)
            for line in found:
                self._add(line)

    def _add(self, used: Mapping[str, object]) -> None:
        counts = [used.get(name) for name in ("cost", "prompt_tokens", "completion_tokens")]
        cost, asked, answered = (float(x) if isinstance(x, int | float) else 0.0 for x in counts)
        self._cost += cost
        self._tokens += int(asked + answered)
