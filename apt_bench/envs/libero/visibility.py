"""Which geoms a camera can see, directly or in a mirror.

A geom can only be seen if its bounding box reaches into the pyramid of the camera's image. Seen in a flat mirror it
must reach into the pyramid from the mirrored camera through the mirror. Both tests are conservative: what they leave
out changes no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from apt_bench.envs.mujoco_no_gl import mujoco

MARGIN = 1e-3  # m
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


@dataclass(frozen=True)
class HalfSpaces:
    """The points p (3,), in m, in the world's axes, with `normals @ p >= offsets`.

    Attributes:
        normals: (N, 3), of length 1.
        offsets: (N,), in m.
    """

    normals: np.ndarray
    offsets: np.ndarray

    def miss(self, corners: np.ndarray) -> np.ndarray:
        """Which boxes (G, 8, 3) certainly lie outside: bool (G,). All corners of such a box are outside of the same
        half-space."""
        outside: np.ndarray = (corners @ self.normals.T < self.offsets - MARGIN).all(axis=1).any(axis=1)
        return outside


class Visibility:
    """The bounding boxes of a model's geoms, and what of them a camera can see."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._finite = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
        boxes = model.geom_aabb  # centre and half sizes, in the geom's axes
        self._local = boxes[:, None, :3] + CORNERS * boxes[:, None, 3:]

    def corners(self, data: Any) -> np.ndarray:
        """The corners of all geoms' bounding boxes, in m, in the world's axes: (G, 8, 3)."""
        turned = np.matmul(self._local, data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1))
        return np.asarray(turned + data.geom_xpos[:, None])

    def seen(self, data: Any, camera: int, corners: np.ndarray) -> np.ndarray:
        """Which geoms may be in a camera's square image: bool (G,)."""
        tangent = np.tan(np.radians(self._model.cam_fovy[camera]) / 2)
        sides = np.array([[1, 0, -tangent], [-1, 0, -tangent], [0, 1, -tangent], [0, -1, -tangent]])
        normals = sides / np.hypot(1, tangent) @ data.cam_xmat[camera].reshape(3, 3).T
        image = HalfSpaces(normals, normals @ data.cam_xpos[camera])
        return np.asarray(~(image.miss(corners) & self._finite))

    def reflected(self, data: Any, camera: int, mirror: int, corners: np.ndarray) -> np.ndarray | None:
        """Which geoms the camera may see in the upper side of a box: bool (G,); None where MuJoCo may draw no
        reflection because the camera is not above that side."""
        axes, sizes = data.geom_xmat[mirror].reshape(3, 3).T, self._model.geom_size[mirror]
        up = axes[2]
        centre = data.geom_xpos[mirror] + up * sizes[2]
        height = (data.cam_xpos[camera] - centre) @ up
        if height < MARGIN:
            return None
        eye = data.cam_xpos[camera] - 2 * height * up
        rim = [
            centre + axes[0] * sizes[0] * i + axes[1] * sizes[1] * j - eye
            for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))
        ]
        inward = np.array([np.cross(a, b) for a, b in zip(rim, rim[1:] + rim[:1], strict=True)])
        normals = inward / np.linalg.norm(inward, axis=1, keepdims=True)
        normals *= np.sign(normals @ (centre - eye))[:, None]
        space = HalfSpaces(np.vstack([normals, up]), np.append(normals @ eye, up @ centre))
        return np.asarray(~(space.miss(corners) & self._finite))
