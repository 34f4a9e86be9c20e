"""Motions that move a joint: open and close a drawer, turn a knob, push a door."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apt_bench.envs.base import Atom
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.policies.oracle.arm import MAX_EXTENSION, rotation_vector
from apt_bench.policies.oracle.grasps import find_grasps
from apt_bench.policies.oracle.motion import (
    CLOSE,
    DOWN,
    OPEN,
    Motion,
    close_gripper,
    hold,
    move_to,
    servo,
    tilted_frame,
    top_down_frame,
    up,
    without_tilt,
)
from apt_bench.policies.oracle.paths import plan_and_follow
from apt_bench.policies.oracle.world import World

TO_FAR_END = {"open": True, "turnon": True, "close": False, "turnoff": False}
"""Whether the predicate holds at the end of the joint's range that is farther from zero."""
TILTS = np.deg2rad([68, 62, 74])  # of the gripper that grasps a drawer's handle from the front
DRAG_TILTS = np.deg2rad([50, 40, 60])  # of the gripper that drags a handle by its upper edge
DRAG_BEHIND, DRAG_BELOW = 0.004, 0.02  # m that the finger tips aim behind the bar, and below its top
TIP_REACH = 0.006  # m from the grip site to the finger tips, less the depth behind the bar
DRAG_AHEAD = 0.05  # m that the end effector aims ahead while dragging
PUSH_TILT, SMALL_TILT = np.deg2rad(50), np.deg2rad(15)
TWIST, TWIST_STEP = 1.7, 0.1  # rad of a knob with one grasp, and per control step
PUSH_RADIUS = 0.7  # share of a door's width, from its hinge, at which it is pushed
BELOW_EDGE = 0.02  # m of the finger tips below a door's upper edge, so that the palm passes over it
FINGER = 0.012  # m, half the thickness of a finger
LEAD_ANGLE = 0.2  # rad that the end effector aims ahead of the door
DOOR_RADIUS = 0.1  # m from its axis that a door reaches, and a knob does not
EXTRA_STEPS = 4  # control steps after the predicate holds, because a released joint moves back a little
PULL_BEYOND = 0.08  # m beyond the travel that a pull aims, because the controller lags behind


def joint_of(world: World, atom: Atom) -> int | None:
    """The hinge or slide of a predicate such as `open(drawer_region)` or `turnon(stove)`; None where it has none."""
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
    """Move a joint until its predicate holds."""
    joint = joint_of(world, atom)
    if joint is None or atom.predicate not in TO_FAR_END:
        yield from hold(world, OPEN, 1)
        return False
    model, data = world.scene.model, world.scene.data
    q = float(data.qpos[model.jnt_qposadr[joint]])
    low, high = (float(x) for x in model.jnt_range[joint])
    far, near = (low, high) if abs(low) > abs(high) else (high, low)
    travel = (far if TO_FAR_END[atom.predicate] else near) - q

    def done() -> bool:
        return world.scene.holds(atom)

    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE and is_door(world, joint):
        return (yield from push_door(world, joint, travel, done))
    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE:
        return (yield from turn_knob(world, joint, travel, done, attempt))
    if TO_FAR_END[atom.predicate]:
        return (yield from pull_open(world, joint, travel, done, attempt))
    return (yield from push_shut(world, joint, travel, done))


def turn_knob(world: World, joint: int, travel: float, done: Callable[[], bool], attempt: int) -> Motion:
    """Grasp a knob from above and rotate the end effector about the joint's axis."""
    axis = world.scene.data.xaxis[joint].copy()
    anchor = world.scene.data.xanchor[joint].copy()
    grasps = find_grasps(world, "", part=joint)
    if not grasps:
        yield from hold(world, OPEN, 1)
        return False
    grasp = grasps[attempt % len(grasps)]
    pre_grasp = grasp.position + up(0.08)
    yield from plan_and_follow(world, pre_grasp, grasp.rotation, OPEN)
    yield from move_to(world, pre_grasp, grasp.rotation, OPEN, tolerance=0.012, angle=0.06)
    yield from move_to(world, grasp.position, grasp.rotation, OPEN, tolerance=0.006, steps=40, straight=True)
    yield from close_gripper(world)
    angle, there = 0.0, 0
    for _ in range(50):
        there += done()
        if there > EXTRA_STEPS:
            break
        angle = float(np.clip(angle + np.sign(travel) * TWIST_STEP, -TWIST, TWIST))
        spin = rotation_matrix(axis * angle)
        position = anchor + spin @ (grasp.position - anchor)
        yield servo(world, position, spin @ grasp.rotation, CLOSE)
    yield from hold(world, OPEN, 5)
    yield from move_to(
        world, world.gripper_position + up(0.12), world.gripper_rotation, OPEN, tolerance=0.03, steps=15
    )
    # Rotate the wrist back for the next motion.
    yield from move_to(world, world.gripper_position, DOWN, OPEN, angle=0.2, steps=25)
    return done()


def pull_open(world: World, joint: int, travel: float, done: Callable[[], bool], attempt: int) -> Motion:
    """Grasp a drawer's handle from the front with a tilted gripper, one finger above and one below, and pull."""
    out = world.scene.data.xaxis[joint] * np.sign(travel)
    bar = handle_points(world, joint, out)
    grip = (bar.max(0) + bar.min(0)) / 2
    if all(
        grip[2] + world.lowest_corner(front_approach_frame(out, float(tilt))) < world.table_height
        for tilt in TILTS
    ):
        return (yield from drag_by_edge(world, bar, out, travel, done, attempt))
    rotation = front_approach_frame(out, float(TILTS[attempt % len(TILTS)]))
    pre_grasp = grip - 0.09 * rotation[:, 2]
    yield from plan_and_follow(world, pre_grasp, rotation, OPEN, planned=DOWN)
    yield from move_to(world, pre_grasp, rotation, OPEN, tolerance=0.015, angle=0.1, steps=60)
    yield from move_to(world, grip, rotation, OPEN, tolerance=0.007, angle=0.1, steps=40)
    yield from close_gripper(world)
    start, there = world.gripper_position, 0
    for _ in range(80):
        there += done()
        if there > EXTRA_STEPS:
            break
        target = start + out * (abs(travel) + PULL_BEYOND)
        target[2] = start[2]
        yield servo(world, target, rotation, CLOSE)
    yield from hold(world, OPEN, 6)
    yield from move_to(
        world, world.gripper_position - 0.08 * rotation[:, 2], rotation, OPEN, tolerance=0.02, steps=25
    )
    yield from move_to(world, world.gripper_position + up(0.15), rotation, OPEN, tolerance=0.03, steps=25)
    yield from move_to(world, world.gripper_position, DOWN, OPEN, angle=0.2, steps=25)
    return done()


def drag_by_edge(
    world: World, bar: np.ndarray, out: np.ndarray, travel: float, done: Callable[[], bool], attempt: int
) -> Motion:
    """Open a drawer whose handle, points `bar` (n, 3), leaves no space to grasp it: drag its inner edge with closed
    fingers."""
    rotation = quarter_turn(front_approach_frame(out, float(DRAG_TILTS[attempt % len(DRAG_TILTS)])))
    edge = (bar.max(0) + bar.min(0)) / 2
    edge += out * (float((bar @ out).min()) - float(edge @ out) - DRAG_BEHIND)
    edge[2] = bar[:, 2].max()
    point = edge - TIP_REACH * rotation[:, 2]
    before = point - 0.07 * rotation[:, 2]
    yield from plan_and_follow(world, before + up(0.05), rotation, CLOSE, planned=DOWN)
    yield from move_to(world, before, rotation, CLOSE, tolerance=0.015, angle=0.1, steps=60)
    yield from move_to(world, point, rotation, CLOSE, tolerance=0.006, angle=0.1, steps=30)
    for _ in range(120):
        if done():
            break
        target = point + out * (float((world.gripper_position - point) @ out) + DRAG_AHEAD) - up(DRAG_BELOW)
        yield servo(world, target, rotation, CLOSE)
    yield from move_to(world, world.gripper_position + up(0.15), rotation, CLOSE, tolerance=0.03, steps=25)
    yield from move_to(world, world.gripper_position, DOWN, OPEN, angle=0.2, steps=25)
    return done()


def push_shut(world: World, joint: int, travel: float, done: Callable[[], bool]) -> Motion:
    """Close a drawer: push its front with closed fingers and a tilted gripper, so that only the fingers touch it."""
    into = world.scene.data.xaxis[joint] * np.sign(travel)
    bar = handle_points(world, joint, -into)
    point = (bar.max(0) + bar.min(0)) / 2
    point[2] = max(point[2], world.table_height + 0.02)
    before = point - 0.07 * into
    above = before + up(0.12)
    rotation = front_approach_frame(-into, PUSH_TILT)
    if world.arm.extension(above, rotation) > MAX_EXTENSION:  # tilting the gripper extends the arm
        rotation = tilted_frame(world, before, into, SMALL_TILT)
        yield from plan_and_follow(world, above, DOWN, CLOSE)
        yield from move_to(world, above, without_tilt(rotation), CLOSE, tolerance=0.03, angle=0.2)
    yield from plan_and_follow(world, above, rotation, CLOSE)
    yield from move_to(world, above, rotation, CLOSE, tolerance=0.02)
    yield from move_to(world, before, rotation, CLOSE, tolerance=0.012, steps=40, straight=True)
    for _ in range(80):
        if done():
            break
        yield servo(world, point + into * (abs(travel) + 0.05), rotation, CLOSE)
    yield from move_to(world, world.gripper_position - 0.05 * into, rotation, CLOSE, tolerance=0.02, steps=15)
    yield from move_to(world, world.gripper_position + up(0.15), rotation, OPEN, tolerance=0.03, steps=20)
    return done()


def is_door(world: World, joint: int) -> bool:
    """Whether a hinge moves a door and not a knob."""
    data = world.scene.data
    offsets = world.part_points(joint) - data.xanchor[joint]
    return bool(
        abs(data.xaxis[joint][2]) > 0.9 and np.linalg.norm(offsets[:, :2], axis=1).max() > DOOR_RADIUS
    )


def push_door(world: World, joint: int, travel: float, done: Callable[[], bool]) -> Motion:
    """Push a door with closed fingers from behind, by `travel` (rad) about its vertical hinge."""
    model, data = world.scene.model, world.scene.data
    axis, anchor = data.xaxis[joint] * np.sign(travel), data.xanchor[joint].copy()
    offsets = world.part_points(joint) - anchor
    along = offsets.mean(0) * [1, 1, 0]
    along /= np.linalg.norm(along)
    ahead = np.cross(axis, along)
    radius = PUSH_RADIUS * float((offsets @ along).max())
    behind = float((offsets @ ahead)[np.abs(offsets @ along - radius) < 0.03].min()) - FINGER
    contact = radius * along + behind * ahead
    contact[2] = offsets[:, 2].max() - BELOW_EDGE
    yaws = [float(np.arctan2(along[1], along[0])) + side * np.pi / 2 for side in (-1, 1)]
    rotation = top_down_frame(min(yaws, key=abs))
    start = anchor + contact - 0.06 * ahead
    above = start + up(0.08)
    yield from plan_and_follow(world, above, rotation, CLOSE)
    yield from move_to(world, above, rotation, CLOSE, tolerance=0.02)
    yield from move_to(world, start, rotation, CLOSE, tolerance=0.012, steps=40, straight=True)
    address = model.jnt_qposadr[joint]
    first = float(data.qpos[address])
    for _ in range(150):
        if done():
            break
        turn = abs(float(data.qpos[address]) - first) + LEAD_ANGLE
        yield servo(world, anchor + rotation_matrix(axis * turn) @ contact, rotation, CLOSE)
    yield from move_to(world, world.gripper_position + up(0.15), rotation, CLOSE, tolerance=0.03, steps=20)
    return done()


def handle_points(world: World, joint: int, out: np.ndarray) -> np.ndarray:
    """Points (n, 3) of the part within 1.6 cm of its extreme in the direction `out` (3,): the handle of a drawer."""
    points = world.part_points(joint)
    depth = points @ out
    return points[depth > depth.max() - 0.016]


def front_approach_frame(out: np.ndarray, tilt: float) -> np.ndarray:
    """Tool frame of an approach from the horizontal direction `out` (3,): tilted by `tilt` (rad) from straight down,
    one finger above the other."""
    approach = -out * np.sin(tilt) - np.array([0, 0, np.cos(tilt)])
    bar = np.cross(out, [0, 0, 1.0])
    frames = []
    for sign in (1, -1):
        x = sign * np.cross(bar, approach)
        x /= np.linalg.norm(x)
        frames.append(np.stack([x, np.cross(approach, x), approach], axis=1))
    return min(frames, key=lambda f: float(np.linalg.norm(rotation_vector(f @ DOWN.T))))


def quarter_turn(frame: np.ndarray) -> np.ndarray:
    """The tool frame after a quarter turn about its approach axis: the fingers are then side by side."""
    return frame @ np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of a rotation vector (3,)."""
    angle = float(np.linalg.norm(vector))
    quaternion, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, vector / max(angle, 1e-9), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
