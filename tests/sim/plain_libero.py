"""The reference: LIBERO's own evaluation loop, in a process that does not import apt_bench.

    python plain_libero.py < jobs.json > answers.jsonl

A job: {"bddl", "init_file", "settle", "steps", "every", "draw_all", "episodes": [{"init", "seed"}, ...]}. It runs one
environment through its episodes and prints one line: for each episode the hashes of qpos and of both images and the
state after settling and at every `every`-th step, and the step of the first success. With `draw_all` false, frames that
are not compared are not drawn, which is the larger part of the loop's time and none of its physics. An episode may
bring "actions" of its own.
"""

import hashlib
import json
import sys
from contextlib import redirect_stdout

import numpy as np

CAMERAS = {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
SETTLE = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def actions(seed, steps):
    """A fixed sequence that moves the whole arm, presses down, and opens and closes the gripper."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-1, 1, (steps, 7))
    moves[:, :3] += [0.2, 0.0, -0.3]
    moves[:, 6] = np.repeat(np.where(rng.random(-(-steps // 8)) < 0.5, -1.0, 1.0), 8)[:steps]
    return np.clip(moves, -1, 1)


def axis_angle(quat):
    """openpi's and robosuite's formula, on (x, y, z, w)."""
    w = min(1.0, max(-1.0, quat[3]))
    den = np.sqrt(1.0 - w * w)
    return np.zeros(3) if den == 0.0 else (quat[:3] * 2.0 * np.arccos(w)) / den


def look(env, obs):
    state = [*obs["robot0_eef_pos"], *axis_angle(obs["robot0_eef_quat"]), *obs["robot0_gripper_qpos"]]
    return {
        "qpos": digest(env.sim.data.qpos),
        "state": np.array(state, dtype=np.float32).tolist(),
        **{name: digest(obs[key][::-1, ::-1]) for name, key in CAMERAS.items()},
    }


class Drawing:
    """Make LIBERO render its camera images, or give it black ones."""

    def __init__(self):
        from robosuite.utils.binding_utils import MjSim

        self.draw, self.on, MjSim.render = MjSim.render, True, lambda sim, **k: self.render(sim, **k)

    def render(self, sim, **k):
        return self.draw(sim, **k) if self.on else np.zeros((k["height"], k["width"], 3), dtype=np.uint8)


def run(job, drawing):
    from libero.libero.envs import OffScreenRenderEnv

    states = np.load(job["init_file"])["states"]
    drawing.on = job["draw_all"]
    env = OffScreenRenderEnv(bddl_file_name=job["bddl"], camera_heights=256, camera_widths=256)
    first_load = list(env.env.object_property_initializers)
    for number, episode in enumerate(job["episodes"]):
        if (
            number
        ):  # this list grows at every reset, and with it what is drawn: begin every episode like the first
            env.env.object_property_initializers = list(first_load)
        drawing.on = job["draw_all"]
        env.seed(episode["seed"])
        env.reset()
        obs = env.set_init_state(states[episode["init"]])
        for step in range(1, job["settle"] + 1):
            drawing.on = job["draw_all"] or step == job["settle"]
            obs, _, _, _ = env.step(SETTLE)
        looks, success = [look(env, obs)], None
        for step, action in enumerate(episode.get("actions") or actions(episode["seed"], job["steps"]), 1):
            drawing.on = job["draw_all"] or step % job["every"] == 0
            obs, _, done, _ = env.step(action)
            if step % job["every"] == 0:
                looks.append(look(env, obs))
            if done and success is None:
                success = step
        yield {"looks": looks, "success": success}
    env.close()


if __name__ == "__main__":
    drawing = None
    for job in json.load(sys.stdin):
        with redirect_stdout(sys.stderr):
            import libero.libero.envs  # noqa: F401  (before robosuite, as LIBERO's users do)

            drawing = drawing or Drawing()
            answers = list(run(job, drawing))
        print(json.dumps(answers), flush=True)
