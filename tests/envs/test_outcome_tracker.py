"""The outcome tracker on a tiny scene: a two-finger gripper on rails, two cubes, a tray."""

from __future__ import annotations

import json
from typing import Any

import mujoco
import numpy as np
import pytest

from apt_bench.envs.base import Atom, Region, Robot, SceneObject
from apt_bench.envs.outcome_tracker import OutcomeTracker

XML = """
<mujoco>
  <option timestep="0.002"/>
  <default><geom friction="1.5 0.01 0.001" solref="0.01 1"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 .1"/>
    <body name="red" pos="0 0 .02"><freejoint/><geom name="red" type="box" size=".02 .02 .02" mass=".05"/></body>
    <body name="blue" pos=".2 0 .02"><freejoint/><geom name="blue" type="box" size=".02 .02 .02" mass=".05"/></body>
    <body name="tray" pos=".4 0 .005">
      <geom name="tray" type="box" size=".06 .06 .005"/>
      <site name="tray_top" pos="0 0 .03" type="box" size=".05 .05 .03"/>
    </body>
    <body name="drawer" pos="-.3 0 .03">
      <joint name="drawer" type="slide" axis="1 0 0" range="0 .1" damping="1"/>
      <geom name="drawer" type="box" size=".03 .03 .03" mass=".1"/>
    </body>
    <body name="hand" pos="0 0 .3" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0" damping="20"/><joint name="z" type="slide" axis="0 0 1" damping="20"/>
      <geom name="palm" type="box" size=".02 .06 .01" pos="0 0 .05" mass=".5"/>
      <site name="grip"/>
      <body name="left" gravcomp="1"><joint name="left" type="slide" axis="0 1 0" range="0 .04" damping="5"/>
        <geom name="left" type="box" size=".01 .004 .03" pos="0 .004 0" mass=".05"/></body>
      <body name="right" gravcomp="1"><joint name="right" type="slide" axis="0 -1 0" range="0 .04" damping="5"/>
        <geom name="right" type="box" size=".01 .004 .03" pos="0 -.004 0" mass=".05"/></body>
    </body>
  </worldbody>
  <actuator>
    <position joint="x" kp="2000"/><position joint="z" kp="2000"/>
    <position joint="left" kp="300" forcerange="-5 5"/><position joint="right" kp="300" forcerange="-5 5"/>
  </actuator>
</mujoco>
"""


class TinyScene:
    """Goal: the red cube on the tray. Goal of the unperturbed task: the blue cube on the tray."""

    def __init__(self) -> None:
        self.model: Any = mujoco.MjModel.from_xml_string(XML)
        self.data: Any = mujoco.MjData(self.model)
        body, geom = (lambda n: self.model.body(n).id), (lambda n: self.model.geom(n).id)
        self.objects = {
            name: SceneObject(
                name,
                name,
                body(name),
                (body(name),),
                (geom(name),),
                movable=name in ("red", "blue"),
                joints=(self.model.joint("drawer").id,) if name == "drawer" else (),
            )
            for name in ("red", "blue", "tray", "drawer")
        }
        self.regions = {"tray_top": Region("tray_top", "tray", self.model.site("tray_top").id)}
        self.robot = Robot(
            self.model.site("grip").id,
            (frozenset({geom("left")}), frozenset({geom("right")})),
            tuple(int(self.model.joint(n).qposadr[0]) for n in ("left", "right")),
            0.08,
            body("hand"),
        )
        self.goal = (Atom("on", ("red", "tray_top")),)
        self.base_goal = (Atom("on", ("blue", "tray_top")),)
        self.targets = ("red", "tray")

    def holds(self, atom: Atom) -> bool:
        if atom.predicate != "on":
            return False
        site = self.regions[atom.args[1]].site
        offset = self.data.xpos[self.objects[atom.args[0]].body] - self.data.site_xpos[site]
        return bool((np.abs(offset) < self.model.site_size[site]).all())


class Player:
    """Moves the gripper and updates the tracker after every control step of 25 substeps."""

    def __init__(self) -> None:
        self.scene = TinyScene()
        self.tracker = OutcomeTracker(self.scene)
        self.step = 0
        self.target = np.array([0.0, 0.0])  # x, z above the start
        self.opening = 0.04
        for _ in range(100):
            self._control()
            mujoco.mj_step(self.scene.model, self.scene.data)
        self.tracker.start()

    def _control(self) -> None:
        self.scene.data.ctrl[:] = [*self.target, self.opening, self.opening]

    def wait(self, steps: int) -> Player:
        for _ in range(steps):
            for _ in range(25):
                self._control()
                mujoco.mj_step(self.scene.model, self.scene.data)
            self.step += 1
            self.tracker.update(self.step)
        return self

    def move(self, x: float, z: float, steps: int = 20) -> Player:
        goal, start = np.array([x, z - 0.3]), self.target.copy()
        for i in range(steps):
            self.target = start + (goal - start) * (i + 1) / steps
            self.wait(1)
        return self.wait(4)

    def fingers(self, opening: float) -> Player:
        self.opening = opening
        return self.wait(10)

    def pick(self, x: float) -> Player:
        return self.move(x, 0.15).move(x, 0.03).fingers(0.0).move(x, 0.25)

    def finish(self, success: bool = False) -> tuple[str | None, dict[str, Any]]:
        failure, events = self.tracker.finish(success)
        json.dumps(events)  # must be writable as JSON
        return failure, events


def test_events_of_a_success_are_in_order() -> None:
    player = Player().pick(0.0).move(0.4, 0.25).move(0.4, 0.045).fingers(0.04).move(0.4, 0.2)
    assert player.scene.holds(player.scene.goal[0])
    failure, events = player.finish(success=True)
    assert failure is None
    assert list(events["touched"]) == list(events["grasped"]) == list(events["lifted"]) == ["red"]
    assert events["touched"]["red"] <= events["grasped"]["red"] < events["lifted"]["red"]
    (placement,) = events["placements"]
    assert placement["object"] == "red"
    assert placement["on"] == ["tray"]
    assert placement["within"] == ["tray_top"]
    assert placement["held"]
    assert not placement["dropped"]
    truth = events["goal"]["on(red, tray_top)"]
    assert not truth["start"]
    assert truth["last"]
    assert events["lifted"]["red"] < truth["first"] <= placement["step"]
    assert events["shortcut"] is None


def test_nothing_touched() -> None:
    assert Player().wait(10).finish()[0] == "no_contact"


def test_touched_but_not_lifted() -> None:
    player = Player().move(0.0, 0.15).move(0.0, 0.03).fingers(0.02).fingers(0.04).move(0.0, 0.25)
    failure, events = player.finish()
    assert failure == "no_grasp"
    assert events["lifted"] == {}


def test_wrong_object() -> None:
    failure, events = Player().pick(0.2).finish()
    assert failure == "wrong_object"
    assert list(events["lifted"]) == ["blue"]
    assert events["held"] == ["blue"]


def test_wrong_place() -> None:
    failure, events = Player().pick(0.0).move(-0.15, 0.25).move(-0.15, 0.035).fingers(0.04).wait(10).finish()
    assert failure == "wrong_place"
    assert events["placements"][-1]["on"] == ["floor"]


@pytest.mark.parametrize("slip", [False, True])
def test_dropped(slip: bool) -> None:
    player = Player().pick(0.0)
    if slip:  # pushed down through the closed fingers
        red = player.scene.objects["red"].body
        player.scene.data.xfrc_applied[red] = [0, 0, -40, 0, 0, 0]
        player.wait(3)
        player.scene.data.xfrc_applied[red] = 0
        player.wait(20)
    else:
        player.fingers(0.04).wait(20)
    failure, events = player.finish()
    assert failure == "dropped"
    assert events["placements"][-1]["dropped"]


def test_still_in_the_hand_is_a_timeout() -> None:
    assert Player().pick(0.0).finish()[0] == "timeout"


def test_memorised_task() -> None:
    player = Player().pick(0.2).move(0.4, 0.25).move(0.4, 0.045).fingers(0.04).move(0.4, 0.2)
    failure, events = player.finish()
    assert failure == "memorised_task"
    assert events["shortcut"] == events["base_goal"]["on(blue, tray_top)"]["first"]


def test_joint_moved_by_the_robot() -> None:
    player = Player().fingers(0.0).move(-0.36, 0.15).move(-0.36, 0.03).move(-0.31, 0.03)
    failure, events = player.finish()
    assert list(events["operated"]) == ["drawer"]
    assert failure == "wrong_object"  # the goal is about the cube


def test_reads_only() -> None:
    player = Player().pick(0.0)
    before = player.scene.data.qpos.copy(), player.scene.data.qvel.copy(), player.scene.data.qacc.copy()
    player.tracker.update(player.step + 5)
    player.tracker.finish(False)
    after = player.scene.data.qpos, player.scene.data.qvel, player.scene.data.qacc
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
