"""Saving, loading and refusing: our folders and the authors' files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from parity import Golden, kit
from tiny import images, model, robot, tokenizer, vla, vlm
from torch import Tensor
from torch.testing import assert_close

from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.action_expert import inherit, is_decayed
from apt_bench.models.apt_expert import APTExpert
from apt_bench.models.config import ExpertConfig
from apt_bench.models.hf_vlm import wrap
from apt_bench.models.official_names import from_official, strip_wrappers, to_official
from apt_bench.models.vla import VLA, VLMSpec, build_expert


def sample(net: VLA) -> Tensor:
    features = net.features(net.vlm.prepare(images(2), ["go", "move"]))
    return net.expert.sample(features, robot(2), torch.ones(2, 1, 4, 10), steps=3)


def mini(arch: str = "apt", stage: int = 2) -> VLA:
    net = vla("mini", arch, stage)
    return VLA(net.vlm, net.expert, VLMSpec(name="mini", mini=net.vlm.config))


@pytest.mark.parametrize("arch", ["apt", "pi", "groot"])
def test_round_trip(tmp_path: Path, arch: str) -> None:
    net = mini(arch)
    folder = checkpoint.save(tmp_path / "best", net, {"git": "abc", "data": {"hash": 1}})
    back = checkpoint.load(folder)
    assert back.expert.config == net.expert.config
    assert back.spec == net.spec
    assert torch.equal(sample(back), sample(net))
    assert json.loads((folder / "provenance.json").read_text())["data"] == {"hash": 1}
    assert len(checkpoint.sha256(folder)) == 64


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_hub_model_is_named_and_only_what_differs_is_stored(tmp_path: Path, mode: str) -> None:
    torch.manual_seed(0)
    home = tmp_path / "vlm"
    model("smolvlm").save_pretrained(home)
    tokenizer().save_pretrained(home)
    spec = VLMSpec(name=str(home), mode=mode)  # type: ignore[arg-type]
    backbone = spec.load()
    for p in backbone.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    config = ExpertConfig(vlm=backbone.shape, width=64, heads=4, depth=4, horizon=4)
    net = VLA(backbone, build_expert(config), spec)
    torch.nn.init.normal_(net.expert.head.weight)
    folder = checkpoint.save(tmp_path / "ckpt", net, {})
    stored = {k for k in checkpoint.load_file(folder / "model.safetensors") if k.startswith("vlm.")}
    assert bool(stored) == (mode != "frozen")
    assert all(".lora_" in k for k in stored) == (mode != "full")
    assert torch.equal(sample(checkpoint.load(folder)), sample(net))


def test_saving_over_a_checkpoint_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = mini()
    folder = checkpoint.save(tmp_path / "last", net, {"step": 1})

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(folder, net, {"step": 2})
    monkeypatch.undo()
    assert json.loads((folder / "provenance.json").read_text()) == {"step": 1}
    checkpoint.save(folder, net, {"step": 3})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]
    checkpoint.load(folder)


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


def test_bad_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = tmp_path / "ckpt_evil.pt"
    torch.save({"weights": {"a": torch.zeros(1)}, "extra": Evil()}, evil)
    with pytest.raises(UserError, match="could run code"):
        checkpoint.load(evil)
    assert "code ran" not in capsys.readouterr().out
    broken = tmp_path / "ckpt_broken.pt"
    broken.write_bytes(evil.read_bytes()[:200])
    with pytest.raises(UserError, match="complete"):
        checkpoint.load(broken)
    torch.save({"model": {}}, tmp_path / "ckpt_other.pt")
    with pytest.raises(UserError, match="no 'weights'"):
        checkpoint.load(tmp_path / "ckpt_other.pt")
    torch.save({"weights": {"actor.mlp.weight": torch.zeros(1)}}, tmp_path / "ckpt_else.pt")
    with pytest.raises(UserError, match="another project"):
        checkpoint.load(tmp_path / "ckpt_else.pt", vlm("mini"))
    with pytest.raises(UserError, match="No checkpoint at"):
        checkpoint.load(tmp_path / "nothing")

    folder = checkpoint.save(tmp_path / "good", mini(), {})
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["expert"]["arch"] = "groot"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="another architecture"):
        checkpoint.load(other)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="checkpoint folder"):
        checkpoint.load(folder)


def test_an_unreachable_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("someone/some-policy", "someone/some-policy/sub/ckpt_best.pt"):
        with pytest.raises(UserError, match="hub"):
            checkpoint.load(name)


def official_rows(section: str, stage: str) -> dict[str, dict[str, str]]:
    with kit("official_keys_full.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["ckpt_section"] == section and r["model_stage"] == stage]
    return {r["key"]: r for r in rows}


def zeros(row: dict[str, str]) -> Tensor:
    return torch.zeros(1).expand([int(n) for n in row["shape"].split("x")])  # takes no space, on disk neither


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_full_size_official_expert_loads_strictly(tmp_path: Path, stage: int) -> None:
    rows = official_rows("weights", f"stage{stage}")
    path = tmp_path / "ckpt_latest.pt"
    torch.save(
        {"weights": {f"module._orig_mod.{k}": zeros(r) for k, r in rows.items()}, "current_iters": 1}, path
    )
    state = {from_official(k): v for k, v in strip_wrappers(checkpoint.safe_load(path)["weights"]).items()}
    config = checkpoint.official_config(state, ExpertConfig().vlm)
    assert config == ExpertConfig(stage=stage)
    with torch.device("meta"):
        expert = APTExpert(config)
    checkpoint.load_strictly(expert, state, str(path))
    assert len(state) == {1: 128, 2: 203}[stage]
    assert sum(p.numel() for p in expert.parameters()) == {1: 61_636_490, 2: 102_963_210}[stage]
    for name, parameter in expert.named_parameters():
        row = rows[to_official(name)]
        assert from_official(to_official(name)) == name
        assert is_decayed(name) == (row["weight_decay_group"] == "1"), name
        assert parameter.numel() == int(row["numel"])
    del state["head.bias"]
    with pytest.raises(UserError, match=r"1 missing \(e.g. head.bias\)"):
        checkpoint.load_strictly(expert, state, str(path))


def test_inheritance_equals_the_released_loader() -> None:
    """`blocks` takes exactly the tensors that the released expansion takes, by the CSV's own column."""
    with torch.device("meta"):
        prior, policy = (APTExpert(ExpertConfig(stage=stage)) for stage in (1, 2))
    rows = official_rows("weights", "stage2")
    expected = {
        from_official(k)
        for k, r in rows.items()
        if r["stage2_init_from"] and not r["stage2_init_from"].startswith("fresh")
    }
    assert expected
    assert set(inherit(prior, policy, "blocks")) == expected
    intended = {from_official(k) for k, r in rows.items() if "stage1 same name" in r["stage2_init_from"]}
    assert set(inherit(prior, policy, "all")) == expected | intended


def test_official_vlm_tensors_fit_the_real_class() -> None:
    """Names and shapes of a full and of a LoRA finetuned Qwen3-VL-2B, on the meta device."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        vision_config={
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
        },
        image_token_id=5, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8,
    )  # fmt: skip
    with torch.device("meta"):
        backbone = wrap(Qwen3VLModel(config), tokenizer())
    assert backbone.shape == ExpertConfig().vlm
    own = backbone.state_dict()
    full = {k: torch.empty([int(n) for n in r["shape"].split("x")], device="meta")
            for k, r in official_rows("vlm_weights[full]", "both").items()}  # fmt: skip
    taken = checkpoint._official_vlm(full, backbone, Path("x.pt"))
    assert set(taken) == set(own)
    assert all(taken[k].shape == own[k].shape for k in own)
    lora = {k: torch.empty([int(n) for n in r["shape"].split("x")], device="meta")
            for k, r in official_rows("vlm_weights[lora]", "both").items()}  # fmt: skip
    merged = checkpoint._official_vlm(lora, backbone, Path("x.pt"))
    assert len(merged) == len(lora) // 2 == 196
    assert all(merged[k].shape == own[k].shape for k in merged)
    with pytest.raises(UserError, match="another base model"):
        checkpoint._official_vlm(
            {"vlm._qwen.model.language_model.layers.99.x": torch.zeros(1)}, backbone, Path("x")
        )


def test_official_lora_is_merged(tmp_path: Path) -> None:
    """A whole official file on a tiny Qwen3-VL: expert in bfloat16, adapters folded into W' = W + B A."""
    net = vla("qwen3", "apt", 2, width=64, heads=4)
    name = "model.language_model.layers.1.self_attn.q_proj"
    before = dict(net.vlm.state_dict())[f"{name}.weight"].clone()
    A, B = torch.randn(16, before.shape[1]), torch.randn(before.shape[0], 16)
    path = tmp_path / "ckpt_best.pt"
    torch.save(
        {
            "weights": {to_official(k): v.bfloat16() for k, v in net.expert.state_dict().items()},
            "vlm_weights": {
                f"vlm._qwen.{name}.lora_A.default.weight": A,
                f"vlm._qwen.{name}.lora_B.default.weight": B,
            },
        },
        path,
    )
    loaded = checkpoint.load(path, vlm("qwen3"))
    after = loaded.vlm.state_dict()[f"{name}.weight"]
    assert_close(after, before + B @ A)
    assert loaded.expert.config.depth == 4
    assert_close(loaded.expert.head.bias, net.expert.head.bias, atol=2e-2, rtol=1e-2)
    assert loaded.expert.head.bias.dtype == torch.float32


def test_the_fixture_through_a_file(tmp_path: Path) -> None:
    """The parity fixture's tensors saved as an official file and loaded by the same code as a real one."""
    golden = Golden.load(kit("golden_expert_A.npz"), "plain", 2)
    state = {to_official(k): v for k, v in golden.expert().state_dict().items()}
    path = tmp_path / "ckpt.pt"
    torch.save({"weights": state}, path)
    mapped = {from_official(k): v for k, v in checkpoint.safe_load(path)["weights"].items()}
    expert = APTExpert(golden.expert().config)
    checkpoint.load_strictly(expert, mapped, "fixture")
    context = expert.encode_context(golden.features(), golden.robot())
    eps = expert.denoise(context, golden.here("train/noisy_action"), golden.here("train/timestep"))
    assert_close(eps, golden.here("train/eps"), atol=1e-4, rtol=0)
