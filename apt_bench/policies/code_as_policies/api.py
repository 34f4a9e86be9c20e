"""The functions that a model's code may call, in two tiers: `perception` and `privileged`.

Every public method of a tier's class is a function of the API. The model reads its signature and its docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import did_you_mean
from apt_bench.envs.base import AGENTVIEW, DEPTH, WRIST, Observation
from apt_bench.policies.code_as_policies import objects, perception
from apt_bench.policies.code_as_policies.motion import CHUNK, CLOSE, OPEN, ApiError, Arm, Motion
from apt_bench.policies.code_as_policies.perception import MOST_TEXT, Segmenter
from apt_bench.policies.oracle.world import World
from apt_bench.suites import EpisodeSpec

__all__ = ["Api", "ApiError"]

Tier = Literal["perception", "privileged"]

MOST_POINTS = 200_000
FEWEST_POINTS = 10
WORKSPACE = 2.5  # m from the world's origin
MOST_APPROACH = 0.5  # m


class Api:
    """The functions of one tier, for one episode at a time.

    Args:
        tier: "perception": images, depth and a segmenter. "privileged": object poses from the simulator.
        segmenter: For the perception tier.

    Attributes:
        names: The functions that the code may call.
        cameras: For `PolicySpec.cameras`.
        privileged: For `PolicySpec.privileged`.
    """

    def __init__(self, tier: Tier, segmenter: Segmenter | None = None) -> None:
        self._arm = Arm()
        if tier == "privileged":
            self._functions: _Functions = _Privileged(self._arm)
            self.cameras: tuple[str, ...] = ()
            self.privileged = True
        elif segmenter is not None:
            self._functions = _Perception(self._arm, segmenter)
            self.cameras = (AGENTVIEW, WRIST, AGENTVIEW + DEPTH, WRIST + DEPTH)
            self.privileged = segmenter.privileged
        else:
            raise ValueError("the perception tier needs a segmenter")
        kinds = (type(self._functions), _Functions)
        self.names = tuple(n for kind in kinds for n in vars(kind) if not n.startswith("_"))

    def describe(self) -> str:
        """Signatures and docstrings of the functions, as the prompt shows them."""
        texts = []
        for name in self.names:
            function = getattr(self._functions, name)
            texts.append(f'def {name}{_signature(function)}:\n    """{_indented(function)}"""')
        return "\n\n".join(texts)

    def reset(self, episode: EpisodeSpec) -> None:
        """Start an episode. Its first observation follows with `observe`."""
        self._arm.reset()
        self._functions._reset()

    def observe(self, observation: Observation) -> None:
        """Take an observation: each one that the policy gets."""
        self._arm.observe(observation)
        self._functions._observe()

    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Motion:
        """Call a function of the API.

        Args:
            name: One of `names`.
            args: Positional arguments of the code.
            kwargs: Keyword arguments of the code.

        Returns:
            A generator that yields chunks (n, 7) of target poses, n <= 10, receives the next observation, and returns
            what the function returns.

        Raises:
            ApiError: An argument is wrong, or the call cannot be done.
        """
        if name not in self.names:
            raise ApiError(f"There is no function '{name}'. {did_you_mean(name, self.names)}")
        function = getattr(self._functions, name)
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise ApiError(f"{name}: {error}. Its signature: {name}{_signature(function)}.") from None
        found = function(*args, **kwargs)
        return (yield from found) if inspect.isgenerator(found) else found

    def hold(self) -> np.ndarray:
        """A chunk (10, 7) that keeps the pose and the gripper."""
        return self._arm.hold(CHUNK)


class _Functions:
    """What both tiers have."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm

    def _reset(self) -> None:
        """Forget the last episode."""

    def _observe(self) -> None:
        """The arm has a new observation."""

    def get_gripper_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """The gripper's pose now.

        Returns:
            position: (3,) in m, world frame: the point between the finger tips.
            quaternion_wxyz: (4,) orientation of the hand in the world frame. Its z axis is the approach direction
                (straight down at the start of an episode), its y axis the direction in which the fingers move.
        """
        return self._arm.position, _wxyz(self._arm.rotation)

    def get_gripper_opening(self) -> float:
        """The distance between the fingers in m: about 0.08 when open, 0 when closed on nothing."""
        return self._arm.opening

    def goto_pose(self, position: np.ndarray, quaternion_wxyz: np.ndarray, z_approach: float = 0.0) -> Motion:
        """Move the gripper to a pose in a straight line and wait until it is there. The fingers do not change.

        Obstacles are not avoided. Raises an ApiError with the remaining distance where the arm is blocked or the pose
        is out of reach.

        Args:
            position: (3,) in m, world frame: the point between the finger tips.
            quaternion_wxyz: (4,) orientation of the hand. A hand that is turned by 180 degrees about its z axis is
                the same grasp; the one nearer to the orientation at the start is used.
            z_approach: m. Above 0, first go to the point that is this far back along the hand's z axis (above the
                pose, for a hand that points down), then to the pose.
        """
        goal = _vector("goto_pose: position", position, 3)
        if np.linalg.norm(goal) > WORKSPACE:
            raise ApiError(f"goto_pose: position {goal.round(3).tolist()} is out of reach.")
        rotation = _rotation("goto_pose: quaternion_wxyz", quaternion_wxyz)
        above = float(_vector("goto_pose: z_approach", [z_approach], 1)[0])
        if not 0 <= above <= MOST_APPROACH:
            raise ApiError(f"goto_pose: z_approach is {above:g} m; it must be from 0 to {MOST_APPROACH:g}.")
        yield from self._arm.go_to(goal, rotation, above)

    def open_gripper(self) -> Motion:
        """Open the gripper at the present pose and wait until the fingers stop."""
        yield from self._arm.move_gripper(OPEN)

    def close_gripper(self) -> Motion:
        """Close the gripper at the present pose and wait until the fingers stop. It stays closed, with force, until
        `open_gripper`."""
        yield from self._arm.move_gripper(CLOSE)


class _Privileged(_Functions):
    """Object poses from the simulator."""

    def _reset(self) -> None:
        self._world: World | None = None

    def _observe(self) -> None:
        if (
            self._world is None
        ):  # at the start: the expert's kinematics take the arm's posture there as its rest
            self._world = World(objects.scene_of(self._arm))

    def get_object_names(self) -> list[str]:
        """Names of the objects in the scene, and of the regions that belong to one, such as the inside of a basket or
        a drawer. Things of one kind are numbered: `bowl_1`, `bowl_2`."""
        return objects.names(objects.scene_of(self._arm))

    def get_object_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The pose of an object or a region.

        Returns:
            position: (3,) in m, world frame: the centre of the box along the world's axes that encloses it.
            quaternion_wxyz: (4,) its orientation in the world frame.
        """
        centre, _, rotation = objects.box(objects.scene_of(self._arm), name)
        return centre, _wxyz(rotation)

    def get_object_size(self, name: str) -> np.ndarray:
        """Size (3,) in m, along the world's x, y and z axes, of the box that encloses an object or a region now. Its
        top is at `get_object_pose(name)[0][2] + get_object_size(name)[2] / 2`."""
        return objects.box(objects.scene_of(self._arm), name)[1]

    def sample_grasp_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A pose of the gripper that grasps an object from straight above: across its narrow side, or at the rim of a
        bowl or another wide hollow thing. Raises an ApiError where there is none.

        Returns:
            position: (3,) in m, world frame.
            quaternion_wxyz: (4,), as for `goto_pose`.
        """
        assert self._world is not None
        position, rotation = objects.grasp(self._arm, self._world, name)
        return position, _wxyz(rotation)


class _Perception(_Functions):
    """Images, depth and a segmenter."""

    def __init__(self, arm: Arm, segmenter: Segmenter) -> None:
        super().__init__(arm)
        self._segmenter = segmenter

    def get_observation(self) -> dict[str, dict[str, np.ndarray]]:
        """The cameras' images now.

        Returns:
            For "agentview" (fixed, in front of the robot) and "wrist" (on the hand) a dict with
            rgb: uint8 (H, W, 3). depth: float32 (H, W), m along the optical axis. intrinsics: (3, 3) in pixels.
            camera_pose: (4, 4) from the camera's frame (x right, y down, z forward) to the world, in m.
        """
        found = {}
        for camera in (AGENTVIEW, WRIST):
            seen = perception.view(self._arm.observation, camera)
            found[camera] = {
                "rgb": seen.rgb,
                "depth": seen.depth,
                "intrinsics": seen.K,
                "camera_pose": seen.pose,
            }
        return found

    def segment(self, text: str, camera: str = "agentview") -> list[dict[str, Any]]:
        """Find what a short text names, such as "red mug", in a camera's image.

        Returns:
            The best first, none where nothing was found: dicts with mask: bool (H, W), and score: 0 to 1. Several
            things of one kind may all be found.
        """
        if not isinstance(text, str) or not text.strip() or len(text) > MOST_TEXT:
            raise ApiError(f"segment: text must be 1 to {MOST_TEXT} characters.")
        seen = self._view("segment", camera)
        found = self._segmenter.segment(seen, text, self._arm.observation, camera)
        return [{"mask": mask, "score": score} for mask, score in sorted(found, key=lambda f: -f[1])]

    def points_of(self, mask: np.ndarray, camera: str = "agentview") -> np.ndarray:
        """Points (N, 3) in m, world frame, of the pixels of a mask (bool (H, W), of the same camera's image now). Only
        surfaces that the camera sees have points."""
        seen = self._view("points_of", camera)
        array = np.asarray(mask)
        if array.dtype != bool or array.shape != seen.depth.shape:
            raise ApiError(
                f"points_of: mask is {array.dtype} {array.shape}; it must be bool {seen.depth.shape}."
            )
        if not array.any():
            raise ApiError("points_of: the mask is empty.")
        return perception.points_of(seen, array)

    def oriented_box(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """The smallest upright box that encloses points (N, 3), except for a few outliers.

        Returns:
            A dict with center: (3,) in m, world frame. extent: (3,) in m along the box's own axes, whose third one is
            vertical and whose first one is the longer horizontal side. quaternion_wxyz: (4,) of the box.
        """
        box = perception.oriented_box(_cloud("oriented_box", points))
        return {"center": box.centre, "extent": box.size, "quaternion_wxyz": _wxyz(box.rotation)}

    def sample_grasp_pose(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A pose of the gripper that grasps the object with these points (N, 3) from straight above: across its narrow
        side, or at the rim of a bowl or another wide hollow thing. Raises an ApiError where there is none.

        Returns:
            position: (3,) in m, world frame.
            quaternion_wxyz: (4,), as for `goto_pose`.
        """
        cloud = _cloud("sample_grasp_pose", points)
        position, rotation = perception.top_down_grasp(cloud, self._arm.home)
        return position, _wxyz(rotation)

    def _view(self, function: str, camera: object) -> perception.View:
        if camera not in (AGENTVIEW, WRIST):
            raise ApiError(f"{function}: camera must be '{AGENTVIEW}' or '{WRIST}'.")
        return perception.view(self._arm.observation, str(camera))


def _signature(function: Any) -> str:
    """The signature as the code sees it: a motion returns nothing."""
    signature = inspect.signature(function, eval_str=True)
    if inspect.isgeneratorfunction(function):
        signature = signature.replace(return_annotation=None)
    return str(signature)


def _indented(function: Any) -> str:
    return inspect.cleandoc(function.__doc__).replace("\n", "\n    ").replace("\n    \n", "\n\n")


def _numbers(what: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise ValueError
    except (ValueError, TypeError):
        raise ApiError(f"{what} must be numbers.") from None
    array = array.astype(float)
    if not np.isfinite(array).all():
        raise ApiError(f"{what} must be finite.")
    return array


def _vector(what: str, value: Any, length: int) -> np.ndarray:
    array = _numbers(what, value)
    if array.shape != (length,):
        raise ApiError(f"{what} has the shape {array.shape}; it must be ({length},).")
    return array


def _rotation(what: str, value: Any) -> Rotation:
    quaternion = _vector(what, value, 4)
    if not 0.5 < np.linalg.norm(quaternion) < 2:
        raise ApiError(f"{what} {quaternion.round(3).tolist()} is no rotation: its length must be 1.")
    return Rotation.from_quat(np.roll(quaternion, -1))


def _cloud(function: str, value: Any) -> np.ndarray:
    points = _numbers(f"{function}: points", value)
    if points.ndim != 2 or points.shape[1] != 3 or not FEWEST_POINTS <= len(points) <= MOST_POINTS:
        raise ApiError(
            f"{function}: points has the shape {points.shape}; it must be (N, 3) with N from {FEWEST_POINTS} to "
            f"{MOST_POINTS}."
        )
    return points


def _wxyz(rotation: Rotation) -> np.ndarray:
    """(4,), with the largest component positive: a quaternion and its negative are the same rotation."""
    quaternion = np.roll(rotation.as_quat(), 1)
    return quaternion * np.sign(quaternion[np.abs(quaternion).argmax()])
