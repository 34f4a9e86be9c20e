"""Collecting and replaying with a tiny MuJoCo scene (tests/toy.py); tests/sim has those of LIBERO."""

import dataclasses
import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from apt_bench.core.errors import UserError
from apt_bench.demos.collect import Collected, collect, seal
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.demos.policy_start import PolicyStart
from apt_bench.demos.recording import LOOSE, Recording, RecordingEnv, track
from apt_bench.demos.replay import Replayer
from apt_bench.envs.base import AGENTVIEW, Camera, Observation
from apt_bench.policies.preprocessing import shrink
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.runner import RunOptions
from apt_bench.suites import EpisodeKey, load_suite
from tests.demos.samples import sample
from tests.toy import PushPolicy, ToyEnv

SUITE = "tests/toy_suite.yaml"
OPTIONS = RunOptions.of(suite=SUITE, policy="tests.toy:PushPolicy", cells=("push",), workers="0")


def toy(out: Path, **changes: object) -> Collected:
    settings = {
        k: changes.pop(k) for k in ("format", "size", "cameras", "failures", "image_every") if k in changes
    }
    options = OPTIONS.replace(**changes)  # type: ignore[arg-type]
    return collect(
        options, out, Console(file=io.StringIO()), **{"cameras": (AGENTVIEW,), "size": 64, **settings}
    )  # type: ignore[arg-type]


def test_only_successes_are_kept_and_all_replay_bit_for_bit(tmp_path: Path) -> None:
    found = toy(tmp_path / "d", episodes=10)
    won = {r.key.id for r in found.run.records if r.outcome == "success"}
    assert 0 < len(won) < len(found.run.records) == 20
    demos = open_demos(tmp_path / "d")
    assert {i.episode for i in demos.infos} == won
    assert found.demonstrations == len(won)
    assert found.steps == sum(r.steps for r in found.run.records if r.outcome == "success")
    assert {p.name for p in (tmp_path / "d/push").iterdir()} <= {
        f"push_the_puck_{side}_demo.hdf5" for side in ("left", "right")
    }
    replayer = Replayer(SUITE)
    assert all(replayer.replay(e).reproduced for e in demos.entries)


def test_fewer_images_change_nothing_but_the_images_between_them(tmp_path: Path) -> None:
    toy(tmp_path / "all", limit=6)
    toy(tmp_path / "some", limit=6, image_every=3)
    everything, some = (open_demos(tmp_path / d) for d in ("all", "some"))
    for a, b in zip(everything, some, strict=True):
        assert b.info == dataclasses.replace(a.info, image_every=3)
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.state, b.state)
        seen = a.images[AGENTVIEW][np.arange(len(a)) // 3 * 3]
        assert np.array_equal(b.images[AGENTVIEW], seen)
        assert not np.array_equal(b.images[AGENTVIEW], a.images[AGENTVIEW])
    with pytest.raises(UserError, match="image_every: 3 there, 1 now"):
        toy(tmp_path / "some", limit=6)
    with pytest.raises(UserError, match="--image-every above 1 needs --format hdf5"):
        toy(tmp_path / "lerobot", limit=2, image_every=2, format="lerobot")


def test_a_replay_of_other_actions_is_not_taken_for_a_reproduction(tmp_path: Path) -> None:
    toy(tmp_path / "d", limit=4)
    demo = open_demos(tmp_path / "d")[0]
    actions = demo.actions.copy()
    actions[0, 0] += 1e-6
    write_hdf5(tmp_path / "x.hdf5", [dataclasses.replace(demo, actions=actions)])
    replay = Replayer(SUITE).replay(open_demos(tmp_path / "x.hdf5").entries[0])
    assert replay.same_start
    assert not replay.same_end
    assert not replay.reproduced


def test_images_and_states_are_those_before_the_action(tmp_path: Path) -> None:
    """The toy is observed at the end of each step: re-executing the actions must pass through every stored row."""
    toy(tmp_path / "d", limit=4)
    demo = open_demos(tmp_path / "d")[0]
    assert demo.info.key is not None
    spec = load_suite(SUITE).episode(demo.info.key)
    env = ToyEnv()
    seen = env.reset(spec, (AGENTVIEW,))
    for t in range(len(demo)):
        np.testing.assert_array_equal(demo.images[AGENTVIEW][t], seen.images[AGENTVIEW])
        np.testing.assert_array_equal(demo.state[t], seen.state)
        seen = env.step_chunk(demo.actions[t : t + 1])
    assert env.outcome().success


def test_recording_changes_nothing_for_the_policy(tmp_path: Path) -> None:
    """The policy gets the same observations as without recording, for actions that are exact in float32."""
    spec = load_suite(SUITE).episode(EpisodeKey("toy", "push", "push_the_puck_left", 1, 7))
    plain, recorded = ToyEnv(), RecordingEnv()
    wrapped = Recording(str(tmp_path), (AGENTVIEW,), 64, "push").wrap(spec)
    a, b = plain.reset(spec, ()), recorded.reset(wrapped, ())
    policy = PushPolicy()
    while not plain.outcome().done:
        np.testing.assert_array_equal(a.state, b.state)
        assert b.images == {}
        assert b.scene is None
        chunk = policy.act([a])[0].astype(np.float32)
        a, b = plain.step_chunk(chunk), recorded.step_chunk(chunk)
    assert recorded.outcome().end_hash == plain.outcome().end_hash
    assert recorded.outcome().steps == plain.outcome().steps


def test_a_policy_acts_first_and_only_the_expert_is_recorded(tmp_path: Path) -> None:
    start = PolicyStart(PolicyRef("backwards", f"{__name__}:Backwards"), 3)
    specs = load_suite(SUITE).select(["push"])
    drawn = [(s, int(np.random.default_rng(s.env_seed).integers(4))) for s in specs]
    spec, decisions = next((s, n) for s, n in drawn if n > 1)
    plain, recorded = ToyEnv(), RecordingEnv()
    first = plain.reset(spec, (AGENTVIEW,))
    for _ in range(decisions):
        first = plain.step_chunk(Backwards().act([first])[0][:2])
    seen = recorded.reset(Recording(str(tmp_path), (AGENTVIEW,), 64, "push").wrap(start.wrap(spec)), ())
    np.testing.assert_array_equal(seen.state, first.state)
    policy = PushPolicy()
    while not recorded.outcome().done:
        seen = recorded.step_chunk(policy.act([seen])[0].astype(np.float32))
    (demo,) = open_demos(tmp_path / LOOSE)
    assert demo.info.success
    assert demo.info.steps == recorded.outcome().steps - 2 * decisions
    np.testing.assert_array_equal(demo.state[0], first.state)
    np.testing.assert_array_equal(demo.images[AGENTVIEW][0], first.images[AGENTVIEW])


def test_a_dataset_keeps_to_one_policy_that_acts_first(tmp_path: Path) -> None:
    starts = [PolicyStart(PolicyRef("backwards", f"{__name__}:Backwards"), most) for most in (3, 2)]
    arguments = (OPTIONS.replace(limit=2), tmp_path / "d", Console(file=io.StringIO()))
    found = collect(*arguments, cameras=(AGENTVIEW,), size=64, start=starts[0])
    assert found.demonstrations > 0
    with pytest.raises(UserError, match=r"start: .* there"):
        collect(*arguments, cameras=(AGENTVIEW,), size=64, start=starts[1])


class Backwards(PushPolicy):
    """Pushes away from the goal, two steps of each chunk."""

    spec = dataclasses.replace(PushPolicy.spec, execute=2)

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        return [-chunk for chunk in super().act(observations)]


def test_the_same_command_goes_on_and_adds(tmp_path: Path) -> None:
    first = toy(tmp_path / "d", episodes=2)
    again = toy(tmp_path / "d", episodes=2)
    assert again.demonstrations == first.demonstrations
    more = toy(tmp_path / "d", episodes=4)
    at_once = toy(tmp_path / "e", episodes=4)
    assert more.demonstrations == at_once.demonstrations > first.demonstrations
    assert open_demos(tmp_path / "d").fingerprint == open_demos(tmp_path / "e").fingerprint
    with pytest.raises(UserError, match="size: 64 there, 32 now"):
        toy(tmp_path / "d", size=32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(UserError, match="not empty"):
        toy(tmp_path / "full")
    with pytest.raises(UserError, match="does not divide"):
        toy(tmp_path / "f", size=48)
    assert (
        toy(tmp_path / "f", size=32, limit=1).run.missing == ()
    )  # nothing was there yet: no trace of the mistake


def test_a_kill_between_two_steps_of_sealing_loses_nothing(tmp_path: Path) -> None:
    """Loose files of episodes that the data set already has are removed; the others are added to it."""
    for i in (0, 1):
        write_hdf5(tmp_path / f"loose/{i}.hdf5", [sample(i)])
    seal(tmp_path, "hdf5", Console(file=io.StringIO()))
    write_hdf5(tmp_path / "loose/1.hdf5", [sample(1)])
    write_hdf5(tmp_path / "loose/2.hdf5", [sample(2)])
    assert len(open_demos(tmp_path)) == 3  # readable before, too
    seal(tmp_path, "hdf5", Console(file=io.StringIO()))
    assert [i.episode for i in open_demos(tmp_path).infos] == [sample(i).info.episode for i in range(3)]
    assert [p.name for p in tmp_path.rglob("*.hdf5")] == ["put_the_bowl_on_the_plate_demo.hdf5"]


def test_lerobot_format_holds_the_same_episodes(tmp_path: Path) -> None:
    toy(tmp_path / "a", limit=4)
    toy(tmp_path / "b", limit=2, format="lerobot")
    toy(tmp_path / "b", limit=4, format="lerobot")
    one, two = open_demos(tmp_path / "a"), open_demos(tmp_path / "b")
    assert one.fingerprint == two.fingerprint
    for demo in two:
        twin = one[[i.episode for i in one.infos].index(demo.info.episode)]
        np.testing.assert_array_equal(demo.actions, twin.actions)
        np.testing.assert_array_equal(demo.state, twin.state)
    assert Replayer(SUITE).replay(two.entries[0]).reproduced


def test_rollouts_with_their_failures_as_lerobot_data(tmp_path: Path) -> None:
    """Any policy's episodes, each with its success; only successes are trained on, and failures replay too."""
    import pandas as pd

    found = toy(tmp_path / "d", episodes=5, policy_args=("noise=3.0",), format="lerobot", failures=True)
    wins = {r.key.id: r.outcome == "success" for r in found.run.records}
    assert (found.demonstrations, found.successes) == (10, sum(wins.values()))
    assert 0 < found.successes < 10
    demos = open_demos(tmp_path / "d")
    assert {i.episode: i.success for i in demos.infos} == wins
    assert {i.episode for i in demos.successes.infos} == {e for e, won in wins.items() if won}
    episodes = pd.read_parquet(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet")
    frames = pd.read_parquet(tmp_path / "d/data/chunk-000/file-000.parquet").groupby("episode_index")
    assert frames["next.success"].sum().tolist() == episodes["success"].astype(int).tolist()
    assert frames["next.done"].sum().tolist() == [1] * 10
    assert frames["next.done"].last().all()
    assert [e.info.success for e in demos.entries] == episodes["success"].tolist()
    replayer = Replayer(SUITE)
    assert all(replayer.replay(e).reproduced for e in demos.entries)
    with pytest.raises(UserError, match="failures: True there, False now"):
        toy(tmp_path / "d", episodes=5, format="lerobot")


@pytest.mark.slow  # starts a Ray of its own
def test_ray_workers_collect_the_same(tmp_path: Path) -> None:
    toy(tmp_path / "a")
    toy(tmp_path / "b", workers="2")
    assert open_demos(tmp_path / "a").fingerprint == open_demos(tmp_path / "b").fingerprint


def test_others_demonstrations_do_not_replay(tmp_path: Path) -> None:
    demo = sample()
    write_hdf5(
        tmp_path / "x.hdf5", [dataclasses.replace(demo, info=dataclasses.replace(demo.info, key=None))]
    )
    with pytest.raises(UserError, match="names no episode"):
        Replayer().replay(open_demos(tmp_path / "x.hdf5").entries[0])


def test_a_smaller_image_has_a_camera_that_fits_it() -> None:
    """A point's pixel in the small image is the middle of its block in the large one."""
    K = np.array([[-300.0, 0, 127.5], [0, 300.0, 127.5], [0, 0, 1]])
    small = track([Camera(K, np.eye(4))], 256, 64).K
    point = np.array([0.1, -0.2, 1.0])
    large = (K @ point)[:2]
    np.testing.assert_allclose((small @ point)[:2], (large + 0.5) / 4 - 0.5)
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(shrink(image, 16), image)
    assert shrink(image, 4)[0, 0, 0] == 77  # mean 76.5


def test_a_killed_collector_leaves_a_readable_folder_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "d"
    command = [sys.executable, "-m", "apt_bench", "collect", "--suite", SUITE, "--cells", "push"]
    command += [
        "--policy",
        OPTIONS.execution.policy,
        "--cameras",
        AGENTVIEW,
        "--size",
        "64",
        "--workers",
        "0",
    ]
    killed = subprocess.Popen([*command, "--out", str(out)], env={**os.environ, "TOY_SLOW": "0.02"})
    while killed.poll() is None and len(list(out.glob("loose/*.hdf5"))) < 2:
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -9
    assert len(open_demos(out)) >= 2
    found = toy(out)
    whole = toy(tmp_path / "e")
    assert found.demonstrations == whole.demonstrations
    assert open_demos(out).fingerprint == open_demos(tmp_path / "e").fingerprint
    assert not (out / "loose").exists()
