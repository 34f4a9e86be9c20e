"""Camera calibration of LIBERO's own demonstrations, computed from the stored XML of the scene."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.demos.demonstration import CameraTrack
from apt_bench.envs.base import AGENTVIEW, WRIST

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_FOVY = 45.0  # MuJoCo's default, degrees
_DEPTH = 100
"""Largest depth of nested bodies; a robot's arm has ten."""


def cameras_from_mjcf(
    xml: str, size: tuple[int, int], achieved: np.ndarray, where: str
) -> dict[str, CameraTrack]:
    """The third-person camera, fixed in the world, and the wrist camera, fixed to the hand.

    Files that the XML names are not read.

    Args:
        xml: The scene's XML.
        size: Height and width of the images, which are LIBERO's mirror images once upright.
        achieved: (T, 4, 4) Poses of the hand: position of the grip site, orientation of the hand.
        where: The place; begins every message.

    Returns:
        Calibration by camera name, without cameras that the XML lacks.

    Raises:
        UserError: The text is not XML, or a camera is invalid.
    """
    try:
        chains = {e.get("name"): chain for e, chain in _walk(ElementTree.fromstring(xml), [])}
        tracks: dict[str, CameraTrack] = {}
        if chain := chains.get("agentview"):
            pose = _product(chain) @ _OPENGL_TO_OPENCV
            tracks[AGENTVIEW] = CameraTrack(_K(chain[-1], size), np.tile(pose, (len(achieved), 1, 1)))
        camera, grip = chains.get("robot0_eye_in_hand"), chains.get("gripper0_grip_site")
        if camera and grip:
            depth = len(camera) - 1  # camera and grip site are both below the hand
            to_hand = np.eye(4)
            to_hand[:3, 3] = -_product(grip[depth:])[:3, 3]
            tracks[WRIST] = CameraTrack(
                _K(camera[-1], size), achieved @ to_hand @ _product(camera[depth:]) @ _OPENGL_TO_OPENCV
            )
    except (ElementTree.ParseError, ValueError) as error:  # UnicodeEncodeError among them
        raise UserError(
            f"{where} does not describe a scene: {one_line(error, 200)}. Cameras are computed from it. Remove the "
            "attribute to read the demonstrations without cameras."
        ) from None
    return tracks


Chain = list[ElementTree.Element]


def _walk(element: ElementTree.Element, above: Chain) -> Iterator[tuple[ElementTree.Element, Chain]]:
    """Cameras and sites, each with its chain: the bodies above it, outermost first, and itself."""
    if len(above) > _DEPTH:
        raise ValueError(f"bodies are nested more than {_DEPTH} deep")
    for child in element:
        if child.tag in ("worldbody", "body"):
            yield from _walk(child, [*above, child])
        elif child.tag in ("camera", "site"):
            yield child, [*above, child]


def _numbers(element: ElementTree.Element, name: str, default: str, count: int) -> list[float]:
    text = element.get(name, default)
    values = [float(x) for x in text.split()]
    if len(values) != count or not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        raise ValueError(f"{element.tag} '{element.get('name', '')}' has {name}=\"{text}\"")
    return values


def _product(chain: Chain) -> np.ndarray:
    pose = np.eye(4)
    for element in chain:
        step = np.eye(4)
        step[:3, 3] = _numbers(element, "pos", "0 0 0", 3)
        w, x, y, z = _numbers(element, "quat", "1 0 0 0", 4)
        if not w * w + x * x + y * y + z * z > 1e-12:
            raise ValueError(f"{element.tag} '{element.get('name', '')}' has a quat of length 0")
        step[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
        pose = pose @ step
    return pose


def _K(camera: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    (fovy,) = _numbers(camera, "fovy", str(_FOVY), 1)
    if not 0.1 <= fovy <= 179:
        raise ValueError(f"camera '{camera.get('name', '')}' has a fovy of {fovy:g} degrees")
    focal = 0.5 * height / np.tan(np.deg2rad(fovy) / 2)
    return np.array([[-focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
