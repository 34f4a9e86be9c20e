"""Run by the Python of build/interop/vla-eval: a model server of the genuine vla-eval, which keeps chunks of 4.

    python vla_eval_server.py EXPERT.npz REPORT.json

It prints its port.
"""

import sys

import anyio
from judge import Judge
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve_async
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
)


class Expert(PredictModelServer):
    def __init__(self, judge):
        super().__init__(chunk_size=judge.rows)
        self.judge = judge

    def predict(self, obs, ctx):
        images = obs["images"]["agentview"], obs["images"]["wrist"]
        return {"actions": self.judge.chunk(ctx.step, obs["task_description"], *images, obs["states"])}

    def get_observation_params(self):
        return {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True, "env_seed": 0}

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE}


async def main():
    async with anyio.create_task_group() as group:
        print(await group.start(serve_async, Expert(Judge(*sys.argv[1:], 4)), "127.0.0.1", 0), flush=True)


anyio.run(main)
