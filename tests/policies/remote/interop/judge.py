"""The policy of the servers in this folder: an expert's actions while every observation is right, then zeros.

It runs in the environments of the genuine packages, which have numpy and no apt_bench.
"""

import json
from pathlib import Path

import numpy as np


class Judge:
    """
    Args:
        expert: .npz with `prompt`, `actions` (n, 7), and of the observations of an episode that executes `step` of each
            chunk: `agentview` and `wrist` (m, 256, 256, 3), `state` (m, 8).
        report: File for the number of requests, and what was wrong first.
        rows: Actions in a chunk.
        image: What the protocol makes of a rendered image.
    """

    def __init__(self, expert, report, rows, image=lambda image: image):
        with np.load(expert) as file:
            self.expert = {name: file[name] for name in file.files}
        self.step, self.rows, self.image = int(self.expert["step"]), rows, image
        self.report, self.wrong, self.requests = Path(report), "", 0

    def chunk(self, start, prompt, agentview, wrist, state):
        """The chunk (rows, 7) from control step `start`."""
        number, rest = divmod(start, self.step)
        chunk = np.zeros((self.rows, 7))
        chunk[:, 6] = -1
        actions = self.expert["actions"][start : start + self.rows]
        if not self.wrong and len(actions):
            self.wrong = "step" if rest else self.judge(number, prompt, agentview, wrist, state)
        if not self.wrong:
            chunk[: len(actions)] = actions
        self.requests += 1
        self.report.write_text(json.dumps({"requests": self.requests, "wrong": self.wrong}))
        return chunk

    def judge(self, number, prompt, agentview, wrist, state):
        if prompt != str(self.expert["prompt"]):
            return "prompt"
        for name, image in (("agentview", agentview), ("wrist", wrist)):
            expected = self.image(self.expert[name][number])
            if (image.dtype, image.shape) != (expected.dtype, expected.shape):
                return f"{name}: {image.dtype} {image.shape}"
            if np.abs(expected.astype(int) - image).mean() > 1:
                return name
        if state.shape != (8,) or np.abs(state - self.expert["state"][number]).max() > 1e-3:
            return "state"
        return ""
