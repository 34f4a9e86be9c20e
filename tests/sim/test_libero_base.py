"""`libero_base`: LIBERO's tasks from initial states that evaluation leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.libero.base_tasks import cell_tasks
from apt_bench.envs.libero.tasks import load_inits, manifest
from apt_bench.suites import Cell, load_suite

APART = 0.005
"""Least difference (m or rad) in at least one coordinate between a training state and each state of evaluation."""

HOLD = np.array([[0, 0, 0, 0, 0, 0, -1.0]] * 5)


def placed(env: LiberoEnv) -> dict[str, np.ndarray]:
    return {n: env.scene.data.xpos[o.body].copy() for n, o in env.scene.objects.items()}


@pytest.mark.sim
def test_episode_0_is_initial_state_20_and_the_arm_is_pushed() -> None:
    env = LiberoEnv()
    spec = load_suite("libero_base").select(["train_object"], ["3"], episodes=1)[0]
    env.reset(spec)
    training = placed(env)
    env.step_chunk(HOLD, render=False)
    pushed = env.scene.data.qpos[:7].copy()
    far = []
    for same in load_suite("libero").select(["object"], ["3"], episodes=21):
        if same.key.init in (0, 7, 19, 20):
            env.reset(same)
            far.append(max(float(np.linalg.norm(p - training[n])) for n, p in placed(env).items()))
    assert far[-1] < 1e-4
    assert min(far[:-1]) > 0.005
    env.step_chunk(HOLD, render=False)
    assert np.abs(env.scene.data.qpos[:7] - pushed).max() > 1e-3
    env.close()


def test_every_task_of_libero_has_thirty_training_states() -> None:
    suite = load_suite("libero_base")
    for cell in suite.cells:
        evaluated = load_suite("libero").cell(cell.name.removeprefix("train_"))
        tasks, base = suite.cell_tasks(cell), load_suite("libero").cell_tasks(evaluated)
        assert [t.name for t in tasks] == [t.name for t in base]
        assert {t.inits for t in tasks} == {30}
        assert [t.prompts for t in tasks] == [t.prompts for t in base]


@pytest.mark.parametrize("benchmark", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_no_training_state_is_one_that_is_evaluated(benchmark: str) -> None:
    """In `_swap` and `_task`, all initial states; in `libero`, those that training leaves out."""
    tasks = manifest()["benchmarks"]
    for task in tasks[benchmark]["tasks"]:
        training = load_inits(benchmark, task["name"])[20:]
        for other, states in (
            (benchmark, slice(0, 20)),
            (f"{benchmark}_swap", slice(None)),
            (f"{benchmark}_task", slice(None)),
        ):
            for same in tasks[other]["tasks"]:
                evaluated = load_inits(other, same["name"])[states]
                if evaluated.shape[1] != training.shape[1]:
                    continue  # another scene, with other objects
                apart = np.abs(evaluated[:, None, 1:] - training[None, :, 1:]).max(
                    axis=2
                )  # column 0 is the time
                assert apart.min() > APART, (task["name"], other, same["name"])


@pytest.mark.parametrize("args", [{}, {"benchmark": "libero_object", "disturbance": 3}, {"benchmark": "no"}])
def test_wrong_arguments_are_named(args: dict[str, object]) -> None:
    with pytest.raises(UserError, match="train"):
        cell_tasks(Cell("train", "Train", 280, "file", args=args))
