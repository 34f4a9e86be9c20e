"""Print a hash of each part of an episode, to find which part differs on two processors:
`OMP_NUM_THREADS=1 python benchmarks/processor.py`.

First come the operations of the policy's network, each on random numbers. The parts are those of task 0, initial state
0 of a cell of `libero`, at seed 7.
"""

import hashlib

import numpy as np
import torch
from torch.nn import functional

from apt_bench.core.config import load_object
from apt_bench.core.machine import cpu_name, vector_instructions
from apt_bench.envs.base import Camera, Observation
from apt_bench.policies.registry import find_policy
from apt_bench.suites import load_suite

ACTION = np.array([0.3, 0.1, -0.4, 0.1, 0.0, 0.2, 1.0])
STEPS = 40
K = np.array([[300, 0, 127.5], [0, 300, 127.5], [0, 0, 1]], float)
POSE = np.array([[1, 0, 0, 0.5], [0, -1, 0, 0], [0, 0, -1, 1.6], [0, 0, 0, 1]], float)


def short(*arrays: np.ndarray) -> str:
    """The first 16 digits of the SHA-256 of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def parts(cell: str) -> dict[str, str]:
    """Part -> hash. Images and motion start from the settled state; the policy sees random pixels."""
    suite = load_suite("libero")
    episode = suite.select([cell], episodes=1)[0]
    env = load_object(suite.env)()
    seen = env.reset(episode, ("agentview", "wrist"))
    found = {
        "settled state": env.outcome().start_hash,
        "its images": short(*seen.images.values()),
    }
    env.step_chunk(np.repeat(ACTION[None], STEPS, axis=0))
    found[f"state after {STEPS} equal actions"] = env.outcome().end_hash
    env.close()

    random = np.random.default_rng(0)
    observation = Observation(
        images={name: random.integers(0, 255, (256, 256, 3), np.uint8) for name in ("agentview", "wrist")},
        state=np.array([0, 0, 1.2, 3.1, 0, 0, 0.04, -0.04], np.float32),
        instruction=episode.prompt,
        episode=episode.id,
        noise_key=episode.noise_key,
        cameras={name: Camera(K, POSE) for name in ("agentview", "wrist")},
    )
    policy = find_policy("apt").load()
    policy.reset([episode])
    found["actions for equal images"] = short(*policy.act([observation]))
    return found


@torch.inference_mode()
def operations() -> dict[str, str]:
    """Operation -> hash of its result. Sizes are like those of the policy's network."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape, np.float32))

    found = {
        "matrix product": draw(256, 128) @ draw(128, 384),
        "linear layer, one row": functional.linear(draw(1, 128), draw(384, 128), draw(384)),
        "linear layer, 20 rows": functional.linear(draw(20, 128), draw(384, 128), draw(384)),
        "convolution": functional.conv2d(draw(2, 32, 64, 64), draw(64, 32, 3, 3), stride=2, padding=1),
        "attention": functional.scaled_dot_product_attention(*(draw(1, 4, 80, 32) for _ in range(3))),
        "batched product": draw(4, 80, 32) @ draw(4, 32, 80),
        "GELU": functional.gelu(draw(256, 384)),
        "square, mean and root": draw(256, 128).pow(2).mean(-1).rsqrt(),
        "sine and exponential": torch.sin(draw(256, 128)) + torch.exp(draw(256, 128)),
        "linear layer, 128 rows": functional.linear(draw(128, 256), draw(768, 256), draw(768)),
        "linear layer, 7 outputs": functional.linear(draw(16, 128), draw(7, 128), draw(7)),
        "convolution of an image": functional.conv2d(
            draw(2, 3, 256, 256), draw(32, 3, 3, 3), stride=2, padding=1
        ),
        "convolution per channel": functional.conv2d(
            draw(2, 64, 32, 32), draw(64, 1, 3, 3), padding=1, groups=64
        ),
        "attention with a mask": functional.scaled_dot_product_attention(
            *(draw(1, 4, 80, 32) for _ in range(3)), attn_mask=torch.ones(80, 80, dtype=torch.bool).tril()
        ),
        "attention, one query": functional.scaled_dot_product_attention(
            draw(1, 4, 1, 32), draw(1, 4, 80, 32), draw(1, 4, 80, 32)
        ),
        "softmax": draw(80, 200).softmax(-1),
        "layer norm": functional.layer_norm(draw(256, 128), (128,)),
        "sigmoid": draw(256, 128).sigmoid(),
        "cosine": draw(256, 128).cos(),
        "norm and division": draw(256, 128) / torch.linalg.vector_norm(draw(256, 128), dim=-1, keepdim=True),
        "sums along a row": draw(256, 128).sum(-1),
    }
    return {name: short(value.numpy()) for name, value in found.items()}


def main() -> None:
    print(f"{cpu_name()}, {vector_instructions()}")
    for name, value in operations().items():
        print(f"{'network':8} {name:30} {value}")
    for cell in ("object", "spatial"):
        for part, value in parts(cell).items():
            print(f"{cell:8} {part:30} {value}")


if __name__ == "__main__":
    main()
