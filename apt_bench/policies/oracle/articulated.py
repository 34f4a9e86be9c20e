"""Skills on joints: pull a drawer open, push it shut, turn a knob."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apt_bench.envs.base import Atom
from apt_bench.envs.mj import mujoco
from apt_bench.policies.oracle.arm import STRETCH, rotation_vector
from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.grasps import find_grasps
from apt_bench.policies.oracle.motion import (
    CLOSE,
    DOWN,
    OPEN,
    Motion,
    action_towards,
    close_fingers,
    follow,
    go,
    hold,
    pointing,
    turned,
    up,
    upright,
)
from apt_bench.policies.oracle.paths import plan

FARTHER = {"open": True, "turnon": True, "close": False, "turnoff": False}
"""Whether the predicate wants the end of the joint's range that is farther from zero."""
LEANS = np.deg2rad([68, 62, 74])  # of the hand that reaches for a drawer's handle from the front
HOOK_LEANS = np.deg2rad([50, 40, 60])  # of the hand that drags it by its upper edge
HOOK, HOOK_PRESS = 0.004, 0.02  # m that the finger tips aim behind the bar, and below its top
TIP = 0.006  # m that the finger tips reach beyond the grip site, less what goes behind the bar
DRAG = 0.05  # m ahead that a dragging hand aims
PUSH_LEAN, UPRIGHT_LEAN = np.deg2rad(50), np.deg2rad(15)
TWIST, TWIST_STEP = 1.7, 0.1  # rad: of one grip, per control step
SHARE = 0.7  # of a door's width, from its hinge, where it is pushed
BELOW_EDGE = 0.02  # m of the finger tips below a door's upper edge, so that the palm passes over it
FINGER = 0.012  # m, half thickness
LEAD = 0.2  # rad that the hand aims ahead of the door
DOOR = 0.1  # m: what a hinge moves farther from its axis than this is a door, otherwise a knob
MORE = 4  # control steps that a joint is moved on once the predicate holds: let go, it gives a little
OVERSHOOT = 0.08  # m that a pull goes on beyond the wanted travel, because the controller lags behind


def joint_of(world: World, atom: Atom) -> int | None:
    """The hinge or slide that a predicate like `open(drawer_region)` or `turnon(stove)` is about."""
    scene, name = world.scene, atom.args[0]
    if name in scene.objects:
        joints = scene.objects[name].joints
    elif name in scene.regions and scene.regions[name].parent in scene.objects:
        region = scene.regions[name]
        body = scene.model.site_bodyid[region.site] if region.site is not None else -1
        joints = tuple(j for j in scene.objects[region.parent].joints if scene.model.jnt_bodyid[j] == body)
    else:
        return None
    return joints[0] if joints else None


def operate(world: World, atom: Atom, attempt: int) -> Motion:
    """Bring about one predicate of a joint."""
    joint = joint_of(world, atom)
    if joint is None or atom.predicate not in FARTHER:
        yield from hold(world, OPEN, 1)
        return False
    model, data = world.scene.model, world.scene.data
    q = float(data.qpos[model.jnt_qposadr[joint]])
    low, high = (float(x) for x in model.jnt_range[joint])
    far, near = (low, high) if abs(low) > abs(high) else (high, low)
    travel = (far if FARTHER[atom.predicate] else near) - q

    def done() -> bool:
        return world.scene.holds(atom)

    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE and is_door(world, joint):
        return (yield from swing(world, joint, travel, done))
    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE:
        return (yield from turn(world, joint, travel, done, attempt))
    if FARTHER[atom.predicate]:
        return (yield from pull(world, joint, travel, done, attempt))
    return (yield from push(world, joint, travel, done))


def turn(world: World, joint: int, travel: float, done: Callable[[], bool], attempt: int) -> Motion:
    """Take hold of a knob from above and turn the hand about the joint's axis."""
    axis = world.scene.data.xaxis[joint].copy()
    anchor = world.scene.data.xanchor[joint].copy()
    grasps = find_grasps(world, "", part=joint)
    if not grasps:
        yield from hold(world, OPEN, 1)
        return False
    grasp = grasps[attempt % len(grasps)]
    above = grasp.position + up(0.08)
    yield from follow(world, plan(world, above, grasp.rotation, world.obstacles()), grasp.rotation, OPEN)
    yield from go(world, above, grasp.rotation, OPEN, tolerance=0.012, angle=0.06)
    yield from go(world, grasp.position, grasp.rotation, OPEN, tolerance=0.006, steps=40, straight=True)
    yield from close_fingers(world)
    angle, there = 0.0, 0
    for _ in range(50):
        there += done()
        if there > MORE:
            break
        angle = float(np.clip(angle + np.sign(travel) * TWIST_STEP, -TWIST, TWIST))
        spin = rotation_matrix(axis * angle)
        position = anchor + spin @ (grasp.position - anchor)
        yield action_towards(world, position, spin @ grasp.rotation, CLOSE)
    yield from hold(world, OPEN, 5)
    yield from go(world, world.grip + up(0.12), world.grip_rotation, OPEN, tolerance=0.03, steps=15)
    yield from go(world, world.grip, DOWN, OPEN, angle=0.2, steps=25)  # untwist the wrist for what comes next
    return done()


def pull(world: World, joint: int, travel: float, done: Callable[[], bool], attempt: int) -> Motion:
    """Reach for the handle from the front, the hand leaning, fingers around the bar, and pull."""
    out = world.scene.data.xaxis[joint] * np.sign(travel)
    bar = handle(world, joint, out)
    grip = (bar.max(0) + bar.min(0)) / 2
    if all(grip[2] + world.below(facing(out, float(lean))) < world.surface for lean in LEANS):
        return (yield from hook(world, bar, out, travel, done, attempt))
    rotation = facing(out, float(LEANS[attempt % len(LEANS)]))
    before = grip - 0.09 * rotation[:, 2]
    yield from follow(world, plan(world, before, DOWN, world.obstacles()), rotation, OPEN)
    yield from go(world, before, rotation, OPEN, tolerance=0.015, angle=0.1, steps=60)
    yield from go(world, grip, rotation, OPEN, tolerance=0.007, angle=0.1, steps=40)
    yield from close_fingers(world)
    start, there = world.grip, 0
    for _ in range(80):
        there += done()
        if there > MORE:
            break
        target = start + out * (abs(travel) + OVERSHOOT)
        target[2] = start[2]
        yield action_towards(world, target, rotation, CLOSE)
    yield from hold(world, OPEN, 6)
    yield from go(world, world.grip - 0.08 * rotation[:, 2], rotation, OPEN, tolerance=0.02, steps=25)
    yield from go(world, world.grip + up(0.15), rotation, OPEN, tolerance=0.03, steps=25)
    yield from go(world, world.grip, DOWN, OPEN, angle=0.2, steps=25)
    return done()


def hook(
    world: World, bar: np.ndarray, out: np.ndarray, travel: float, done: Callable[[], bool], attempt: int
) -> Motion:
    """Press closed fingers onto the inner edge of a handle's bar (n, 3) that leaves no room to grip it, and drag."""
    rotation = sideways(facing(out, float(HOOK_LEANS[attempt % len(HOOK_LEANS)])))
    edge = (bar.max(0) + bar.min(0)) / 2
    edge += out * (float((bar @ out).min()) - float(edge @ out) - HOOK)
    edge[2] = bar[:, 2].max()
    point = edge - TIP * rotation[:, 2]
    before = point - 0.07 * rotation[:, 2]
    yield from follow(world, plan(world, before + up(0.05), DOWN, world.obstacles()), rotation, CLOSE)
    yield from go(world, before, rotation, CLOSE, tolerance=0.015, angle=0.1, steps=60)
    yield from go(world, point, rotation, CLOSE, tolerance=0.006, angle=0.1, steps=30)
    for _ in range(120):
        if done():
            break
        target = point + out * (float((world.grip - point) @ out) + DRAG) - up(HOOK_PRESS)
        yield action_towards(world, target, rotation, CLOSE)
    yield from go(world, world.grip + up(0.15), rotation, CLOSE, tolerance=0.03, steps=25)
    yield from go(world, world.grip, DOWN, OPEN, angle=0.2, steps=25)
    return done()


def push(world: World, joint: int, travel: float, done: Callable[[], bool]) -> Motion:
    """Push with closed fingers against the front, the hand leaning back so that only they come near."""
    into = world.scene.data.xaxis[joint] * np.sign(travel)
    bar = handle(world, joint, -into)
    point = (bar.max(0) + bar.min(0)) / 2
    point[2] = max(point[2], world.surface + 0.02)
    before = point - 0.07 * into
    above = before + up(0.12)
    rotation = facing(-into, PUSH_LEAN)
    if world.arm.stretch(above, rotation) > STRETCH:  # a hand that leans back stretches the arm
        rotation = pointing(world, before, into, UPRIGHT_LEAN)
        yield from follow(world, plan(world, above, DOWN, world.obstacles()), DOWN, CLOSE)
        yield from go(world, above, upright(rotation), CLOSE, tolerance=0.03, angle=0.2)
    yield from follow(world, plan(world, above, rotation, world.obstacles()), rotation, CLOSE)
    yield from go(world, above, rotation, CLOSE, tolerance=0.02)
    yield from go(world, before, rotation, CLOSE, tolerance=0.012, steps=40, straight=True)
    for _ in range(80):
        if done():
            break
        yield action_towards(world, point + into * (abs(travel) + 0.05), rotation, CLOSE)
    yield from go(world, world.grip - 0.05 * into, rotation, CLOSE, tolerance=0.02, steps=15)
    yield from go(world, world.grip + up(0.15), rotation, OPEN, tolerance=0.03, steps=20)
    return done()


def is_door(world: World, joint: int) -> bool:
    """Whether a hinge carries a door, not a knob."""
    data = world.scene.data
    offsets = world.part_points(joint) - data.xanchor[joint]
    return bool(abs(data.xaxis[joint][2]) > 0.9 and np.linalg.norm(offsets[:, :2], axis=1).max() > DOOR)


def swing(world: World, joint: int, travel: float, done: Callable[[], bool]) -> Motion:
    """Push a door with closed fingers from behind, by `travel` (rad) about its upright hinge."""
    model, data = world.scene.model, world.scene.data
    axis, anchor = data.xaxis[joint] * np.sign(travel), data.xanchor[joint].copy()
    offsets = world.part_points(joint) - anchor
    along = offsets.mean(0) * [1, 1, 0]
    along /= np.linalg.norm(along)
    ahead = np.cross(axis, along)
    radius = SHARE * float((offsets @ along).max())
    behind = float((offsets @ ahead)[np.abs(offsets @ along - radius) < 0.03].min()) - FINGER
    contact = radius * along + behind * ahead
    contact[2] = offsets[:, 2].max() - BELOW_EDGE
    yaws = [float(np.arctan2(along[1], along[0])) + side * np.pi / 2 for side in (-1, 1)]
    rotation = turned(min(yaws, key=abs))
    start = anchor + contact - 0.06 * ahead
    above = start + up(0.08)
    yield from follow(world, plan(world, above, rotation, world.obstacles()), rotation, CLOSE)
    yield from go(world, above, rotation, CLOSE, tolerance=0.02)
    yield from go(world, start, rotation, CLOSE, tolerance=0.012, steps=40, straight=True)
    address = model.jnt_qposadr[joint]
    first = float(data.qpos[address])
    for _ in range(150):
        if done():
            break
        turn = abs(float(data.qpos[address]) - first) + LEAD
        yield action_towards(world, anchor + rotation_matrix(axis * turn) @ contact, rotation, CLOSE)
    yield from go(world, world.grip + up(0.15), rotation, CLOSE, tolerance=0.03, steps=20)
    return done()


def handle(world: World, joint: int, out: np.ndarray) -> np.ndarray:
    """(n, 3) points of what sticks out farthest in the direction `out`: the last 1.6 cm."""
    points = world.part_points(joint)
    depth = points @ out
    return points[depth > depth.max() - 0.016]


def facing(out: np.ndarray, lean: float) -> np.ndarray:
    """Tool frame of a hand that comes from the direction `out` (horizontal), leaning by `lean` (rad) from straight
    down, its fingers above and below."""
    approach = -out * np.sin(lean) - np.array([0, 0, np.cos(lean)])
    bar = np.cross(out, [0, 0, 1.0])
    frames = []
    for sign in (1, -1):
        x = sign * np.cross(bar, approach)
        x /= np.linalg.norm(x)
        frames.append(np.stack([x, np.cross(approach, x), approach], axis=1))
    return min(frames, key=lambda f: float(np.linalg.norm(rotation_vector(f @ DOWN.T))))


def sideways(frame: np.ndarray) -> np.ndarray:
    """The tool frame, a quarter turn about its approach: the fingers beside each other."""
    return frame @ np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3) of a rotation vector."""
    angle = float(np.linalg.norm(vector))
    quaternion, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, vector / max(angle, 1e-9), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
