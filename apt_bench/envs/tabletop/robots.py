"""The robots: robosuite's MJCF files, rendered with their low-polygon collision meshes.

The visual meshes (about 100,000 triangles) are left out: rendering them would take thirty times as long as the rest of
the image. Joint friction, damping and armature are those that robosuite sets when it loads the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from xml.etree import ElementTree as ET

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.provenance import roots

BASE = (-0.66, 0.0, 0.912)
"""Position (m, world frame) of the arm's base, as on LIBERO's tables."""


@dataclass(frozen=True)
class RobotSpec:
    """An arm with a gripper.

    Attributes:
        arm: Folder of the arm in robosuite's assets.
        gripper: File of the gripper in robosuite's assets, without its suffix.
        home: Home positions of the arm's joints (rad).
        fingers: The gripper's two driven joints.
        gripper_start: Start position of each joint of the gripper.
        signs: Direction of each gripper actuator for a closing command.
        left: Names of the left finger's geoms.
        right: Names of the right finger's geoms.
        max_opening: Distance (m) between the fingers of the open gripper.
        colors: Colours of the links, alternating.
        finger_m: See `apt_bench.envs.base.Robot`.
        swap: Collision mesh file -> a file of the same shape with fewer faces.
        damping: Damping of each joint of the arm; () keeps the file's.
    """

    arm: str
    gripper: str
    home: tuple[float, ...]
    fingers: tuple[str, str]
    gripper_start: dict[str, float]
    signs: tuple[float, float]
    left: tuple[str, ...]
    right: tuple[str, ...]
    max_opening: float
    colors: tuple[str, str]
    finger_m: tuple[tuple[float, float], tuple[float, float]]
    swap: dict[str, str]
    damping: tuple[float, ...] = ()


PANDA = RobotSpec(
    arm="robots/panda",
    gripper="panda_gripper",
    home=(0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, 0.7853981633974483),
    fingers=("finger_joint1", "finger_joint2"),
    gripper_start={"finger_joint1": 0.04, "finger_joint2": -0.04},
    signs=(-1.0, 1.0),
    left=("finger1_collision", "finger1_pad_collision"),
    right=("finger2_collision", "finger2_pad_collision"),
    max_opening=0.08,
    colors=("0.93 0.93 0.94 1", "0.86 0.87 0.89 1"),
    finger_m=((0.0, 1.0), (0.0, 1.0)),
    swap={"meshes/link1.stl": "meshes/link2.stl"},  # the same shape with 300 faces in place of 12,516
    damping=(0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01),
)
UR5E = RobotSpec(
    arm="robots/ur5e",
    gripper="robotiq_gripper_85",
    home=(
        -0.30236,
        -1.69675,
        1.91175,
        -1.7858,
        -1.5708,
        -1.87316,
    ),  # the hand has the same pose as the Panda's at home
    fingers=("finger_joint", "right_outer_knuckle_joint"),
    gripper_start=dict.fromkeys(
        (
            "finger_joint",
            "left_inner_finger_joint",
            "left_inner_knuckle_joint",
            "right_outer_knuckle_joint",
            "right_inner_finger_joint",
            "right_inner_knuckle_joint",
        ),
        0.0,
    ),
    signs=(1.0, 1.0),
    left=("left_inner_finger_collision", "left_fingertip_collision", "left_fingerpad_collision"),
    right=("right_inner_finger_collision", "right_fingertip_collision", "right_fingerpad_collision"),
    max_opening=0.085,
    colors=("0.80 0.82 0.84 1", "0.49 0.68 0.80 1"),
    finger_m=((0.0425, -0.0531), (-0.0425, 0.0531)),
    swap={},
)
ROBOTS = {"panda": PANDA, "ur5e": UR5E}


def robot_spec(name: str) -> RobotSpec:
    """Return a robot by name. Raises UserError for an unknown name."""
    if name not in ROBOTS:
        raise UserError(f"No robot '{name}' for the tabletop suites. {did_you_mean(name, ROBOTS)}")
    return ROBOTS[name]


@cache
def robot_parts(name: str) -> dict[str, str]:
    """Return MJCF fragments of a robot by section (asset, worldbody, actuator, tendon), with its base at `BASE`."""
    spec = robot_spec(name)
    places = roots("robosuite")  # without importing it, which takes seconds, warns and writes a log file
    if not places:
        raise UserError("The tabletop suites need robosuite's robot files. Install robosuite==1.4.0.")
    assets = places[0] / "models" / "assets"
    arm = ET.parse(assets / spec.arm / "robot.xml").getroot()
    gripper = ET.parse(assets / "grippers" / f"{spec.gripper}.xml").getroot()
    sections: dict[str, list[ET.Element]] = {"asset": [], "worldbody": [], "actuator": [], "tendon": []}
    for tree, folder in ((arm, assets / spec.arm), (gripper, assets / "grippers")):
        for body in tree.iter("body"):
            for geom in [
                g for g in body.findall("geom") if g.get("contype") == "0" and g.get("group") == "1"
            ]:
                body.remove(geom)
            for site in [s for s in body.findall("site") if s.get("name") != "grip_site"]:
                body.remove(site)
            for camera in body.findall("camera"):
                body.remove(camera)
        used = {g.get("mesh") for g in tree.iter("geom")}
        kept: set[str] = set()
        for mesh in _section(tree, "asset").findall("mesh"):
            mesh_name = mesh.get("name", "")
            if mesh_name in used and mesh_name not in kept:
                kept.add(mesh_name)
                file = mesh.get("file", "")
                mesh.set("file", str(folder / spec.swap.get(file, file)))
                sections["asset"].append(mesh)
        for section in ("actuator", "tendon"):
            sections[section] += list(_section(tree, section))
    joints = list(arm.iter("joint"))
    for i, joint in enumerate(joints):
        joint.set("frictionloss", joint.get("frictionloss", "0.1"))
        joint.set("armature", f"{5 / (i + 1):.6g}")
        if spec.damping:
            joint.set("damping", f"{spec.damping[i]:g}")
    for i, geom in enumerate(g for tree in (arm, gripper) for g in tree.iter("geom")):
        geom.set("group", "1")
        geom.set("rgba", spec.colors[i % 2])
    for geom in gripper.iter("geom"):
        geom.set("rgba", "0.27 0.28 0.30 1")
        if "pad" in geom.get("name", ""):
            geom.set("rgba", "0.55 0.56 0.58 1")
    hand = next(b for b in arm.iter("body") if b.get("name") == "right_hand")
    hand.append(ET.fromstring('<camera name="wrist" pos="0.05 0 0" quat="0 0.707108 0.707108 0" fovy="75"/>'))
    hand.extend(_section(gripper, "worldbody"))
    base = _section(arm, "worldbody")[0]
    base.set("name", "robot")
    base.set("pos", " ".join(map(str, BASE)))
    sections["worldbody"].append(base)
    return {s: "".join(ET.tostring(e, encoding="unicode") for e in es) for s, es in sections.items()}


def _section(tree: ET.Element, name: str) -> ET.Element:
    found = tree.find(name)
    return found if found is not None else ET.Element(name)
