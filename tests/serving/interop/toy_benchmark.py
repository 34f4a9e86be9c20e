"""Run by the Python of build/interop/vla-eval: a benchmark for the genuine `vla-eval run`. It stores what it gets."""

import os
from pathlib import Path

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
)

STEPS = 7


class ToyBenchmark(StepBenchmark):
    render_backends = frozenset({"gpu", "cpu"})

    @classmethod
    def configure_render(cls, mode):
        return {}

    def __init__(self, send_wrist_image=False, send_state=False, quat_no_antipodal=False):
        super().__init__()
        self.asked = (send_wrist_image, send_state, quat_no_antipodal)

    def get_tasks(self):
        return [{"name": "open it", "suite": "libero_goal", "task_id": i} for i in range(2)]

    def reset(self, task):
        self.task, self.actions = task, []
        return None

    def step(self, action):
        self.actions.append(np.asarray(action["actions"]))
        done = len(self.actions) == STEPS
        if done:
            name = f"task{self.task['task_id']}-{self.task['episode_idx']}.npz"
            np.savez(Path(os.environ["TOY_OUT"]) / name, actions=self.actions, asked=self.asked)
        return StepResult(obs=None, reward=float(done), done=done, info={"success": done})

    def make_obs(self, raw_obs, task):
        image = np.full((256, 256, 3), len(self.actions), np.uint8)
        state = np.array([0, 0, 1, -3.14 if len(self.actions) % 2 else 3.14, 0, 0, 0.04, -0.04])
        return {
            "images": {"agentview": image, "wrist": image},
            "task_description": task["name"],
            "states": state,
        }

    def check_done(self, step_result):
        return step_result.done

    def get_step_result(self, step_result):
        return {"success": step_result.done}

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE}

    def get_metadata(self):
        return {"max_steps": 20}
