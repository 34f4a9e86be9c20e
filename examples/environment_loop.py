"""Use one cell of a suite as a Gymnasium environment, with a loop of your own.

python examples/environment_loop.py
"""

import imageio.v3 as imageio
import numpy as np

import apt_bench

STEPS = 40


def main() -> None:
    """Lower the gripper for 40 control steps and save the last image."""
    env = apt_bench.make_env("rigid_pick_place", "so", cameras=("agentview",))
    observation, info = env.reset(seed=0, options={"task": 0, "init": 3})
    print(f"{info['episode']}: {observation['instruction']}")
    start = observation["state"][2]
    total = 0.0
    for _ in range(STEPS):
        action = np.array([0, 0, -0.2, 0, 0, 0, -1], np.float32)  # down by 0.01 m; -1 opens the gripper
        observation, reward, terminated, truncated, info = env.step(action)
        total += reward
        if terminated or truncated:
            break
    print(
        f"{info['steps']} steps, reward {total:.0f}, gripper lowered by {start - observation['state'][2]:.2f} m"
    )
    imageio.imwrite("last_image.png", observation["agentview"])
    print(f"Image {observation['agentview'].shape}: last_image.png")
    env.close()


if __name__ == "__main__":
    main()
