"""Damaged and hostile checkpoints give one message, within seconds and without large allocations."""

from __future__ import annotations

import json
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import vla, vlm

from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.config import ExpertConfig
from apt_bench.models.official_names import to_official
from apt_bench.models.vla import VLA, VLMSpec
from apt_bench.models.weight_loading import from_file
from tests.clock import in_time


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = vla("mini", "apt", 2)
    net = VLA(net.vlm, net.expert, VLMSpec(name="mini", mini=net.vlm.config))
    return checkpoint.save(tmp_path_factory.mktemp("good") / "c", net, {"step": 3, "cameras": ["agentview"]})


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "c"))


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A test allocates at most one gigabyte and takes at most 30 s of CPU time."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    yield
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert now - used < 2**20, f"{(now - used) / 2**20:.1f} GB"
    assert in_time(time.process_time() - began, 30)


def read(folder: Path) -> None:
    checkpoint.provenance(folder)
    checkpoint.about(folder)
    checkpoint.load(folder)


EXPERT: list[tuple[dict[str, Any], str]] = [
    ({"heads": 0}, "expert: heads is 0"),
    ({"width": 960_000}, "expert: width is 960000"),
    ({"depth": 10**9}, "expert: depth is 1000000000"),
    ({"depth": -2}, "expert: depth is -2"),
    ({"width": 16_384, "heads": 128, "depth": 200, "taps": []}, "billion parameters"),
    ({"width": 2048, "heads": 4}, "another architecture"),
    ({"taps": [0, 1]}, "taps"),
    ({"vlm": {"width": -1}}, "vlm: width is -1"),
    ({"vlm": {"width": 128}}, "built for a VLM of shape|of another size"),
    ({"arch": "new"}, "arch is 'new'"),
    ({"stage": True}, "stage is True"),
    ({"unknown": 1}, "unknown key 'unknown'"),
    ({"plane": "high"}, "plane is 'high'"),
]


@pytest.mark.parametrize(("change", "says"), EXPERT)
def test_an_expert_that_cannot_be_built_is_named(folder: Path, change: dict[str, Any], says: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["expert"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "config.json is damaged"),
        ("[]", "expected an object"),
        ("{}", "format None"),
        ('{"format": 1}', "key 'expert' is missing"),
        ('{"format": 1, "expert": {}}', "key 'vlm' is missing"),
        ('{"format": 1, "expert": [], "vlm": {}}', "expert: expected a mapping"),
        ('{"format": 1, "expert": {}, "vlm": {"name": "mini", "mini": {"layers": 1e400}}}', "too large"),
        (
            '{"format": 1, "expert": {}, "vlm": {"name": "mini", "mini": {"width": 960000}}}',
            "width is 960000",
        ),
        ('{"format": 1, "expert": {}, "vlm": {"name": "mini", "mini": {"words": 3}}}', "words is 3"),
        (
            '{"format": 1, "expert": {}, "vlm": {"modee": "lora"}}',
            "vlm: unknown key 'modee'. Did you mean 'mode'",
        ),
        ('{"format": 1, "expert": {}, "vlm": {"mode": "half"}}', "vlm: mode is 'half'"),
        ('{"format": 1, "expert": {}, "vlm": {"queries": -1}}', "vlm: queries is -1"),
        ('{"format": 1, "format": 2}', "repeated"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_strange_config_is_named(folder: Path, text: str, says: str) -> None:
    (folder / "config.json").write_text(text)
    for call in (checkpoint.load, checkpoint.about):
        with pytest.raises(UserError, match=says):
            call(folder)


def test_keys_that_an_older_version_did_not_write_have_their_defaults(folder: Path) -> None:
    (folder / "config.json").write_text('{"format": 1, "expert": {"depth": 4}, "vlm": {"mode": "lora"}}')
    assert checkpoint.read_config(folder) == (ExpertConfig(depth=4), VLMSpec(mode="lora"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


BIAS, MINI = "expert.head.bias", "vlm.norm.weight"


@pytest.mark.parametrize("name", [BIAS, MINI])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda t: t.fill_(float("nan")), "NaN or infinity"),
        (lambda t: t.fill_(float("-inf")), "NaN or infinity"),
        (lambda t: t.int(), "is of torch.int32"),
        (lambda t: t[None], "of another size"),
        (lambda t: t[:0], "of another size"),
    ],
)
def test_weights_that_cannot_be_meant_are_named(folder: Path, name: str, value: Callable, says: str) -> None:
    change(folder, lambda tensors: tensors.update({name: value(tensors[name])}))
    with pytest.raises(UserError, match=says) as error:
        checkpoint.load(folder)
    assert name.split(".", 1)[1] in str(error.value)


@pytest.mark.parametrize("name", [BIAS, MINI])
def test_missing_and_surplus_weights_are_named(folder: Path, name: str) -> None:
    change(folder, lambda tensors: tensors.update({name + "2": tensors[name].clone()}))
    with pytest.raises(UserError, match="unknown"):
        checkpoint.load(folder)
    change(folder, lambda tensors: (tensors.pop(name), tensors.pop(name + "2")))
    with pytest.raises(UserError, match="missing"):
        checkpoint.load(folder)


def official(path: Path, edit: Callable[[dict[str, Any]], Any] = lambda w: None, **more: Any) -> Path:
    net = vla("qwen3", "apt", 2)
    weights = {to_official(k): v for k, v in net.expert.state_dict().items()}
    edit(weights)
    torch.save({"weights": weights, **more}, path)
    return path


HEAD = "dp_head.act_head.bias"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda w: w.update({HEAD: torch.zeros(1).expand(10**12)}), "more than its file holds"),
        (lambda w: w.update({HEAD: torch.zeros(1).expand(2**20, 2**20)}), "more than its file holds"),
        (lambda w: w.update({HEAD: torch.zeros(10).to_sparse()}), "not a dense tensor"),
        (lambda w: w.update({HEAD: 3}), "'dp_head.act_head.bias' is a int; it must be a tensor"),
        (lambda w: w.update({HEAD: None}), "is a NoneType"),
        (lambda w: w.update({HEAD: [torch.zeros(1)]}), "is a list"),
        (lambda w: w.update({3: torch.zeros(1)}), "name is '3', not text"),
        (lambda w: w.update({HEAD: torch.full((10,), float("nan"))}), "NaN or infinity"),
        (lambda w: w.update({HEAD: torch.zeros(10, dtype=torch.int64)}), "is of torch.int64"),
        (lambda w: w.update({"dp_head.traj_context_attn.gate": torch.zeros(4)}), "missing or misshapen"),
        (lambda w: w.update({"dp_head.traj_context_attn.gate": torch.zeros(4, 0)}), "width is 0|heads of"),
        (lambda w: w.pop(HEAD), "1 missing"),
    ],
)
def test_an_authors_file_that_holds_something_else_is_named(
    tmp_path: Path, edit: Callable, says: str
) -> None:
    path = official(tmp_path / "ckpt.pt", edit)
    with pytest.raises(UserError, match=says):
        checkpoint.load(path, vlm("qwen3"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"weights": 3}, "weights is a int; it must be a mapping"),
        ({"weights": torch.zeros(1).expand(10**13)}, "weights is a Tensor"),
        ({"vlm_weights": [1]}, "vlm_weights is a list"),
        ({"vlm_weights": {"vlm._qwen.model.language_model.norm.weight": torch.zeros(7)}}, r"is \(7,\)"),
        ({"vlm_weights": {"vlm._qwen.x.lora_A.default.weight": torch.zeros(7)}}, "no place in the VLM"),
    ],
)
def test_a_strange_part_of_an_authors_file_is_named(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        checkpoint.load(official(tmp_path / "ckpt.pt", **more), vlm("qwen3"))


def test_adapters_that_do_not_fit_are_named(tmp_path: Path) -> None:
    name = "vlm._qwen.model.language_model.layers.1.self_attn.q_proj"
    rows, columns = dict(vlm("qwen3").state_dict())[
        "model.language_model.layers.1.self_attn.q_proj.weight"
    ].shape
    A = torch.zeros(16, columns)
    for B, says in ((None, "has no B"), (torch.zeros(rows, 15), r"must be \(128, 16\)")):
        more = {f"{name}.lora_A.default.weight": A}
        more |= {} if B is None else {f"{name}.lora_B.default.weight": B}
        with pytest.raises(UserError, match=says):
            checkpoint.load(official(tmp_path / "ckpt.pt", vlm_weights=more), vlm("qwen3"))


def test_many_tensors_over_one_storage_are_not_more_than_the_file(tmp_path: Path) -> None:
    shared = torch.zeros(1000)
    with pytest.raises(UserError, match="more than its file holds"):
        from_file({str(i): shared for i in range(1000)}, "x", 100_000)


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte."""
    path = official(tmp_path / "ckpt.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"\0" * 2**26 if name.endswith("data.pkl") else b""))
    with pytest.raises(UserError, match="compressed or too large"):
        checkpoint.load(packed)


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
ROW = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=0, max_size=8), st.integers(0, 8))


def edited(content: bytes, edits: list[tuple[float, bytes, int]]) -> bytes:
    """The content with bytes replaced, inserted and cut out."""
    for where, new, gone in edits:
        at = int(where * len(content))
        content = content[:at] + new + content[at + gone :]
    return content


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "model.safetensors"])
def test_edited_folders_give_messages(good: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "c"))
    content = (good / name).read_bytes()

    @FUZZ
    @given(st.lists(ROW, min_size=1, max_size=4), st.booleans())
    def check(edits: list[tuple[float, bytes, int]], head: bool) -> None:
        part = content[:2000] if head else content
        (folder / name).write_bytes(edited(part, edits) + (content[2000:] if head else b""))
        with suppress(UserError):
            read(folder)

    check()


def test_edited_pickles_give_messages(tmp_path: Path) -> None:
    path = official(tmp_path / "ckpt.pt")
    content, backbone = path.read_bytes(), vlm("qwen3")
    with zipfile.ZipFile(path) as archive:
        entry = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(entry)
    at = content.index(pickled)

    @FUZZ
    @given(st.lists(ROW, min_size=1, max_size=3), st.booleans())
    def check(edits: list[tuple[float, bytes, int]], inside: bool) -> None:
        if inside:  # of the same length, so that the archive stays whole
            new = edited(pickled, edits)[: len(pickled)].ljust(len(pickled), b".")
            path.write_bytes(content[:at] + new + content[at + len(pickled) :])
        else:
            path.write_bytes(edited(content, edits))
        with suppress(UserError):
            checkpoint.load(path, backbone)

    check()
