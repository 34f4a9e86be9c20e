"""What `apt-bench validate` asks of the tabletop suites: versions, that seen and unseen are disjoint, that the scenes
are those of every other machine, and (slow: they are simulated) that each can be begun: nothing solved, nothing
overlapping, everything named within reach and in the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS, Item, conflict
from apt_bench.envs.tabletop.fingerprints import FINGERPRINTS
from apt_bench.envs.tabletop.layouts import scene_spec
from apt_bench.envs.tabletop.specs import BOX, SceneSpec, within_reach
from apt_bench.envs.tabletop.surroundings import SURROUNDINGS, Surroundings
from apt_bench.suites import Cell, EpisodeSpec, Suite
from apt_bench.suites.findings import Finding, simulator

if TYPE_CHECKING:
    from apt_bench.envs.tabletop.env import TabletopEnv

FINGERPRINTED = 25
"""Initial states per task that a fingerprint covers."""
PUSHED = 0.01
"""m by which settling may move a thing."""
DEEP = 0.001
"""m by which two things may overlap at the start."""
VISIBLE = 40
"""Pixels of a 256 x 256 picture, at least, that show each thing that the instructions name."""


def checks(suite: Suite, premises: bool = False) -> Iterator[Finding]:
    """Every finding, suite first, then cell by cell. `premises`: also build every default scene, about 0.1 s each."""
    yield from simulator(suite)
    clashes = overlaps()
    for clash in clashes:
        yield Finding("error", "split", clash)
    if not clashes:
        counts = [sum(i.target and i.split == s for i in ITEMS.values()) for s in ("seen", "unseen")]
        yield Finding(
            "ok", "split", f"{counts[0]} seen and {counts[1]} unseen targets, disjoint in every sense"
        )
    for cell in suite.cells:
        wanted = FINGERPRINTS.get(suite.name, {}).get(cell.name, "")
        got = fingerprint(suite, cell)
        if not wanted:
            yield Finding("warn", "scenes", f"fingerprint {got}, none on record", cell.name)
        elif got == wanted:
            yield Finding("ok", "scenes", f"fingerprint {got}", cell.name)
        else:
            yield Finding("error", "scenes", f"fingerprint {got} where {wanted} is meant", cell.name)
    if premises:
        yield from _premises(suite)


def overlaps() -> list[str]:
    """Every way in which the unseen split is not unseen: names, looks (shape and colour), aliases, a seen alias that
    also fits, containers, and any part of the surroundings."""
    found = []
    seen, unseen = ([i for i in ITEMS.values() if i.split == s] for s in ("seen", "unseen"))
    for a in seen:
        for b in unseen:
            if a.name == b.name or a.look == b.look or (a.shape, a.color) == (b.shape, b.color):
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
    """12 hex digits of the SHA-256 of the cell's first scenes."""
    digest = hashlib.sha256()
    for task in suite.cell_tasks(cell):
        for init in range(FINGERPRINTED):
            digest.update(scene_spec(cell.args, task.name, init, suite.seed).hash.encode())
    return digest.hexdigest()[:12]


def spec_problems(spec: SceneSpec, args: dict[str, str]) -> list[str]:
    """What contradicts the cell's promise, without a simulator."""
    found = []
    for placed in (*spec.items, *spec.containers, *([spec.box] if spec.box else [])):
        if not within_reach(placed.x, placed.y):
            found.append(f"{placed.name} is out of reach")
    things: list[Item] = [ITEMS[p.name] for p in spec.items]
    found += [f"{a.name} and {b.name} look alike" for a, b in combinations(things, 2) if conflict(a, b)]
    for part in spec.parts:
        target = ITEMS[part[0][1]]
        if not target.target or target.split != args.get("items", "seen"):
            found.append(f"{target.name} is no target of this cell")
    names = {c.name for c in spec.containers} | ({BOX} if spec.box else set())
    found += [
        f"{g[2]} is not there" for part in spec.parts for g in part if len(g) == 3 and g[2] not in names
    ]
    look: Surroundings = SURROUNDINGS[spec.surroundings]
    if look.split != args.get("surroundings", "seen"):
        found.append(f"surroundings {look.name} are of the other split")
    return found


def scene_problems(env: TabletopEnv, spec: EpisodeSpec) -> list[tuple[str, str]]:
    """Settle the scene of an episode: (kind, what is wrong). Kinds: `spec`, `overlap`, `moved`, `goal_reached`,
    `invisible`."""
    env.reset(spec)
    scene = env.scene
    assert scene is not None
    found = [("spec", text) for text in spec_problems(scene.spec, dict(spec.args))]
    if env.start_overlap > DEEP:
        found.append(("overlap", f"two things overlap by {1000 * env.start_overlap:.1f} mm at the start"))
    for placed in scene.spec.items:
        now = env.data.xpos[scene.objects[placed.name].body]
        moved = float(np.hypot(now[0] - placed.x, now[1] - placed.y))
        if moved > PUSHED:
            found.append(("moved", f"settling moves {placed.name} by {moved:.3f} m"))
    if all(scene.holds(a) for a in scene.all_goals) or all(scene.holds(a) for a in scene.goal):
        found.append(("goal_reached", "the goal holds before the policy acts"))
    named = {a for atom in scene.all_goals for a in atom.args}
    picture, values = env.segmentation()
    for name in named:
        pixels = int((picture == values[name]).sum())
        if pixels < VISIBLE:
            found.append(("invisible", f"{name} shows {pixels} pixels"))
    return found


def _premises(suite: Suite) -> Iterator[Finding]:
    from apt_bench.envs.tabletop.env import TabletopEnv

    env = TabletopEnv()
    try:
        for cell in suite.cells:
            good = 0
            for spec in suite.select([cell.name]):
                problems = scene_problems(env, spec)
                good += not problems
                for kind, message in problems:
                    yield Finding("error", kind, message, cell.name, spec.key.task, spec.key.init)
            yield Finding("ok", "premise", f"{good} scenes are fit to begin", cell.name)
    finally:
        env.close()


def guess(spec: SceneSpec) -> float:
    """Chance that someone who cannot read, but knows what training ever asks for, guesses the task from the picture."""
    item_choices = [p.name for p in spec.items if ITEMS[p.name].target and ITEMS[p.name].split == "seen"]
    places = [
        p.name for p in spec.containers if CONTAINERS[p.name].target and CONTAINERS[p.name].split == "seen"
    ]
    known = spec.target in item_choices and spec.destination in places
    return 1 / (len(item_choices) * len(places)) if known else 0.0
