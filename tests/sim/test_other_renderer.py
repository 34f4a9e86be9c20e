"""robosuite's own renderer in the same process draws and frees objects in the current GL context.

Neither renderer may change the images of the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apt_bench.envs import rendering

pytestmark = pytest.mark.sim

SCRIPT = """
import gc, hashlib, json, os, sys, threading
import numpy as np
from apt_bench.core.config import load_object
from apt_bench.suites import load_suite

alone, suite, cell = sys.argv[1] == "alone", *sys.argv[2:]
told = {}

def note(what, picture):
    told[what] = [hashlib.sha1(picture.tobytes()).hexdigest(), round(float(picture.std()), 1)]

def theirs():
    import robosuite
    return robosuite.make("Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=True,
                          use_camera_obs=False)

def look(what):
    # The same state each time.
    seen = env.reset(spec, ("agentview", "wrist"))
    note(f"agentview {what}", seen.images["agentview"])
    note(f"wrist {what}", env.step_chunk(np.zeros((1, 7))).images["wrist"])
    note(f"frame {what}", env.frame())

if not alone:
    import robosuite
    first = theirs()
    first.reset()
    before = first.sim.render(64, 64, camera_name="agentview")
spec = load_suite(suite).select([cell], ["0"], 1)[0]
env = load_object(spec.env)()
look("at first")
if not alone:
    assert (first.sim.render(64, 64, camera_name="agentview") == before).all(), "robosuite's picture has changed"
    first.reset()  # frees GL objects, and makes others
look("after its reset")
if not alone:
    second = theirs()
    first.close()
    del first
    gc.collect()
look("after its close")
thread = threading.Thread(target=lambda: note("in a thread", env.frame()))
thread.start()
thread.join()
env.close()
if not alone:
    picture = second.sim.render(64, 64, camera_name="agentview")
    assert picture.std() > 10, "robosuite's picture is gone with our environment"
print(json.dumps(told))
sys.stdout.flush()
os._exit(0)  # robosuite's renderer fails when it is collected at exit
"""


def told(*words: str) -> dict[str, list]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env={**os.environ, "MUJOCO_GL": rendering.choose_backend()},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("suite", "cell"),
    [("libero_pro", "spatial_task"), ("rigid_pick_place", "so")],
    ids=["libero", "tabletop"],
)
def test_pictures_are_the_same_beside_robosuites_renderer(suite: str, cell: str) -> None:
    alone, beside = told("alone", suite, cell), told("beside", suite, cell)
    assert all(deviation > 10 for _, deviation in alone.values())  # pictures of something
    assert alone["agentview at first"] == alone["agentview after its close"]
    assert beside == alone
