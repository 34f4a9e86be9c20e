"""The tiers with cameras: the segmentation server of docs/code-as-policies.md, and what is privileged."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from apt_bench.core.errors import ServerLost, UserError
from apt_bench.envs.base import Observation
from apt_bench.policies.code_as_policies import llm
from apt_bench.policies.code_as_policies.perception import View, find_segmenter
from apt_bench.policies.code_as_policies.policy import CodeAsPolicies
from tests.policies.cap.model_server import ModelServer
from tests.rollout.commands import ROOT

PAGE = (ROOT / "docs" / "code-as-policies.md").read_text()


@pytest.fixture
def segmenter(tmp_path: Path) -> Iterator[str]:
    """The address of the server whose code the page has."""
    found = re.search(r"```python\n(# segmenter\.py\n.*?)```", PAGE, re.DOTALL)
    assert found
    (tmp_path / "segmenter.py").write_text(found[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "segmenter.py"), str(port)], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_the_server_of_the_page_finds_what_is_red(segmenter: str) -> None:
    image = np.full((20, 30, 3), 90, np.uint8)
    image[5:9, 10:20] = (200, 30, 30)
    seen = View(image, np.ones((20, 30), np.float32), np.eye(3), np.eye(4), False)
    nothing = Observation({}, np.zeros(8, np.float32), "")
    ((mask, score),) = find_segmenter(segmenter).segment(seen, "the red mug", nothing, "agentview")
    assert mask.dtype == bool
    assert np.array_equal(mask, image[..., 0] == 200)
    assert score == 0.5
    assert find_segmenter(segmenter).segment(seen, "the blue mug", nothing, "agentview") == []


def test_the_table_1_policy_reads_nothing_of_the_simulator(segmenter: str) -> None:
    cameras = ("agentview", "wrist", "agentview_depth", "wrist_depth")
    with ModelServer([]) as server:
        seeing = CodeAsPolicies("m", "perception", server.url, segmenter).spec
        oracle = CodeAsPolicies("m", "oracle-seg", server.url).spec
        privileged = CodeAsPolicies("m", "privileged", server.url).spec
    assert (seeing.cameras, seeing.privileged) == (cameras, False)
    assert (oracle.cameras, oracle.privileged) == (cameras, True)
    assert (privileged.cameras, privileged.privileged) == ((), True)
    kinds = [one.provenance.about["segmenter"] for one in (seeing, oracle, privileged)]
    assert kinds == ["HTTP", "the simulator", "none"]
    assert segmenter not in str(seeing)  # the address is not part of the policy
    assert len({one.provenance.weights for one in (seeing, privileged)}) == 2


def test_a_segmenter_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(llm.BASE_URL, raising=False)
    with ModelServer([], models=404) as server:
        with pytest.raises(UserError, match="/segment"):
            CodeAsPolicies("m", "perception", server.url, server.url.removesuffix("/v1"))
        with pytest.raises(UserError, match="takes no segmenter"):
            CodeAsPolicies("m", "privileged", server.url, "http://127.0.0.1:1")
        with pytest.raises(ServerLost):
            CodeAsPolicies("m", "perception", server.url, "http://127.0.0.1:1")
