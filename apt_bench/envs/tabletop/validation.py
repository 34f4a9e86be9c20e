"""The checks of `apt-bench validate` for the tabletop suites.

They check the simulator's version, that the seen and unseen splits are disjoint, and that the scenes are the same as on
every other machine. A slow check simulates each scene: no goal holds at the start, nothing overlaps, and every object
that an instruction names is within reach and visible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from apt_bench.core.status import name_step
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS, Item, conflict
from apt_bench.envs.tabletop.fingerprints import FINGERPRINTS
from apt_bench.envs.tabletop.layouts import scene_spec
from apt_bench.envs.tabletop.scene_spec import BOX, SceneSpec, within_reach
from apt_bench.envs.tabletop.surroundings import SURROUNDINGS, Surroundings
from apt_bench.suites import Cell, EpisodeSpec, Suite
from apt_bench.suites.findings import Finding, simulator

if TYPE_CHECKING:
    from apt_bench.envs.tabletop.env import TabletopEnv

FINGERPRINTED = 25
"""Number of initial states per task that a fingerprint covers."""
MAX_SETTLING = 0.01
"""Largest distance (m) by which settling may move an object."""
MAX_OVERLAP = 0.001
"""Largest overlap (m) of two objects at the start."""
MIN_PIXELS = 40
"""Smallest number of pixels of a 256 x 256 image that must show each object that the instructions name."""


def checks(suite: Suite, premises: bool = False) -> Iterator[Finding]:
    """Yield every finding: the suite's first, then cell by cell.

    `premises`: also simulate every default scene, about 0.1 s each.
    """
    yield from simulator(suite)
    clashes = overlaps()
    for clash in clashes:
        yield Finding("error", "split", clash)
    if not clashes:
        counts = [sum(i.target and i.split == s for i in ITEMS.values()) for s in ("seen", "unseen")]
        yield Finding("ok", "split", f"{counts[0]} seen and {counts[1]} unseen targets, which share nothing")
    for cell in suite.cells:
        wanted = FINGERPRINTS.get(suite.name, {}).get(cell.name, "")
        got = fingerprint(suite, cell)
        if not wanted:
            yield Finding("warn", "scenes", f"fingerprint {got}, none is recorded", cell.name)
        elif got == wanted:
            yield Finding("ok", "scenes", f"fingerprint {got}", cell.name)
        else:
            yield Finding("error", "scenes", f"fingerprint {got}, but {wanted} is recorded", cell.name)
    if premises:
        yield from _premises(suite)


def overlaps() -> list[str]:
    """Find everything that the unseen split shares with the seen split.

    Compared are names, appearance (shape and colour), aliases, containers and every part of the surroundings; also
    whether two targets that may share a scene share an alias."""
    found = []
    seen, unseen = ([i for i in ITEMS.values() if i.split == s] for s in ("seen", "unseen"))
    for a in seen:
        for b in unseen:
            if a.name == b.name or a.appearance == b.appearance or (a.shape, a.color) == (b.shape, b.color):
                found.append(f"{b.name} looks like {a.name}")
            if set(a.aliases) & set(b.aliases):
                found.append(f"{b.name} is called like {a.name}")
    for one, other in combinations([i for i in ITEMS.values() if i.target], 2):
        if set(one.aliases) & set(other.aliases) and not conflict(one, other):
            found.append(f"{one.name} and {other.name} share an alias")
    for c in CONTAINERS.values():
        for d in CONTAINERS.values():
            if c.split == "seen" and d.split == "unseen" and (c.shape == d.shape or c.color == d.color):
                found.append(f"container {d.name} looks like {c.name}")
    for s in SURROUNDINGS.values():
        for u in SURROUNDINGS.values():
            if s.split == "seen" and u.split == "unseen":
                shared = [p for p in ("table", "floor", "sky", "azimuth") if getattr(s, p) == getattr(u, p)]
                shared += ["light"] if (s.light, s.warmth) == (u.light, u.warmth) else []
                found += [f"surroundings {u.name} share {p} with {s.name}" for p in shared]
    return found


def fingerprint(suite: Suite, cell: Cell) -> str:
    """The first 12 hex digits of the SHA-256 of the cell's first scenes."""
    digest = hashlib.sha256()
    for task in suite.cell_tasks(cell):
        for init in range(FINGERPRINTED):
            digest.update(scene_spec(cell.args, task.name, init, suite.seed).hash.encode())
    return digest.hexdigest()[:12]


def spec_problems(spec: SceneSpec, args: dict[str, str]) -> list[str]:
    """Find what contradicts the cell's arguments, without a simulator."""
    found = []
    for placed in (*spec.items, *spec.containers, *([spec.box] if spec.box else [])):
        if not within_reach(placed.x, placed.y):
            found.append(f"{placed.name} is out of reach")
    items: list[Item] = [ITEMS[p.name] for p in spec.items]
    found += [f"{a.name} and {b.name} look alike" for a, b in combinations(items, 2) if conflict(a, b)]
    for subtask in spec.subtasks:
        target = ITEMS[subtask.goal[0][1]]
        if not target.target or target.split != args.get("items", "seen"):
            found.append(f"{target.name} is not a target of this cell")
    names = {c.name for c in spec.containers} | ({BOX} if spec.box else set())
    found += [
        f"{atom[2]} is missing"
        for subtask in spec.subtasks
        for atom in subtask.goal
        if len(atom) == 3 and atom[2] not in names
    ]
    around: Surroundings = SURROUNDINGS[spec.surroundings]
    if around.split != args.get("surroundings", "seen"):
        found.append(f"surroundings {around.name} are of the other split")
    return found


def scene_problems(env: TabletopEnv, spec: EpisodeSpec) -> list[tuple[str, str]]:
    """Let the scene of an episode settle and return its problems as (kind, message).

    Kinds: `spec`, `overlap`, `moved`, `goal_reached`, `invisible`."""
    env.reset(spec)
    scene = env.scene
    assert scene is not None
    found = [("spec", text) for text in spec_problems(scene.spec, dict(spec.args))]
    if env.start_overlap > MAX_OVERLAP:
        found.append(("overlap", f"two objects overlap by {1000 * env.start_overlap:.1f} mm at the start"))
    for placed in scene.spec.items:
        now = env.data.xpos[scene.objects[placed.name].body]
        moved = float(np.hypot(now[0] - placed.x, now[1] - placed.y))
        if moved > MAX_SETTLING:
            found.append(("moved", f"settling moves {placed.name} by {moved:.3f} m"))
    if all(scene.holds(a) for a in scene.all_goals) or all(scene.holds(a) for a in scene.goal):
        found.append(("goal_reached", "the goal holds before the policy acts"))
    named = {a for atom in scene.all_goals for a in atom.args}
    image, values = env.segmentation()
    for name in named:
        pixels = int((image == values[name]).sum())
        if pixels < MIN_PIXELS:
            found.append(("invisible", f"{name} covers {pixels} pixels"))
    return found


def _premises(suite: Suite) -> Iterator[Finding]:
    from apt_bench.envs.tabletop.env import TabletopEnv

    env = TabletopEnv()
    try:
        for cell in suite.cells:
            good = 0
            specs = suite.select([cell.name])
            for number, spec in enumerate(specs, 1):
                name_step(f"Checking {cell.name}: initial state {number} of {len(specs)}")
                problems = scene_problems(env, spec)
                good += not problems
                for kind, message in problems:
                    yield Finding("error", kind, message, cell.name, spec.key.task, spec.key.init)
            yield Finding("ok", "premise", f"{good} scenes have no problem at the start", cell.name)
    finally:
        env.close()


def guess(spec: SceneSpec) -> float:
    """Probability of guessing the task from the image alone, given which targets and containers training names."""
    item_choices = [p.name for p in spec.items if ITEMS[p.name].target and ITEMS[p.name].split == "seen"]
    places = [
        p.name for p in spec.containers if CONTAINERS[p.name].target and CONTAINERS[p.name].split == "seen"
    ]
    known = spec.target in item_choices and spec.destination in places
    return 1 / (len(item_choices) * len(places)) if known else 0.0
