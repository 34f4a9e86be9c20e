"""Every VLM class behind the one interface: what language can reach, where gradients go, and what is not run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import FAMILIES, images, model, robot, tokenizer, vla, vlm
from torch.testing import assert_close

from apt_bench.core.errors import UserError
from apt_bench.models.hf_vlm import QwenVLM, load_hf
from apt_bench.models.inputs import LANGUAGE, PAD, VISION
from apt_bench.models.vlm import letterbox

CAUSAL = [family for family in FAMILIES if family != "paligemma"]
ONE, TWO = ["kjq xwv", "go"], ["xwv kjq", "og"]  # the same number of tokens
LONG = ["put whatever you like most into the other basket over there", "x"]


def predict(net, text: list[str], blind: bool) -> torch.Tensor:
    features = net.features(net.vlm.prepare(images(2), text, blind))
    noise = torch.randn(2, 1, 4, 10, generator=torch.Generator().manual_seed(3))
    return net.expert.sample(features, robot(2), noise, steps=4)


@pytest.mark.parametrize("arch", ["apt", "pi", "groot"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_is_blind_to_the_bit_and_a_policy_is_not(family: str, arch: str) -> None:
    prior, policy = vla(family, arch, 1), vla(family, arch, 2)
    assert prior.blind
    assert not policy.blind
    assert torch.equal(predict(prior, ONE, blind=True), predict(prior, LONG, blind=True))
    if family in CAUSAL:  # the expert's own masks suffice where the VLM's vision cannot see language
        lengths = {prior.vlm.prepare(images(2), text).ids.shape for text in (ONE, TWO)}
        assert len(lengths) == 1
        assert torch.equal(predict(prior, ONE, blind=False), predict(prior, TWO, blind=False))
        assert_close(predict(prior, ONE, blind=False), predict(prior, LONG, blind=False), atol=1e-4, rtol=0)
    else:
        assert not torch.equal(predict(prior, ONE, blind=False), predict(prior, TWO, blind=False))
    assert (predict(policy, ONE, blind=False) - predict(policy, TWO, blind=False)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt(family: str) -> None:
    net = vlm(family)
    views = images(2)
    views[1][0] = None  # a missing camera
    prompt = net.prepare(views, ["move the red cube to the bowl", "go"])
    cells = net.grid[0] * net.grid[1]
    assert (prompt.view[0] == 0).sum() == (prompt.view[0] == 1).sum() == cells
    assert (prompt.view[1] == 0).sum() == 0
    assert (prompt.view[1] == 1).sum() == cells
    assert torch.equal(prompt.ids == net.image_id, prompt.view >= 0)
    assert torch.equal(prompt.token_type == PAD, ~prompt.present)
    assert torch.equal(prompt.token_type == VISION, prompt.view >= 0)
    assert not prompt.present[1, 0]  # padding on the left
    assert prompt.token_type[:, -1].tolist() == [LANGUAGE] * 2
    centres = prompt.uv[1][prompt.view[1] == 1]
    assert_close(centres.mean(0), torch.tensor([0.5, 0.5]))
    assert centres[0].max() < centres[-1].min()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_singles_give(family: str) -> None:
    net, policy = vla(family, "apt", 2), vla(family, "pi", 2)
    for model_ in (net, policy):
        both = predict(model_, LONG, blind=False)[1:]
        features = model_.features(model_.vlm.prepare(images(2)[1:], LONG[1:]))
        noise = torch.randn(2, 1, 4, 10, generator=torch.Generator().manual_seed(3))[1:]
        alone = model_.expert.sample(features, robot(2).map(lambda t: t[1:]), noise, steps=4)
        assert_close(alone, both, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_above_the_last_tap_is_run(family: str) -> None:
    net = vlm(family)
    ran: list[int] = []
    for i, layer in enumerate(net.decoder_layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    prompt = net.prepare(images(1), ["go"])
    few = net(prompt, (0, 1))
    assert ran == [0, 1]
    every = net(prompt, (0, 1, 2, 3), kv=True)
    assert torch.equal(few.taps, every.taps[:2])
    assert torch.equal(few.embeds, every.embeds)
    assert len(every.kv) == net.shape.layers
    assert every.kv[0][0].shape == (1, prompt.ids.shape[1], net.shape.kv_heads, net.shape.head_dim)


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_exactly_what_trains(family: str, mode: str) -> None:
    net = vla(family, "apt", 2)
    before = predict(net, ONE, blind=False)
    net.vlm.set_mode(mode)
    assert torch.equal(predict(net, ONE, blind=False), before)  # adapters start at zero
    features = net.features(net.vlm.prepare(images(2), ONE))
    net.expert.loss(features, robot(2), torch.randn(2, 1, 4, 10))["total"].backward()
    reached = {
        name for name, p in net.vlm.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    adapters = {name for name, _ in net.vlm.named_parameters() if "lora_B" in name}
    top = f"layers.{net.vlm.shape.layers - 1}."  # behind the last tap that anything reads
    if mode == "frozen":
        assert not reached
        assert not net.vlm.training
    elif mode == "lora":
        assert reached == {name for name in adapters if top not in name}
        assert len(adapters) == 4 * (5 if family == "mini" else 7)
    else:
        assert {name for name in reached if ".layers." in name or name.startswith("layers.")}
        assert not {name for name in reached if top in name and "vision" not in name and "visual" not in name}
        assert any("embed_tokens" in name or "word_embed" in name for name in reached)
        assert any(part in name for name in reached for part in ("vis", "stem"))
        missed = {
            n
            for n, p in net.vlm.named_parameters()
            if f"layers.{net.vlm.shape.layers - 2}." in n and n not in reached
        }
        assert not missed


def test_a_pi_expert_trains_the_vlm_through_its_keys_and_values() -> None:
    net = vla("smolvlm", "pi", 2)
    net.vlm.set_mode("full")
    features = net.features(net.vlm.prepare(images(2), ONE))
    net.expert.loss(features, robot(2), torch.randn(2, 1, 4, 10))["total"].backward()
    grads = {name for name, p in net.vlm.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "model.text_model.layers.3.self_attn.k_proj.weight" in grads
    assert "model.text_model.layers.3.mlp.up_proj.weight" not in grads


def test_deepstack_switch_concerns_tap_0_alone() -> None:
    torch.manual_seed(0)
    raw = model("qwen3")
    inside, outside = (QwenVLM(raw, tokenizer(), 64, deepstack_in_taps=flag) for flag in (True, False))
    prompt = inside.prepare(images(1), ["go"])
    a, b = inside(prompt, (0, 1, 3)), outside(prompt, (0, 1, 3))
    visual = a.is_visual[0]
    assert not torch.allclose(a.taps[0, 0, visual], b.taps[0, 0, visual])
    assert torch.equal(a.taps[0, 0, ~visual], b.taps[0, 0, ~visual])
    assert torch.equal(a.taps[1:], b.taps[1:])


def test_qwen_pixels_equal_the_models_own_processor() -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = vlm("qwen3")
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=64 * 64, max_pixels=64 * 64
    )
    theirs = processor(images(1)[0], return_tensors="pt")
    ours = own.prepare(images(1), ["go"]).pixels
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert_close(ours["pixel_values"], theirs["pixel_values"], atol=1e-6, rtol=0)


def test_taps_equal_transformers_hidden_states() -> None:
    net = vlm("smolvlm")
    prompt = net.prepare(images(1), ["go"])
    ours = net(prompt, (0, 1, 2, 3))
    theirs = net.model(
        input_ids=prompt.ids,
        attention_mask=prompt.present.long(),
        output_hidden_states=True,
        **prompt.pixels,
    ).hidden_states
    assert torch.equal(ours.embeds, theirs[0])
    for i in range(3):
        assert_close(ours.taps[i], theirs[i + 1])


def test_letterbox_marks_what_is_not_picture() -> None:
    net = vlm("mini")
    wide = np.full((30, 60, 3), 200, np.uint8)
    fitted, box = letterbox(wide, 64, 64)
    assert box == (0.0, 0.25, 1.0, 0.75)
    assert fitted[:16].max() == 0
    assert fitted[16:48].min() == 200
    prompt = net.prepare([[wide]], ["go"])
    grid = prompt.token_type[0][prompt.view[0] >= 0].reshape(net.grid)
    assert grid.tolist() == [[PAD] * 4, [VISION] * 4, [VISION] * 4, [PAD] * 4]
    rows = prompt.uv[0][prompt.view[0] >= 0].reshape(*net.grid, 2)
    assert_close(rows[1, 0], torch.tensor([0.125, 0.25]))  # in fractions of the picture itself


def test_bad_input_is_named() -> None:
    net = vlm("mini")
    with pytest.raises(UserError, match=r"view 1 is float64 \(4, 4, 3\)"):
        net.prepare([[images(1)[0][0], np.zeros((4, 4, 3))]], ["go"])
    with pytest.raises(UserError, match="at most 96"):
        net.prepare(images(1), ["unheard " * 40])
    with pytest.raises(UserError, match="could not be loaded"):
        load_hf("/nowhere/at/all")
    with pytest.raises(UserError, match="mode 'half'"):
        net.set_mode("half")  # type: ignore[arg-type]


def test_mini_vlm_keeps_unknown_words_apart() -> None:
    net = vlm("mini")
    cube, kube, qube = (net.tokenizer(word) for word in ("cube", "kube", "qube"))
    assert len(cube) == 1
    assert kube != qube
    assert sum(p.numel() for p in type(net)(type(net.config)()).parameters()) < 1.5e6
