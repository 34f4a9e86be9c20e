"""Demonstrations from the real scenes: labels, cameras and images agree, and actions replay bit for bit."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from apt_bench.core.config import load_object
from apt_bench.demos.collect import collect
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.replay import Replayer
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.envs.segmentation import Segmenter
from apt_bench.policies.preprocessing import shrink
from apt_bench.rollout.runner import RunOptions
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim

SCENES = [("rigid_pick_place", "so"), ("libero", "goal")]


@pytest.mark.parametrize(("suite", "cell"), SCENES)
def test_labels_lie_where_the_cameras_put_the_objects(suite: str, cell: str) -> None:
    """The segmentation, the camera's K and pose, and (in LIBERO) the mirroring come from different places."""
    spec = load_suite(suite).select([cell], episodes=1)[0]
    env, segmenter, size = load_object(spec.env)(), Segmenter(), 128
    seen = env.reset(spec, (AGENTVIEW, WRIST), privileged=True)
    labels = segmenter.labels(seen.scene, seen.cameras, size)
    checked = 0
    for name, camera in seen.cameras.items():
        for label, thing in enumerate(segmenter.names, 1):
            rows, columns = np.nonzero(labels[name] == label)
            if len(rows) < 30 or not seen.scene.objects[thing].movable:
                continue
            if min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == size - 1:
                continue  # cut off
            centre = seen.scene.data.xpos[seen.scene.objects[thing].body]
            x, y, z = camera.K @ (camera.pose[:3, :3].T @ (centre - camera.pose[:3, 3]))
            u, v = ((np.array([x, y]) / z + 0.5) * size / seen.images[name].shape[0]) - 0.5
            assert columns.min() - 2 <= u <= columns.max() + 2, (name, thing)
            assert rows.min() - 2 <= v <= rows.max() + 2, (name, thing)
            checked += 1
    assert checked >= 2
    segmenter.close()
    env.close()


@pytest.mark.parametrize(
    ("suite", "cell"), [SCENES[0], pytest.param(*SCENES[1], marks=pytest.mark.slow, id="libero")]
)
def test_the_experts_demonstrations_replay_bit_for_bit(suite: str, cell: str, tmp_path: Path) -> None:
    options = RunOptions.of(
        suite=suite, policy="oracle", cells=(cell,), tasks=("0",), episodes=1, workers="0"
    )
    found = collect(options, tmp_path / "d", Console(file=io.StringIO()), size=64)
    assert found.demonstrations == 1
    demos = open_demos(tmp_path / "d")
    demo = demos[0]
    assert demo.info.key is not None
    replayer = Replayer()
    assert replayer.replay(demos.entries[0]).reproduced
    # The first row is what a policy sees before it acts.
    spec = load_suite(suite).episode(demo.info.key)
    env = load_object(spec.env)()
    seen = env.reset(spec, (AGENTVIEW, WRIST))
    np.testing.assert_array_equal(demo.state[0], seen.state)
    for name, image in seen.images.items():
        np.testing.assert_array_equal(demo.images[name][0], shrink(image, 64))
        np.testing.assert_array_equal(demo.cameras[name].pose[0], seen.cameras[name].pose)
    # The expert reaches what it commands, roughly: where the arm goes is where the commands pointed.
    ahead = demo.commanded[:-1, :3, 3] - demo.achieved[:-1, :3, 3]
    moved = np.diff(demo.achieved[:, :3, 3], axis=0)
    fast = np.linalg.norm(ahead, axis=1) > 0.02
    cosine = (ahead * moved).sum(1) / (np.linalg.norm(ahead, axis=1) * np.linalg.norm(moved, axis=1) + 1e-9)
    assert np.median(cosine[fast]) > 0.9
    replayer.close()
    env.close()


def test_two_instructions_are_stored_and_replay_bit_for_bit(tmp_path: Path) -> None:
    """Coaching: the second sentence comes when the first is done, also in a replay, and each row has its own."""
    options = RunOptions.of(
        suite="composite", policy="oracle", cells=("coaching_seen",), tasks=("0",), episodes=1, workers="0"
    )
    assert collect(options, tmp_path / "d", Console(file=io.StringIO()), size=32).demonstrations == 1
    demos = open_demos(tmp_path / "d")
    demo, entry = demos[0], demos.entries[0]
    assert demo.info.key is not None
    spec = load_suite("composite").episode(demo.info.key)
    assert demo.instructions[0] == spec.prompt
    assert demo.instructions[-1] == spec.prompts["second"]
    switch = demo.instructions.index(spec.prompts["second"])
    assert set(demo.instructions[:switch]) == {spec.prompt}
    env = load_object(spec.env)()
    seen = env.reset(spec)
    for t, action in enumerate(demo.actions):
        assert seen.instruction == demo.instructions[t]
        seen = env.step_chunk(action[None], render=False)
    env.close()
    replayer = Replayer()
    replay = replayer.replay(entry)
    assert replay.reproduced
    assert replay.steps == len(demo)
    replayer.close()
