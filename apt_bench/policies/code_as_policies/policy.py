"""Code as policies: a language model writes the code that moves the robot, after CaP-X (arXiv 2603.22435)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from apt_bench.core.config import Count, Positive, Range, build
from apt_bench.core.errors import ServerLost, UserError
from apt_bench.envs.base import AGENTVIEW, Observation
from apt_bench.policies.base import PolicySpec, Provenance, Resources
from apt_bench.policies.code_as_policies import perception, prompts
from apt_bench.policies.code_as_policies.api import Api, ApiError
from apt_bench.policies.code_as_policies.budget import Budget
from apt_bench.policies.code_as_policies.cassette import Header, Player, Recorder, digest
from apt_bench.policies.code_as_policies.llm import Chat, Message, OpenAiChat, Reply, Turn, base_url
from apt_bench.policies.code_as_policies.sandbox import Call, Ended, Sandbox
from apt_bench.suites import EpisodeSpec

Tier = Literal["perception", "oracle-seg", "privileged"]

ORACLE = "oracle-seg"

CHUNK = 10
"""Poses in one chunk, at most."""

Steps = Generator[np.ndarray, Observation, Any]
"""Yields chunks of poses and receives the next observation after each."""


class CodeAsPolicies:
    """A language model that solves an episode by writing blocks of code, one after another.

    Args:
        model: The model's name at its server.
        tier: "perception": the code gets images, depth and a segmenter. "oracle-seg": the same, with the simulator's
            labels as the segmenter. "privileged": the code gets the objects' poses from the simulator.
        server: Addresses of the model's API, of which the first that answers is used; () = the environment's.
        segmenter: Address of the segmentation server of the tier "perception".
        turns: Blocks of code in one episode, at most.
        images: In the tiers with cameras, show the model the agentview image before and after each block.
        temperature: Sampling temperature; None leaves it to the server.
        max_tokens: Tokens of one answer, at most.
        price_in: US dollars for a million tokens of questions, where the server reports no costs.
        price_out: US dollars for a million tokens of answers.
        max_cost: US dollars that a run may spend, at most.
        max_tokens_total: Tokens that a run may use, at most.
        cassette: ("record", FILE) or ("replay", FILE).
        ledger: File that counts what all workers of a run spend.
        timeout: Seconds for one question with all of its retries. `--hang-timeout` must be longer.
        unsafe: Run the code without a sandbox where this machine has none.

    Raises:
        UserError: An argument is wrong, the sandbox is not available, or the server refuses the key or the model.
        ServerLost: No server answers.
    """

    def __init__(
        self,
        model: str = "",
        tier: Tier = "perception",
        server: str | Sequence[str] = (),
        segmenter: str | None = None,
        turns: int = 10,
        images: bool = True,
        temperature: float | None = 1.0,
        max_tokens: int = 8192,
        price_in: float | None = None,
        price_out: float | None = None,
        max_cost: float | None = None,
        max_tokens_total: int | None = None,
        cassette: Sequence[str] = (),
        ledger: str | None = None,
        timeout: float = 120.0,
        unsafe: bool = False,
    ) -> None:
        self._turns: int = build(Annotated[int, Range(least=1, most=1000)], turns, "turns")
        temperature = build(Annotated[float, Range(least=0, most=10)] | None, temperature, "temperature")
        prices = tuple(
            build(Annotated[float, Range(least=0)] | None, value, name)
            for name, value in (("price_in", price_in), ("price_out", price_out))
        )
        if (prices[0] is None) != (prices[1] is None):
            raise UserError("price_in and price_out belong together. Give both.")
        if not build(str, model, "model"):
            raise UserError("The language model is not known. Use --llm-model NAME.")
        self._api = _api(build(Tier, tier, "tier"), build(str | None, segmenter, "segmenter"))
        self._images = build(bool, images, "images") and bool(self._api.cameras)
        self._described = described = self._api.describe()
        header = Header(model, tier, digest(prompts.SYSTEM), digest(described))
        mode, file = _cassette(build(tuple[str, ...], list(cassette), "cassette"))
        self._replays = mode == "replay"
        self._chat: Chat
        if self._replays:
            self._chat = Player(file, header)
        else:
            servers = [server] if isinstance(server, str) else list(server)
            chat = _connected(
                [
                    OpenAiChat(
                        base_url(one),
                        model,
                        temperature,
                        build(Count, max_tokens, "max_tokens"),
                        prices if None not in prices else None,
                        build(Positive, timeout, "timeout"),
                    )
                    for one in servers or [""]
                ]
            )
            self._chat = Budget(
                Recorder(chat, file, header) if mode else chat,
                Path(ledger) if ledger else None,
                build(Positive | None, max_cost, "max_cost"),
                build(Count | None, max_tokens_total, "max_tokens_total"),
            )
        self._sandbox = Sandbox(self._api.names, unsafe=build(bool, unsafe, "unsafe"))
        self._episode: Steps | None = None
        self._notes: Counter[str] = Counter()
        self._ended = ""
        digests = digest(f"{prompts.SYSTEM}\n{described}\n{self._turns}\n{self._images}\n{temperature}")
        self.spec = PolicySpec(
            "code as policies",
            cameras=self._api.cameras,
            horizon=CHUNK,
            execute=CHUNK,
            actions="pose",
            privileged=self._api.privileged,
            resources=Resources(placement="worker"),
            provenance=Provenance(
                weights=f"{model}, prompts {digests}",
                about={
                    "model": model,
                    "tier": tier,
                    "segmenter": {"perception": "HTTP", ORACLE: "the simulator"}.get(tier, "none"),
                    "answers": {"replay": "replayed from a cassette", "record": "live, recorded"}.get(
                        mode, "live"
                    ),
                    "sandbox": self._sandbox.wall,
                },
            ),
        )

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Start an episode: the conversation and the code's namespace are empty."""
        (episode,) = episodes
        if self._episode is not None:
            self._sandbox.close()  # the next block starts another process
        self._api.reset(episode)
        self._episode = None
        self._key, self._spec = episode.key.id, episode
        self._notes, self._ended = Counter(), "interrupted"

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """The next poses. Asks the model and runs its code where no motion is under way."""
        (observation,) = observations
        self._seen = observation
        self._api.observe(observation)
        try:
            if self._episode is None:
                self._episode = self._run()
                return [next(self._episode)]
            return [self._episode.send(observation)]
        except ServerLost:
            self.close()
            raise

    def notes(self, episode: EpisodeSpec) -> Mapping[str, Any]:
        """What the episode took.

        `turns`: questions with their repetitions. `blocks`: blocks of code; `raised`: those that raised an exception;
        `stopped`: those that the sandbox ended. `prompt_tokens`, `completion_tokens`, `cost` (US dollars, if known),
        `thinking_seconds`. `ended`: `finished`, `turns` (no block is left), `unreadable` (two answers in a row), or
        `interrupted` (by the episode's end). `answers`: live or replayed. Of a replay, `differs_digits` and
        `differs_text`: later questions that differ from the recorded ones in numbers alone, or in more.
        """
        found: dict[str, Any] = {
            name: self._notes[name]
            for name in ("turns", "blocks", "raised", "stopped", "prompt_tokens", "completion_tokens")
        }
        found |= {
            name: round(self._notes[name], 6) for name in ("cost", "thinking_seconds") if name in self._notes
        }
        found |= {"ended": self._ended, "answers": "replayed" if self._replays else "live"}
        if self._replays:
            found |= {f"differs_{kind}": self._notes[f"differs_{kind}"] for kind in ("digits", "text")}
        return found

    def close(self) -> None:
        """End the sandbox's process."""
        self._sandbox.close()

    def _run(self) -> Steps:
        """The episode. After each instruction the arm holds still, until there is another one."""
        self._told = self._seen.instruction  # the last instruction that the model was given
        first = prompts.task(self._told, self._spec, self._described, self._turns)
        messages: list[Message] = [_message("system", prompts.SYSTEM), _message("user", first)]
        turn = 0
        while True:
            turn = yield from self._solve(messages, turn)
            while not (changed := self._changed()):
                yield self._api.hold()
            messages.append(_message("user", prompts.new_task(changed)))

    def _solve(self, messages: list[Message], turn: int) -> Generator[np.ndarray, Observation, int]:
        """Blocks of code for one instruction, until the model finishes or may write no more. Returns the number of the
        next turn."""
        for number in range(1, self._turns + 1):
            answer = yield from self._answer(messages, turn)
            turn += 1
            if not answer.code:
                self._ended = "finished" if answer.finish else "unreadable"
                return turn
            images = self._image("agentview before the block")
            ended = yield from self._block(answer.code)
            images |= self._image("agentview after the block")
            text = prompts.result(ended, number, self._turns, self._seen.step, self._changed())
            messages[:] = [
                *prompts.without_images(messages),
                _message("user", prompts.with_images(text, images)),
            ]
        self._ended = "turns"
        return turn

    def _answer(
        self, messages: list[Message], turn: int
    ) -> Generator[np.ndarray, Observation, prompts.Answer]:
        """The model's next answer. It is asked again once where the answer cannot be read.

        Before every question but the episode's first the arm holds its pose for one control step. So each call of `act`
        asks one question at most and returns in time."""
        answer = prompts.Answer()
        for call in range(2):
            if turn or call:
                yield self._api.hold()[:1]
            reply = self._chat.ask(messages, Turn(self._key, turn, call))
            self._count(reply)
            answer, spoken = prompts.read(reply), prompts.without_reasoning(reply.text)[: prompts.LONGEST]
            messages.append(_message("assistant", spoken or "(empty)"))
            if not answer.problem:
                return answer
            messages.append(_message("user", prompts.again(answer.problem)))
        return answer

    def _block(self, code: str) -> Generator[np.ndarray, Observation, Ended]:
        """Run a block. The functions that it calls are answered here."""
        self._notes["blocks"] += 1
        self._sandbox.start(code)
        while isinstance(event := self._sandbox.next(), Call):
            try:
                value = yield from self._api.call(event.name, event.args, event.kwargs)
            except ApiError as error:
                self._sandbox.answer(error=str(error))
            else:
                self._sandbox.answer(value)
        self._notes["stopped"] += event.stopped is not None
        self._notes["raised"] += 'File "<block' in event.stderr  # in tracebacks and in syntax errors
        return event

    def _changed(self) -> str:
        """The instruction, where the model was not given it yet."""
        changed = self._seen.instruction if self._seen.instruction != self._told else ""
        self._told = self._seen.instruction
        return changed

    def _count(self, reply: Reply) -> None:
        used: dict[str, Any] = {
            "turns": 1,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "thinking_seconds": reply.seconds,
        }
        if reply.cost is not None:
            used["cost"] = reply.cost
        if reply.differs:
            used[f"differs_{reply.differs}"] = 1
        self._notes.update(used)

    def _image(self, heading: str) -> dict[str, np.ndarray]:
        """The agentview image now, upright and not mirrored, as the code gets it; none where there are no images."""
        if not self._images:
            return {}
        return {heading: perception.view(self._seen, AGENTVIEW).rgb}


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _api(tier: Tier, segmenter: str | None) -> Api:
    """The functions of a tier. Raises UserError where the segmenter does not fit it."""
    if tier == "perception":
        if segmenter == ORACLE:
            raise UserError(f"The simulator's labels are a policy of their own: use --policy cap-{ORACLE}.")
        if segmenter is None:
            raise UserError(
                "The perception tier needs a segmentation server: use --policy-arg segmenter=http://HOST:PORT "
                "(docs/code-as-policies.md), or --policy cap-oracle-seg or cap-privileged, which need none."
            )
        return Api("perception", perception.find_segmenter(segmenter))
    if segmenter is not None:
        raise UserError(f"The tier '{tier}' takes no segmenter. Leave --policy-arg segmenter out.")
    return Api("privileged") if tier == "privileged" else Api("perception", perception.find_segmenter(ORACLE))


def _cassette(given: tuple[str, ...]) -> tuple[str, Path]:
    """Mode and file; an empty mode where there is no cassette."""
    if not given:
        return "", Path()
    if len(given) != 2 or given[0] not in ("record", "replay"):
        raise UserError(f"cassette is {list(given)}; it must be [record, FILE] or [replay, FILE].")
    return given[0], Path(given[1])


def _connected(chats: Sequence[OpenAiChat]) -> OpenAiChat:
    """The first of the chats whose server answers."""
    lost = []
    for chat in chats:
        try:
            chat.check()
            return chat
        except ServerLost as error:
            lost.append(str(error))
    raise ServerLost("; ".join(lost[:4]))
