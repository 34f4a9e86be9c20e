"""Which decisions of a tabletop demonstration depend on the noun of the instruction."""

from __future__ import annotations

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.demos.demonstration import DemoInfo
from apt_bench.envs.tabletop.layouts import scene_spec
from apt_bench.training.samples.episodes import Episode

CLOSED = 0.5
"""Commanded opening below which the gripper closes."""


def needs_word(info: DemoInfo, episode: Episode) -> np.ndarray:
    """Whether each decision of an episode depends on the noun of the instruction.

    It does where the hand approaches an item (the gripper has not been commanded to close yet), and the instructed item
    is not the one that is nearest to the hand, measured along the table.

    Args:
        info: Metadata of the demonstration.
        episode: The demonstration as training uses it.

    Returns:
        bool (D,), one per decision.

    Raises:
        UserError: The demonstration is not of a tabletop suite, so the places of its items are unknown.
    """
    key, args = info.key, info.scene.get("args")
    if key is None or not isinstance(args, dict) or "layout" not in args:
        raise UserError(
            f"Demonstration {info.episode} does not record a tabletop scene, so data.word_share cannot be used. "
            "Leave it out, or collect demonstrations of a tabletop suite."
        )
    scene = scene_spec(args, key.task, key.init, key.seed)
    items = np.array([(item.x, item.y) for item in scene.items])
    target = [item.name for item in scene.items].index(scene.target)
    closing = np.flatnonzero(episode.target_open < CLOSED)
    end = closing[0] if len(closing) else len(episode)
    hand = episode.ee_pose[episode.decisions, :2, 3]
    nearest = np.linalg.norm(hand[:, None] - items, axis=-1).argmin(1)
    found: np.ndarray = (episode.decisions < end) & (nearest != target)
    return found
