"""What the perception tier computes from images: masks by a segmenter, points from depth, boxes and top-down grasps."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import ServerLost, UserError
from apt_bench.core.text import one_line
from apt_bench.envs import segmentation
from apt_bench.envs.base import DEPTH, Observation, unmirrored
from apt_bench.policies.code_as_policies.motion import ApiError
from apt_bench.policies.remote.links import HttpLink, addresses

ORACLE = "oracle-seg"
PORT = 8114  # of CaP-X's segmenter
REPLY_SECONDS = 40.0  # with a language model's 120 s, below the 180 s after which a silent worker is killed
MOST_MASKS = 20
MOST_TEXT = 200
MAX_WIDTH = 0.07  # m between the fingers, at most
GRASP_DEPTH = 0.03  # m, finger tips below the top of an object
RIM_DEPTH, RIM_BAND = 0.025, 0.012  # m below the rim: finger tips; points that belong to the rim
ABOVE_BOTTOM = 0.01  # m, finger tips above the lowest point, at least
TRIM = 1.0  # percent of the points cut off at each end: wrong depths at the edges of objects


@dataclass(frozen=True)
class View:
    """One camera's picture, not mirrored.

    Attributes:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W), m along the optical axis.
        K: (3, 3) intrinsics in pixels.
        pose: (4, 4) transform from the camera's frame (x right, y down, z forward) to the world, in m.
        mirrored: Whether the observation's image is the mirror image of `rgb`.
    """

    rgb: np.ndarray
    depth: np.ndarray
    K: np.ndarray
    pose: np.ndarray
    mirrored: bool


def view(observation: Observation, camera: str) -> View:
    """The picture of one camera. Raises UserError where the observation has no image or depth of it."""
    if camera not in observation.images or camera not in observation.depths:
        raise UserError(
            f"needs the image and the depth image of '{camera}' (cameras '{camera}' and '{camera}{DEPTH}'), which this "
            "environment does not provide. Run it in one that does."
        )
    known = observation.cameras[camera]
    rgb, K = unmirrored(observation.images[camera], known.K)
    depth = unmirrored(observation.depths[camera][..., None], known.K)[0][..., 0]
    return View(
        np.ascontiguousarray(rgb), np.ascontiguousarray(depth), K, known.pose.copy(), bool(known.K[0, 0] < 0)
    )


Masks = list[tuple[np.ndarray, float]]
"""Masks, bool (H, W) each, with scores from 0 to 1."""


class Segmenter(Protocol):
    """Finds what a text names in an image."""

    privileged: bool  # whether it reads the simulator's state

    def segment(self, seen: View, text: str, observation: Observation, camera: str) -> Masks:
        """Masks of the pixels of `seen.rgb` that show what the text names."""
        ...


def find_segmenter(text: str) -> Segmenter:
    """The segmenter that the policy's argument `segmenter` names: an HTTP address, or `oracle-seg`.

    Raises:
        UserError: The text is no address, or what answers there does not follow the protocol.
        ServerLost: No server answers there.
    """
    return OracleSegmenter() if text == ORACLE else HttpSegmenter(text)


class HttpSegmenter:
    """A segmentation server: POST /segment with {"image": PNG in base64, "text": ...}, answered by
    {"masks": [PNG in base64, ...], "scores": [...]}."""

    privileged = False

    def __init__(self, address: str) -> None:
        found = addresses(address, ("http", "https"), PORT)[0]
        self._url = found.url
        self._link = HttpLink(found, "/segment", seconds=REPLY_SECONDS)  # without the language model's key
        self._ask(
            np.zeros((64, 64, 3), np.uint8), "object"
        )  # another protocol is an error before the first episode

    def segment(self, seen: View, text: str, observation: Observation, camera: str) -> Masks:
        """Ask the server. Raises ServerLost where it does not answer, and UserError for an answer in another form."""
        return self._ask(seen.rgb, text)

    def _ask(self, image: np.ndarray, text: str) -> Masks:
        body = json.dumps({"image": _png(image), "text": text}).encode()
        try:
            reply = json.loads(self._link.ask(body))
            masks, scores = reply["masks"], reply["scores"]
            if not isinstance(masks, list) or not isinstance(scores, list) or len(masks) != len(scores):
                raise ValueError("masks and scores must be lists of the same length")
            best = sorted(zip(map(float, scores), masks, strict=True), key=lambda p: -p[0])[:MOST_MASKS]
            if not all(0 <= score <= 1 for score, _ in best):
                raise ValueError("a score is not between 0 and 1")
            return [(_mask(mask, image.shape[:2]), score) for score, mask in best]
        except ServerLost:
            raise
        except (ValueError, TypeError, KeyError, OSError, binascii.Error, RecursionError) as error:
            raise UserError(
                f"{self._url} does not answer as a segmenter: {type(error).__name__}: {one_line(error, 200)}. It must "
                'answer {"masks": [PNG in base64, ...], "scores": [...]} with masks of the image\'s size.'
            ) from error


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _mask(text: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(text, str):
        raise ValueError("a mask is not text")
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as file:
        if (file.height, file.width) != tuple(shape):  # before any pixel is decoded
            raise ValueError(
                f"a mask has {file.width} x {file.height} pixels, the image {shape[1]} x {shape[0]}"
            )
        return np.asarray(file.convert("L")) > 127


class OracleSegmenter:
    """The simulator's own labels: every object whose name shares the most words with the text.

    Of two bowls it returns both; it does not know which one the instruction means.
    """

    privileged = True

    def __init__(self) -> None:
        self._labels = segmentation.Segmenter()

    def segment(self, seen: View, text: str, observation: Observation, camera: str) -> Masks:
        """Masks of the matching objects that are visible."""
        if observation.scene is None:
            raise UserError(f"{ORACLE} needs `Observation.scene`, which this environment does not provide.")
        labels = self._labels.labels(
            observation.scene, {camera: observation.cameras[camera]}, len(seen.depth)
        )[camera]
        labels = labels[:, ::-1] if seen.mirrored else labels
        shared = {name: _shared(text, name) for name in self._labels.names}
        best = max(shared.values(), default=0.0)
        found = [
            (labels == label, share)
            for label, (name, share) in enumerate(zip(shared, shared.values(), strict=True), 1)
            if share == best and best > 0
        ]
        return [(mask, share) for mask, share in found if mask.any()]


def _shared(text: str, name: str) -> float:
    """The share of a text's words that are words of an object's name."""
    ignored = {"a", "an", "the", "of", "on", "in"}
    words = {w.removesuffix("s") for w in re.findall(r"[a-z]+", text.lower())} - ignored
    own = {w.removesuffix("s") for w in re.findall(r"[a-z]+", name.lower())}
    return len(words & own) / len(words) if words else 0.0


def points_of(seen: View, mask: np.ndarray) -> np.ndarray:
    """World positions (N, 3) in m of the pixels of a mask, without those at its edge."""
    inner = binary_erosion(mask)
    v, u = np.nonzero(inner if inner.sum() >= 30 else mask)
    z = seen.depth[v, u].astype(float)
    local = np.linalg.inv(seen.K) @ np.stack([u * z, v * z, z])
    return np.asarray(local.T @ seen.pose[:3, :3].T + seen.pose[:3, 3])


@dataclass(frozen=True)
class Box:
    """A box with a vertical axis. `yaw` (rad): from the world's x axis to the box's first side; `size`: m along the
    box's own axes, the first side at least as long as the second."""

    centre: np.ndarray
    size: np.ndarray
    yaw: float

    @property
    def rotation(self) -> Rotation:
        """From the box's frame to the world's."""
        return Rotation.from_euler("z", self.yaw)


def oriented_box(points: np.ndarray) -> Box:
    """The box of least base area, with a vertical axis, that encloses points (N, 3), except for a few outliers."""
    best: Box | None = None
    try:
        hull = points[ConvexHull(points[:, :2]).vertices][:, :2]
        edges = np.roll(hull, -1, axis=0) - hull
        yaws = np.unique(np.round(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2), 2))
    except QhullError:  # all on one line
        along = np.linalg.svd(points[:, :2] - points[:, :2].mean(0), full_matrices=False)[2][0]
        yaws = np.array([np.arctan2(along[1], along[0])])
    for yaw in yaws:
        local = points @ Rotation.from_euler("z", yaw).as_matrix()
        low, high = np.percentile(local, [TRIM, 100 - TRIM], axis=0)
        size = high - low
        if best is None or size[0] * size[1] < best.size[0] * best.size[1]:
            best = Box(Rotation.from_euler("z", yaw).apply((low + high) / 2), size, float(yaw))
    assert best is not None
    if best.size[0] < best.size[1]:
        return Box(best.centre, best.size[[1, 0, 2]], best.yaw + np.pi / 2)
    return best


def top_down_grasp(points: np.ndarray, home: Rotation) -> tuple[np.ndarray, Rotation]:
    """Position and orientation of the hand that grasps an object from straight above: across its narrow side, or, where
    that is too wide for the gripper, at its rim.

    home: orientation of the hand at the start of the episode, whose fingers move along its y axis.
    """
    found = oriented_box(points)
    low, top = np.percentile(points[:, 2], [TRIM, 100 - TRIM])
    if found.size[1] <= MAX_WIDTH:
        height = max(top - GRASP_DEPTH, low + ABOVE_BOTTOM)
        return np.array([*found.centre[:2], height]), hand_down(found.rotation.as_matrix()[:, 1])
    rim = points[points[:, 2] > top - RIM_BAND]
    centre = (rim.min(0) + rim.max(0)) / 2
    across = np.array([*home.as_matrix()[:2, 1], 0.0])
    across /= np.linalg.norm(across)
    along = np.cross([0, 0, 1.0], across)
    strip = rim[np.abs((rim - centre) @ along) < RIM_BAND]
    if len(strip) < 3:
        raise ApiError(
            f"sample_grasp_pose: the object is {100 * found.size[1]:.0f} cm wide, and no rim was found. The gripper "
            f"opens {100 * MAX_WIDTH:.0f} cm."
        )
    sides = [strip[(strip - centre) @ across * sign > 0] for sign in (1, -1)]
    side = max(sides, key=len)
    radius = float(np.percentile(np.abs((side - centre) @ across), 90))
    position = centre + across * radius * np.sign((side - centre).mean(0) @ across)
    return np.array([*position[:2], max(top - RIM_DEPTH, low + ABOVE_BOTTOM)]), hand_down(across)


def hand_down(finger_axis: np.ndarray) -> Rotation:
    """Orientation of a hand that points straight down and whose fingers move along a horizontal axis (3,)."""
    y = finger_axis / np.linalg.norm(finger_axis)
    z = np.array([0.0, 0.0, -1.0])
    return Rotation.from_matrix(np.stack([np.cross(y, z), y, z], axis=1))
