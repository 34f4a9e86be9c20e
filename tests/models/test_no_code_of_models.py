"""A checkpoint may name a vision-language model of another author. Its code is never run, apt-bench does not ask
whether to run it, and no file in its folder makes apt-bench wait."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apt_bench.core.errors import UserError
from apt_bench.models.checkpoint import read_tensors
from apt_bench.models.hf_vlm import check_hf, load_hf


@pytest.mark.parametrize("load", [check_hf, load_hf])
def test_code_beside_a_model_is_never_run_and_nobody_is_asked(load, tmp_path: Path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="could not be loaded"):
        load(str(tmp_path))
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_a_pipe_in_the_place_of_weights_is_a_message(tmp_path: Path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="pipe, a socket or a device"):
        read_tensors(tmp_path / "model.safetensors")
