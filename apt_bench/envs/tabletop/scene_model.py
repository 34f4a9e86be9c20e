"""Write the MJCF of a `SceneSpec` and compile it.

A model of this size compiles in about 15 ms, so every episode has its own model.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, radians, sin
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from apt_bench.envs.base import AGENTVIEW
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS, Rgb
from apt_bench.envs.tabletop.container_shapes import (
    BOX_INSIDE,
    BOX_WALL,
    LID_TRAVEL,
    box_parts,
    container_parts,
)
from apt_bench.envs.tabletop.item_shapes import shape_of
from apt_bench.envs.tabletop.primitives import Geom, lathe_mesh, numbers
from apt_bench.envs.tabletop.robots import BASE, robot_parts, robot_spec
from apt_bench.envs.tabletop.scene_spec import BOX, FOVY, LOOK_AT, TABLE_Z, Placed, SceneSpec, View
from apt_bench.envs.tabletop.surroundings import SURROUNDINGS, Surroundings
from apt_bench.envs.tabletop.textures import texture_png

TIMESTEP, SUBSTEPS = 0.002, 25  # 20 Hz
SHADOWS = 512
VISUAL, HIDDEN = "1", "0"  # geom groups, as in LIBERO

_HEAD = f"""
<compiler angle="radian" inertiagrouprange="0 1" autolimits="true"/>
<option timestep="{TIMESTEP}" impratio="20" cone="elliptic" density="1.2" viscosity="0.00002"/>
<size nuser_body="0"/>
<statistic extent="1.2" center="-0.1 0 0.95"/>
<visual>
  <quality shadowsize="{SHADOWS}" offsamples="0" numslices="20" numstacks="10"/>
  <map znear="0.01" zfar="40" shadowclip="0.9"/>
  <global offwidth="512" offheight="512"/>
  <headlight ambient="{{ambient}}" diffuse="{{head}}" specular="0.1 0.1 0.1"/>
</visual>"""


def build(spec: SceneSpec, robot: str = "panda") -> tuple[Any, dict[str, bytes]]:
    """Return the MJCF text of a scene, and its textures as PNG bytes by file name."""
    around = SURROUNDINGS[spec.surroundings]
    parts = robot_parts(robot)
    meshes: dict[str, str] = {}
    bodies = [_item(p, meshes) for p in spec.items] + [_container(p, meshes) for p in spec.containers]
    bodies += [_storage_box(spec.box)] if spec.box else []
    textures = {f"{what}.png": texture_png(*getattr(around, what)) for what in ("table", "floor")}
    assets = (
        f'<texture name="sky" type="skybox" builtin="gradient" rgb1="{numbers(*around.sky[0])}" '
        f'rgb2="{numbers(*around.sky[1])}" width="64" height="384"/>'
        + "".join(
            f'<texture name="{w}" type="2d" file="{w}.png"/>'
            f'<material name="{w}" texture="{w}" texrepeat="{r}" texuniform="{u}" specular="{s}" shininess="0.2"/>'
            for w, r, u, s in (("table", "1 1", "false", 0.15), ("floor", "1 1", "true", 0.0))
        )
        + "".join(meshes.values())
    )
    xml = f"""<mujoco model="tabletop">{_HEAD.format(ambient=_light(around, 0.32), head=_light(around, 0.20))}
<asset>{assets}{parts["asset"]}</asset>
<worldbody>
{_room(around)}
<camera name="{AGENTVIEW}" {_camera(spec)} fovy="{FOVY:g}"/>
{parts["worldbody"]}
{"".join(bodies)}
</worldbody>
<actuator>{parts["actuator"]}</actuator><tendon>{parts["tendon"]}</tendon>
</mujoco>"""
    return xml, textures


def compile_scene(spec: SceneSpec, robot: str = "panda") -> tuple[Any, Any]:
    """Compile a scene: (MjModel, MjData) with the arm at its start and the items at rest on the table."""
    xml, textures = build(spec, robot)
    model = mujoco.MjModel.from_xml_string(xml, textures)
    data = mujoco.MjData(model)
    arm = robot_spec(robot)
    data.qpos[: len(arm.home)] = np.array(arm.home) + np.array(spec.joints[: len(arm.home)])
    for joint, value in arm.gripper_start.items():
        data.joint(joint).qpos[:] = value
    if spec.box:
        data.joint(f"{BOX}_lid").qpos[:] = LID_TRAVEL
    mujoco.mj_forward(model, data)
    return model, data


def _item(placed: Placed, meshes: dict[str, str]) -> str:
    shape = shape_of(ITEMS[placed.name])
    half = shape.half
    seen = "".join(_visual(g, f"{placed.name}_{k}", meshes) for k, g in enumerate(shape.geoms))
    pose = f'pos="{numbers(placed.x, placed.y, TABLE_Z)}" quat="{_quat(placed.yaw)}"'
    return (
        f'<body name="{placed.name}" {pose}><freejoint name="{placed.name}_free"/>'
        f'<geom type="box" name="{placed.name}_box" pos="0 0 {half[2]:.5g}" size="{numbers(*half)}" '
        f'group="{HIDDEN}" mass="{shape.mass:g}" '
        f'friction="1.2 0.01 0.001" condim="4" solref="0.01 1"/>'
        f"{seen}</body>"
    )


def _container(placed: Placed, meshes: dict[str, str]) -> str:
    container = CONTAINERS[placed.name]
    seen, solid = container_parts(container.shape, container.color)
    parts = "".join(_visual(g, f"{placed.name}_{k}", meshes) for k, g in enumerate(seen))
    parts += "".join(
        f'<geom type="{g.type}" group="{HIDDEN}" friction="1 0.01 0.001" {_attributes(g.attributes)}/>'
        for g in solid
    )
    site = (
        f'<site name="{placed.name}_inside" type="box" group="4" pos="0 0 {container.height / 2:.5g}" '
        f'size="{numbers(container.inside, container.inside, container.height / 2)}"/>'
    )
    pose = f'pos="{numbers(placed.x, placed.y, TABLE_Z)}" quat="{_quat(placed.yaw)}"'
    return f'<body name="{placed.name}" {pose}>{parts}{site}</body>'


def _storage_box(placed: Placed) -> str:
    """The lid slides outwards along the box's y axis; 0 is closed."""
    box, lid = (
        "".join(
            f'<geom type="{g.type}" group="{VISUAL}" rgba="{numbers(*g.color, 1)}" friction="1 0.01 0.001" mass="0.1" '
            f"{_attributes(g.attributes)}/>"
            for g in geoms
        )
        for geoms in box_parts()
    )
    half_x, half_y, depth = BOX_INSIDE
    site = (
        f'<site name="{BOX}_inside" type="box" group="4" pos="0 0 {BOX_WALL + depth / 2:.5g}" '
        f'size="{numbers(half_x, half_y, depth / 2)}"/>'
    )
    joint = (
        f'<joint name="{BOX}_lid" type="slide" axis="0 1 0" range="0 {LID_TRAVEL}" damping="3" frictionloss="1.5" '
        f'armature="0.1"/>'
    )
    return (
        f'<body name="{BOX}" pos="{numbers(placed.x, placed.y, TABLE_Z)}" quat="{_quat(placed.yaw)}">{box}{site}'
        f'<body name="{BOX}_lid" pos="0 0 {BOX_WALL + depth:.5g}">{joint}{lid}</body></body>'
    )


def _visual(geom: Geom, name: str, meshes: dict[str, str]) -> str:
    mesh = ""
    if geom.profile:
        vertex, face = lathe_mesh(geom.profile)
        meshes[name] = f'<mesh name="{name}" vertex="{vertex}" face="{face}"/>'
        mesh = f'mesh="{name}"'
    return (
        f'<geom type="{geom.type}" {mesh} {_attributes(geom.attributes)} rgba="{numbers(*geom.color, 1)}" '
        f'group="{VISUAL}" contype="0" conaffinity="0" mass="0"/>'
    )


def _attributes(attributes: Mapping[str, str]) -> str:
    return " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items())


def _quat(yaw: float) -> str:
    return numbers(cos(yaw / 2), 0, 0, sin(yaw / 2))


def _light(around: Surroundings, share: float) -> str:
    tint: Rgb = (1 + around.warmth, 1.0, 1 - around.warmth)
    return numbers(*(min(1.0, share * around.light * t) for t in tint))


def _room(around: Surroundings) -> str:
    a = radians(around.azimuth)
    light = f'pos="{numbers(1.2 * cos(a), 1.2 * sin(a), 3.0)}" dir="{numbers(-1.2 * cos(a), -1.2 * sin(a), -2.1)}"'
    legs = "".join(
        f'<geom type="box" pos="{x} {y} 0.43" size="0.03 0.03 0.43" group="{VISUAL}" rgba="0.25 0.24 0.23 1" '
        f'contype="0" conaffinity="0"/>'
        for x in (-0.42, 0.42)
        for y in (-0.55, 0.55)
    )
    return (
        f'<light name="sun" {light} directional="true" castshadow="true" diffuse="{_light(around, 0.52)}" '
        f'specular="0.25 0.25 0.25"/>'
        f'<geom name="floor" type="plane" size="6 6 0.1" material="floor" group="{VISUAL}"/>'
        f'<geom name="table" type="box" pos="0 0 {TABLE_Z - 0.02:g}" size="0.48 0.62 0.02" material="table" '
        f'group="{VISUAL}" friction="1 0.01 0.001"/>{legs}'
        f'<geom type="cylinder" pos="{BASE[0]} {BASE[1]} {BASE[2] / 2:g}" size="0.13 {BASE[2] / 2:g}" group="{VISUAL}" '
        f'rgba="0.22 0.22 0.24 1" contype="0" conaffinity="0"/>'
    )


def _camera(spec: SceneSpec) -> str:
    right, up = camera_axes(spec.view)
    return f'pos="{numbers(*spec.view.position)}" xyaxes="{numbers(*right, *up)}"'


def camera_axes(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Right and up axes of the third-person camera, (3,) each, in the world frame."""
    back = np.array(view.position) - np.array(LOOK_AT)
    back /= np.linalg.norm(back)
    right = np.array([-back[1], back[0], 0.0])
    right /= np.linalg.norm(right)
    return right, np.cross(back, right)
