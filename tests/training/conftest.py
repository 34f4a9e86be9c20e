from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scripted import write

torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "data": {"cameras": ["agentview"], "image_every": 1, "held_out": 0.1, "augment": {"enabled": False}},
    "vlm": {
        "name": "mini",
        "mini": {
            "words": ["go", "to", "the", "red", "blue", "square"],
            "width": 32,
            "heads": 2,
            "layers": 2,
            "image_size": [64, 64],
        },
    },
    "expert": {"width": 32, "heads": 2, "horizon": 8, "depth": 2, "step_index": True},
    "train": {
        "batch": 8, "lr": 1e-3, "warmup": 5, "log_every": 1, "eval_every": 4, "eval_samples": 8, "save_every": 4,
    },
    "stage1": {"steps": 8},
    "stage2": {"steps": 8},
}  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("demos") / "go.hdf5", 20)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"data": [str(data)]}}))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
