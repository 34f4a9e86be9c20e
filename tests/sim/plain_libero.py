"""The reference: LIBERO's own evaluation loop, in a process that never sees apt_bench.

    python plain_libero.py < jobs.json > answers.jsonl

A job: {"bddl", "init_file", "seed", "inits": [i, ...], "steps": n, "every": k, "settle": n}; it runs one environment through the
episodes `inits` and prints, for each, hashes of qpos and of both images at every k-th step, the states there, and the
step of the first success.
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
    """A fixed sequence that moves the whole arm, presses down and works the gripper."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-1, 1, (steps, 7))
    moves[:, :3] += [0.2, 0.0, -0.3]
    return np.clip(moves, -1, 1)


def episode_seed(seed, init):
    return (seed * 1000003 + init) % 2**32


def axis_angle(quat):
    """openpi's and robosuite's formula, on (x, y, z, w)."""
    quat = quat.copy()
    quat[3] = min(1.0, max(-1.0, quat[3]))
    den = np.sqrt(1.0 - quat[3] * quat[3])
    return np.zeros(3) if den == 0.0 else (quat[:3] * 2.0 * np.arccos(quat[3])) / den


def run(job):
    from libero.libero.envs import OffScreenRenderEnv

    states = np.load(job["init_file"])["states"]
    env = OffScreenRenderEnv(bddl_file_name=job["bddl"], camera_heights=256, camera_widths=256)
    first_load = list(env.env.object_property_initializers)
    for number, init in enumerate(job["inits"]):
        if number:  # the list grows at every reset; an episode must not depend on how many went before
            env.env.object_property_initializers = list(first_load)
        env.seed(episode_seed(job["seed"], init))
        env.reset()
        env.set_init_state(states[init])
        for _ in range(job["settle"]):
            obs, _, _, _ = env.step(SETTLE)
        looks, success = [look(env, obs)], None
        for step, action in enumerate(actions(job["seed"], job["steps"]), 1):
            obs, _, done, _ = env.step(action)
            if step % job["every"] == 0:
                looks.append(look(env, obs))
            if done and success is None:
                success = step
        yield {"init": init, "looks": looks, "success": success}
    env.close()


def look(env, obs):
    state = [*obs["robot0_eef_pos"], *axis_angle(obs["robot0_eef_quat"]), *obs["robot0_gripper_qpos"]]
    return {
        "qpos": digest(env.sim.data.qpos),
        "state": [float(x) for x in state],
        **{name: digest(obs[key][::-1, ::-1]) for name, key in CAMERAS.items()},
    }


if __name__ == "__main__":
    for job in json.load(sys.stdin):
        with redirect_stdout(sys.stderr):
            answers = list(run(job))
        print(json.dumps(answers), flush=True)
