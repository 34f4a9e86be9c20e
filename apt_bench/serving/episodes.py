"""Which episode of a suite a client runs, from the client's messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.serving.cameras import Cameras, kind_of_scene, known, unknown
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite, load_suite
from apt_bench.suites.suite import ENVIRONMENTS, Cell, Task

LIBERO_SUITES = ("libero_pro", "libero")
"""Suites in which the suite that a client names is searched, after that of `--suite`."""

NO_LIMIT = 10**6


@dataclass(frozen=True)
class Said:
    """A client's description of its episode.

    Args:
        instruction: The instruction.
        suite: Name of a cell, or of a LIBERO benchmark; None where the protocol has no such field.
        task: Index of the task in it.
        init: Index of the initial state.
    """

    instruction: str
    suite: str | None = None
    task: int | None = None
    init: int | None = None


class Episodes:
    """Finds the episodes of clients.

    Args:
        suite: The suite of clients that name none (`--suite`).

    Raises:
        UserError: There is no such suite.
    """

    def __init__(self, suite: str | None) -> None:
        self._given = load_suite(suite) if suite else None
        first = [self._given] if self._given else []
        self._suites = first + [load_suite(name) for name in LIBERO_SUITES if name != suite]

    def find(self, said: Said, protocol: str, connection: int, number: int) -> tuple[EpisodeSpec, Cameras]:
        """The episode and its cameras.

        Args:
            said: The client's description.
            protocol: Name of the protocol.
            connection: Number of the connection.
            number: Number of the episode in the connection, from 0.

        Returns:
            The suite's own episode where suite, task and initial state are known. Otherwise a new one, whose noise key
            depends on `number` alone.
        """
        places = self._places(said)
        return (
            self._spec(places, said) or _client_episode(said, protocol, connection, number),
            self._cameras(places, said),
        )

    def _places(self, said: Said) -> list[tuple[Suite, Cell, Task]]:
        """The tasks that the client may mean."""
        if said.suite is None:
            return self._matches(self._given, said)[0] if self._given else []
        found = [self._matches(suite, said) for suite in self._suites]
        found.sort(key=lambda match: not match[1])  # stable: suites that have the instruction come first
        return next((places for places, _ in found if places), [])

    @staticmethod
    def _matches(suite: Suite, said: Said) -> tuple[list[tuple[Suite, Cell, Task]], bool]:
        """The tasks of a suite that fit the client's description, and whether their instruction does."""
        everywhere = said.suite in (None, suite.name)
        cells = [c for c in suite.cells if everywhere or said.suite in (c.name, c.args.get("benchmark"))]
        tasks = [
            (index, (suite, cell, task))
            for cell in cells
            for index, task in enumerate(suite.cell_tasks(cell))
            if not task.unavailable
        ]
        sentence = said.instruction.strip().lower()
        meant = [t for t in tasks if sentence in (p.lower() for p in t[1][2].prompts.values())]
        indexed = [t for t in meant if t[0] == said.task]
        return [place for _, place in indexed or meant or tasks], bool(meant)

    def _spec(self, places: Sequence[tuple[Suite, Cell, Task]], said: Said) -> EpisodeSpec | None:
        if said.suite is None or said.init is None or len(places) != 1:
            return None
        suite, cell, task = places[0]
        try:
            spec = suite.episode(EpisodeKey(suite.name, cell.name, task.name, said.init, suite.seed))
        except UserError:  # no such initial state
            return None
        return dataclasses.replace(spec, prompt=said.instruction)

    def _cameras(self, places: Sequence[tuple[Suite, Cell, Task]], said: Said) -> Cameras:
        if not places:
            return unknown(self._not_found(said))
        suite = places[0][0]
        if suite.env != ENVIRONMENTS["libero"]:
            return unknown(f"the camera of suite '{suite.name}' differs from scene to scene")
        try:
            kinds = {kind_of_scene(task.args["benchmark"], task.args["task"]) for _, _, task in places}
        except UserError as error:
            return unknown(str(error))
        if len(kinds) > 1:
            return unknown(
                f"the instruction '{one_line(said.instruction, 100)}' is not one of suite "
                f"'{said.suite or suite.name}', whose scenes have different cameras"
            )
        return known(kinds.pop())

    def _not_found(self, said: Said) -> str:
        if said.suite is None:
            return "the client does not name its suite; start the server with --suite libero_pro"
        names = ", ".join(suite.name for suite in self._suites)
        return (
            f"the client's suite '{one_line(said.suite, 100)}' is not in {names}; give its suite with --suite"
        )


def _client_episode(said: Said, protocol: str, connection: int, number: int) -> EpisodeSpec:
    """An episode of which only the instruction is known."""
    key = EpisodeKey(protocol, f"connection{connection}", "client", number, 0)
    return EpisodeSpec(
        key=key,
        env="",
        prompt=said.instruction,
        prompt_source="client",
        prompts={"client": said.instruction},
        max_steps=NO_LIMIT,
        settle_steps=0,
        args={},
        group="",
    )
