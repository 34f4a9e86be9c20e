"""Make space in clutter for a grasp: push the object or a neighbour, or set a neighbour aside.

Each candidate push is simulated on a copy of the state, in which the pushed object moves at a constant velocity and
pushes its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.policies.oracle.arm import MAX_EXTENSION, MIN_EXTENSION
from apt_bench.policies.oracle.grasps import Grasp, find_grasps, top_down_clearance
from apt_bench.policies.oracle.motion import (
    CLOSE,
    OPEN,
    Motion,
    move_to,
    servo,
    tilted_frame,
    up,
    without_tilt,
)
from apt_bench.policies.oracle.paths import plan_and_follow
from apt_bench.policies.oracle.pick_place import pick, place
from apt_bench.policies.oracle.world import World

LENGTHS = (0.025, 0.04, 0.055, 0.07, 0.085)  # m, of a push
DIRECTIONS = np.deg2rad([0, 90, 180, 270, 45, 135, 225, 315])  # from the x axis of the object to be grasped
ASIDE_LENGTHS = (0.03, 0.045, 0.06, 0.08, 0.10, 0.13)  # m that a neighbour is set aside
OBLIQUE_COST = 0.02  # m added to the length of an oblique push (against a corner)
TILTS = np.deg2rad([15, 35, 50])  # of the gripper backwards, so that only the fingers come near
NEIGHBOUR_RADIUS = 0.13  # m from the object, within which an object is a neighbour
ON_TABLE = 0.02  # m above the table, below which an object stands on it
MIN_CLEARANCE = 0.002  # m around the pushing gripper
CONTACT_GAP = 0.012  # m between it and the object before the push
ENOUGH_CLEARANCE = 0.004  # m around the open gripper that a grasp needs
MIN_GAIN = 0.002  # m of clearance that a push must add
PUSH_SPEED = 0.2  # m/s, simulated
MIN_UPRIGHT = np.cos(np.deg2rad(15))  # an object that tilts more has toppled
MAX_PENETRATION = 0.004  # m by which a simulated push may press objects into each other
LEAD_LENGTH = 0.015  # m that the end effector aims ahead
GRASP_COST = 0.7  # cost of a grasp, below which it is worth a push
POSTURE_COST = 0.2  # cost of a posture, below which the arm can leave it again
APPROACH_HEIGHT = 0.08  # m above the start of a push
FINGER_CORNERS = 16  # the first corners of the gripper's boxes belong to the fingers
GRIPPER_RADIUS = 0.3  # m around the gripper within which it may collide
FINGER_HALF_WIDTH = 0.012  # m, half the width of the closed fingers


@dataclass(frozen=True)
class Push:
    """Push the object `name` by `length` (m) along `direction` (3,) with the closed fingers or one finger of the open
    gripper. `start`, `rotation`: first pose of the tool frame."""

    name: str
    direction: np.ndarray
    length: float
    start: np.ndarray
    rotation: np.ndarray
    gripper: float


@dataclass(frozen=True)
class SetAside:
    """Pick the object `name` with `grasp` and place its origin at `placement` (3,)."""

    name: str
    grasp: Grasp
    placement: np.ndarray


def make_room(world: World, name: str, destination: np.ndarray) -> Motion:
    """Push one object or set one neighbour aside, so that `name` can be grasped and placed at `destination` (3,), or so
    that more space is left around it. Returns False where neither helps."""
    found = find_push(world, name, destination)
    if found is None:
        return False
    if isinstance(found, SetAside):
        return (yield from set_aside(world, found))
    return (yield from push_along(world, found))


def push_along(world: World, push: Push) -> Motion:
    """Descend behind the object, push it, and retreat upwards."""
    above = push.start + up(APPROACH_HEIGHT)
    straight = without_tilt(push.rotation)
    yield from plan_and_follow(world, above, straight, push.gripper)
    yield from move_to(world, above, straight, push.gripper, tolerance=0.03, angle=0.2)
    yield from move_to(world, above, push.rotation, push.gripper, tolerance=0.015, angle=0.1)
    yield from move_to(
        world, push.start, push.rotation, push.gripper, tolerance=0.01, angle=0.15, steps=40, straight=True
    )
    origin = world.position(push.name)
    for _ in range(60):
        if (world.position(push.name) - origin) @ push.direction > push.length:
            break
        ahead = (world.gripper_position - push.start) @ push.direction + LEAD_LENGTH
        if ahead > push.length + 0.05:
            break
        yield servo(world, push.start + ahead * push.direction, push.rotation, push.gripper)
    back = world.gripper_position - 0.02 * push.direction
    yield from move_to(world, back, push.rotation, push.gripper, tolerance=0.01, steps=10)
    yield from move_to(
        world, world.gripper_position + up(0.12), straight, OPEN, tolerance=0.03, angle=0.2, steps=25
    )
    return True


def set_aside(world: World, aside: SetAside) -> Motion:
    """Pick a neighbour from above and place it a little farther away."""
    if not (yield from pick(world, aside.name, aside.grasp)):
        return False
    yield from place(world, aside.name, aside.placement, 0.0, lambda: False, aside.grasp.rotation)
    return True


def find_push(world: World, name: str, destination: np.ndarray) -> Push | SetAside | None:
    """The shortest push after which there is a grasp, or else a neighbour to set aside, or else the one of these that
    adds the most clearance around the gripper."""
    best: tuple[float, Push] | None = None
    fallback: tuple[float, Push | SetAside] | None = None
    neighbours = _neighbours(world, name)
    if top_down_clearance(world, name, *neighbours[1:]) < ENOUGH_CLEARANCE:
        return None  # the neighbours are not the obstacle
    now = top_down_clearance(world, name)
    for other in neighbours:
        for index, direction in enumerate(_directions(world, name)):
            extra = OBLIQUE_COST * (index >= 4)
            pushes = _contacts(world, other, direction)
            if not pushes:
                continue
            for length, after in _simulate_pushes(world, other, direction):
                pushes = [p for p in (replace(p, length=length) for p in pushes) if _end_is_free(after, p)]
                if not pushes or (best is not None and length + extra >= best[0]):
                    break
                clearance = top_down_clearance(after, name)
                if clearance > ENOUGH_CLEARANCE and _has_grasp(after, name, destination):
                    best = length + extra, pushes[0]
                    break
                value = clearance - 0.05 * (length + extra)
                if clearance > now + MIN_GAIN and (fallback is None or value > fallback[0]):
                    fallback = value, pushes[0]
    if best is not None:
        return best[1]
    for aside, after in _asides(world, name, neighbours[1:]):
        clearance = top_down_clearance(after, name)
        if clearance > ENOUGH_CLEARANCE and _has_grasp(after, name, destination):
            return aside
        if clearance > now + MIN_GAIN and (fallback is None or clearance > fallback[0]):
            fallback = clearance, aside
    return fallback[1] if fallback else None


def _asides(world: World, name: str, neighbours: list[str]) -> Iterator[tuple[SetAside, World]]:
    """Neighbours that can be placed farther from `name`, and the world after that; the shortest distances first."""
    model, scene = world.scene.model, world.scene
    options = []
    for other in neighbours:
        grasps = [g for g in find_grasps(world, other, limit=2) if g.cost < 1]
        outwards = world.position(other) - world.position(name)
        options += [(other, grasps[0], d) for d in _directions(world, name) if grasps and d @ outwards > 0.01]
    for length in ASIDE_LENGTHS:
        for other, grasp, direction in options:
            data, body = copy.copy(scene.data), scene.objects[other].body
            start = int(model.jnt_qposadr[model.body_jntadr[body]])
            data.qpos[start : start + 3] += length * direction
            mujoco.mj_forward(model, data)
            mine = np.isin(data.contact.geom, list(scene.objects[other].geoms)).any(axis=1)
            stands = (np.abs(data.contact.frame[mine, 2]) > 0.9).all()
            shift = length * direction
            placement = world.position(other) + shift
            if (
                stands
                and world.arm.cost(grasp.position + shift, grasp.rotation, scene.objects[other].geoms) < 1
            ):
                yield SetAside(other, grasp, placement), world.in_state(data)


def _has_grasp(world: World, name: str, destination: np.ndarray) -> bool:
    grasps = find_grasps(world, name, destination, limit=1)
    return bool(grasps) and grasps[0].cost < GRASP_COST


def _neighbours(world: World, name: str) -> list[str]:
    """The object and the movable objects beside it on the table."""
    found = [name]
    here = world.position(name)
    for other in world.movables():
        near = np.linalg.norm((world.position(other) - here)[:2]) < NEIGHBOUR_RADIUS
        if other != name and near and world.points(other)[:, 2].min() < world.table_height + ON_TABLE:
            found.append(other)
    return found


def _directions(world: World, name: str) -> list[np.ndarray]:
    axis = world.scene.data.xmat[world.scene.objects[name].body].reshape(3, 3)[:2, 0]
    yaw = float(np.arctan2(axis[1], axis[0]))
    return [np.array([np.cos(yaw + a), np.sin(yaw + a), 0.0]) for a in DIRECTIONS]


def _contacts(world: World, name: str, direction: np.ndarray) -> list[Push]:
    """Collision-free starts of a push (with the length 0): the gripper behind the object and close to the table."""
    everything = world.obstacles()
    points, centre = world.points(name), world.centre(name)
    beside = np.array([-direction[1], direction[0], 0.0])
    strip = points[np.abs((points - centre) @ beside) < FINGER_HALF_WIDTH]
    if not len(strip):
        return []
    rear = float((strip @ direction).min())
    cloud = _near(everything, centre)
    finger = abs(float(world.open_gripper_boxes[0].mean(axis=0)[0]))
    found = []
    behind = centre + direction * (rear - centre @ direction - CONTACT_GAP)
    behind[2] = world.table_height + 0.05
    for tilt in TILTS:
        rotation = tilted_frame(world, behind, direction, float(tilt))
        for gripper, offset in ((CLOSE, 0.0), (OPEN, finger), (OPEN, -finger)):
            corners = _corners(_boxes(world, gripper)) @ rotation.T
            position = centre - offset * rotation[:, 0]
            tips = float((corners[:FINGER_CORNERS] @ direction).max())
            position += direction * (rear - centre @ direction - CONTACT_GAP - tips)
            position[2] = world.table_height + 0.006 - float(corners[:, 2].min())
            push = Push(name, direction, 0.0, position, rotation, gripper)
            met = (position + direction * (CONTACT_GAP + MIN_CLEARANCE)) @ rotation
            palm = world.gripper_clearance((points @ rotation).T.copy(), met, _boxes(world, gripper)[2:])
            # A palm that touches the top of the object would topple it.
            if palm > MIN_CLEARANCE and _free(world, cloud, push, position):
                found.append(push)
    return found


def _end_is_free(world: World, push: Push) -> bool:
    """Whether the arm reaches the end of the push without a collision of the gripper."""
    end = push.start + push.direction * (push.length + CONTACT_GAP)
    return _free(world, _near(world.obstacles(push.name), end), push, end)


def _free(world: World, cloud: np.ndarray, push: Push, position: np.ndarray) -> bool:
    """Whether the pushing gripper can be at a position (3,) without touching the points (n, 3) or the table."""
    clearance = world.gripper_clearance(
        (cloud @ push.rotation).T.copy(), position @ push.rotation, _boxes(world, push.gripper)
    )
    extension = (
        world.arm.extension(position, push.rotation),
        world.arm.extension(position + up(APPROACH_HEIGHT), without_tilt(push.rotation)),
    )
    if clearance < MIN_CLEARANCE or min(extension) < MIN_EXTENSION or max(extension) > MAX_EXTENSION:
        return False
    geoms = [g for o in world.scene.objects.values() for g in o.geoms]
    return world.arm.cost(position, push.rotation, geoms) < POSTURE_COST


def _boxes(world: World, gripper: float) -> np.ndarray:
    return world.closed_gripper_boxes if gripper == CLOSE else world.open_gripper_boxes


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Corners (8 n, 3) of n boxes, those of the two fingers first."""
    ends = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    return np.concatenate([np.stack([box[list(e), [0, 1, 2]] for e in ends]) for box in boxes])


def _near(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return points[np.linalg.norm(points[:, :2] - centre[:2], axis=1) < GRIPPER_RADIUS]


def _simulate_pushes(world: World, name: str, direction: np.ndarray) -> Iterator[tuple[float, World]]:
    """Pairs of a length in `LENGTHS` and the world after a push of that length, until an object topples or jams."""
    model, scene = world.scene.model, world.scene
    data = copy.copy(scene.data)
    data.qvel[:] = 0
    free = {int(model.body_jntadr[scene.objects[n].body]) for n in world.movables()}
    fixed = [j for j in range(model.njnt) if j not in free]
    dofs, addresses = model.jnt_dofadr[fixed], model.jnt_qposadr[fixed]
    held = data.qpos[addresses].copy()
    dof = int(model.body_dofadr[scene.objects[name].body])
    bodies = [scene.objects[n].body for n in world.movables()]
    before = data.xmat[bodies, 8].copy()
    done = 0.0
    for length in LENGTHS:
        for _ in range(int((length - done) / PUSH_SPEED / model.opt.timestep)):
            data.qvel[dof : dof + 6] = [*(PUSH_SPEED * direction[:2]), data.qvel[dof + 2], 0, 0, 0]
            mujoco.mj_step(model, data)
            data.qpos[addresses], data.qvel[dofs] = held, 0
        done = length
        mujoco.mj_forward(model, data)
        toppled = (np.abs(data.xmat[bodies, 8] - before) > 1 - MIN_UPRIGHT).any()
        mine = np.isin(data.contact.geom, list(scene.objects[name].geoms)).any(axis=1)
        if toppled or (data.contact.dist[mine] < -MAX_PENETRATION).any():
            return
        yield length, world.in_state(data)
