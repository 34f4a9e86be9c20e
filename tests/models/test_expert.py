"""The expert's switches, the two stages, the reused stream, and that every architecture can learn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import images, robot, vla
from torch.testing import assert_close

from apt_bench.core.config import build
from apt_bench.core.errors import UserError
from apt_bench.models.action_codes import decode_chunk, encode_chunk, make_pose
from apt_bench.models.action_expert import inherit, is_decayed
from apt_bench.models.apt_expert import plan_blocks
from apt_bench.models.attention import NoCode, attend, attention_bias
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.diffusion import ddim_sample
from apt_bench.models.inputs import (
    LANGUAGE,
    VISION,
    RobotState,
    VLFeatures,
    plane_heights,
    plane_points,
    random_rotations,
)
from apt_bench.models.vla import VLA, build_expert

SMALL = ExpertConfig(
    vlm=VLMShape(width=16, layers=8, kv_heads=2, head_dim=16), width=32, heads=4, depth=8, horizon=4
)


def test_blocks_of_both_stages() -> None:
    def plan(**change: object) -> list[tuple]:
        config = dataclasses.replace(SMALL, depth=4, **change)  # type: ignore[arg-type]
        return [(p.tap, p.code, p.isolated, p.source) for p in plan_blocks(config)]

    assert plan(stage=1) == [(1, "prope", True, 0), (3, "prope", True, 1)]
    assert plan() == [
        (0, "rope", False, None), (1, "prope", True, 0), (2, "rope", False, None), (3, "prope", True, 1)
    ]  # fmt: skip
    assert plan(insertion="after", stage=1) == [(0, "prope", True, 0), (2, "prope", True, 1)]
    assert plan(insertion="after")[:2] == [(0, "prope", True, 0), (1, "rope", False, None)]
    assert plan(insertion="tokens") == [(1, "prope", False, 0), (3, "prope", False, 1)]


def test_taps_are_spread_evenly() -> None:
    qwen = VLMShape()
    assert qwen.evenly(10) == tuple(range(0, 28, 3))
    assert qwen.evenly(20)[:4] == (0, 1, 3, 4)
    assert qwen.evenly(20)[-1] == 27
    assert build_expert(dataclasses.replace(SMALL, stage=1)).needed_layers == (1, 3, 5)
    assert build_expert(SMALL).needed_layers == tuple(range(7))


@pytest.mark.parametrize("arch", ["apt", "pi", "groot"])
def test_stage_2_inherits(arch: str) -> None:
    config = dataclasses.replace(SMALL, arch=arch)  # type: ignore[arg-type]
    torch.manual_seed(1)
    prior = build_expert(dataclasses.replace(config, stage=1))
    for p in prior.parameters():
        p.data.normal_()
    for what in ("all", "blocks"):
        policy = build_expert(config)
        fresh = {k: v.clone() for k, v in policy.state_dict().items()}
        taken = inherit(prior, policy, what)  # type: ignore[arg-type]
        old, new = prior.state_dict(), policy.state_dict()
        for i, source in enumerate(policy.sources):
            for name in [k for k in new if k.startswith(f"blocks.{i}.")]:
                expected = (
                    fresh[name] if source is None else old[name.replace(f"blocks.{i}.", f"blocks.{source}.")]
                )
                assert torch.equal(new[name], expected), name
                assert (name in taken) == (source is not None)
        for name in [k for k in new if not k.startswith("blocks.")]:
            assert torch.equal(new[name], old[name] if what == "all" else fresh[name]), name


@pytest.mark.parametrize("fusion", ["convex", "additive"])
def test_a_policy_can_begin_as_its_prior(fusion: str) -> None:
    """New blocks that begin as the identity leave it to the fusion behind them to make a difference."""
    prior, policy, other = (vla("mini", "apt", stage, fusion=fusion) for stage in (1, 2, 2))
    for p in prior.expert.parameters():
        p.data += 0.1 * torch.randn_like(p)
    inherit(prior.expert, policy.expert, "all", "identity")
    inherit(prior.expert, other.expert, "all", "random")
    for net in (policy, other):
        net.vlm.load_state_dict(prior.vlm.state_dict())
    state, noise = robot(2), torch.randn(2, 1, 4, 10)

    def answer(net: VLA, text: str = "red cube") -> torch.Tensor:
        features = net.features(net.vlm.prepare(images(2), [text, text], blind=net.blind))
        return net.expert.sample(features, state, noise, steps=2)

    wanted = answer(prior)
    apart = [float((answer(net) - wanted).abs().mean()) for net in (policy, other)]
    assert apart[0] < 0.5 * apart[1]
    assert torch.equal(answer(policy), answer(policy, "the bowl"))  # language cannot be heard yet
    with torch.no_grad():
        policy.expert.fusion.gate[[0, 2]] = (
            100.0 if fusion == "convex" else -100.0
        )  # and without that fusion nothing differs
    assert_close(answer(policy), wanted, atol=1e-5, rtol=1e-4)
    policy.expert.loss(
        policy.features(policy.vlm.prepare(images(2), ["red cube", "the bowl"])), state, noise
    )["total"].backward()
    assert policy.expert.blocks[0].attn.out.weight.grad.abs().sum() > 0


VARIANTS: list[dict] = [
    {},
    {"fusion": "additive"},
    {"insertion": "after"},
    {"insertion": "tokens"},
    {"proprio": True},
    {"step_index": True},
    {"prediction": "sample"},
    {"prediction": "sample", "position_scale": 8.0},
    {"plane": -0.3},
]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_switches(change: dict) -> None:
    """Each variant trains, sees language in Stage 2 alone, and the ones that add an input react to it."""
    for stage in (1, 2):
        net = vla("mini", "apt", stage, **change)
        f, g = (net.features(net.vlm.prepare(images(2), [text, text])) for text in ("red cube", "the bowl"))
        state, noise = robot(2), torch.randn(2, 1, 4, 10)
        a, b = (net.expert.sample(x, state, noise, steps=2) for x in (f, g))
        assert torch.equal(a, b) == (stage == 1)
        shut = dataclasses.replace(state, openness=1 - state.openness)
        assert torch.equal(a, net.expert.sample(f, shut, noise, steps=2)) != bool(change.get("proprio"))
        net.expert.loss(f, state, noise)["total"].backward()


def test_scaled_positions_stay_inside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = vla("mini", "apt", 2, prediction="sample", position_scale=8.0)
    features = net.features(net.vlm.prepare(images(2), ["red cube", "the bowl"]))
    target = torch.randn(2, 1, 4, 10)
    inside = torch.cat([8 * target[..., :3], target[..., 3:]], -1)
    monkeypatch.setattr(net.expert, "predict", lambda *_: inside)  # a network that knows
    assert net.expert.loss(features, robot(2), target)["total"] == 0
    assert_close(net.expert.sample(features, robot(2), torch.randn_like(target)), target)


def test_visual_tokens_know_where_they_lie_on_the_plane() -> None:
    """The token of a point on the plane gets the action code that would bring the end effector there."""
    view = torch.tensor([[-1, 0, 0, 1]])
    point = torch.tensor([0.3, -0.2, 0.9])
    axes = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # straight down
    cameras = make_pose(axes.expand(2, 3, 3), torch.tensor([[0.1, 0.1, 1.5], [0.4, 0.0, 1.2]]))[None]
    K = torch.tensor([[0.8, 0, 0.5], [0, 1.1, 0.5], [0, 0, 1.0]])
    local = (point - cameras[0, :, :3, 3]) @ axes  # of the point in each camera's frame
    pixel = local[:, :2] / local[:, 2:] * torch.tensor([0.8, 1.1]) + 0.5
    uv = torch.stack([torch.zeros(2), pixel[0], torch.tensor([0.9, 0.1]), pixel[1]])[None]
    hand = make_pose(random_rotations(1), torch.tensor([[0.0, 0.1, 1.1]]))[:, None]
    state = RobotState(
        cameras, K.expand(1, 2, 3, 3), torch.ones(1, 2, dtype=torch.bool), hand, cameras[:, 1:], torch.ones(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
    )  # fmt: skip
    features = VLFeatures(
        torch.zeros(1, 4, 8), torch.zeros(0, 1, 4, 8), (), torch.ones(1, 4).long(), view, uv
    )
    found = plane_points(features, state, torch.tensor([0.9]))
    target = make_pose(hand[0, 0, :3, :3], point)[None, None, None]
    code = encode_chunk(target, torch.ones(1, 1, 1), hand, cameras[:, 1:])
    assert_close(found[0, 1], code[0, 0, 0, :3])
    assert_close(found[0, 3], code[0, 0, 0, :3])
    assert not torch.allclose(found[0, 2], found[0, 1], atol=0.05)
    assert torch.equal(found[0, 0], torch.zeros(3))


def test_each_sample_takes_the_plane_of_its_own_table() -> None:
    """Cameras of LIBERO's floor, living room and kitchen. The wrist's camera is the lower one of a sample."""
    state = robot(3)
    height = torch.tensor([[0.65, 0.3], [0.96, 0.7], [1.61, 1.2]])
    camera = state.camera_pose.clone()
    camera[:, :2, 2, 3] = height
    state = dataclasses.replace(state, camera_pose=camera)
    assert_close(plane_heights((0.04, 0.45, 0.94), state), torch.tensor([0.04, 0.45, 0.94]))
    assert_close(plane_heights([0.5], state), torch.tensor([0.5, 0.5, 0.5]))
    assert_close(plane_heights((0.5, 0.94), state), torch.tensor([0.5, 0.5, 0.94]))  # none is low enough
    net = vla("mini", "apt", 2, plane=0.94, lower_planes=(0.45, 0.04), proprio=True)
    alone = [vla("mini", "apt", 2, plane=p, proprio=True) for p in (0.04, 0.45, 0.94)]
    features = net.features(net.vlm.prepare(images(3), [""] * 3))
    several = net.expert.tokens.prefix(state.recentred(), state)
    for index, one in enumerate(alone):
        one.expert.load_state_dict(net.expert.state_dict())
        assert_close(several[index], one.expert.tokens.prefix(state.recentred(), state)[index])
        for module in (net.expert, one.expert):
            torch.nn.init.ones_(module.plane_embed.weight)
        streams = [e.vl_stream(features, state)[index] for e in (net.expert, one.expert)]
        assert_close(*streams)


def test_the_released_prior_cannot_tell_the_steps_of_a_chunk_apart() -> None:
    """Documented in docs/model.md: its Stage 1 does not distinguish the steps of a chunk; with `step_index` it does."""
    order = torch.tensor([2, 0, 3, 1])
    for change, same in (({}, True), ({"step_index": True}, False)):
        net = vla("mini", "apt", 1, **change)
        f, noise = net.features(net.vlm.prepare(images(2), ["", ""])), torch.randn(2, 1, 4, 10)
        a, b = (net.expert.sample(f, robot(2), x, steps=2) for x in (noise, noise[:, :, order]))
        assert torch.allclose(a[:, :, order], b, atol=1e-5) == same


@pytest.mark.parametrize("arch", ["apt", "pi", "groot"])
def test_reusing_the_stream_is_exact(arch: str) -> None:
    """Observing anew before every denoising step gives the same numbers, and the world's frame does not matter."""
    net = vla("qwen3", arch, 2)
    f, state = net.features(net.vlm.prepare(images(2), ["go", "stop"])), robot(2)
    noise = torch.randn(2, 1, 4, 10)
    reused = net.expert.sample(f, state, noise)

    def afresh(x: torch.Tensor, t: int) -> torch.Tensor:
        return net.expert.denoise(net.expert.encode_context(f, state), x, torch.full((2,), t))

    with torch.no_grad():
        assert_close(reused, ddim_sample(afresh, noise), atol=1e-4, rtol=1e-4)
    T = make_pose(random_rotations(2), torch.randn(2, 3))
    assert_close(net.expert.sample(f, state.moved(T), noise), reused, atol=2e-3, rtol=1e-3)


def test_decay_groups() -> None:
    expert = build_expert(SMALL)
    plain = {name for name, _ in expert.named_parameters() if not is_decayed(name)}
    assert "blocks.0.norm1.action.modulation.weight" in plain
    assert "tokens.history_encoder.1.bias" in plain
    assert {"tokens.history_encoder.1.weight", "fusion.gate", "tokens.arm_embed"}.isdisjoint(plain)


def test_bad_configs_are_named() -> None:
    for change, word in (
        ({"depth": 5}, "even"),
        ({"width": 30}, "multiple of 8"),
        ({"arch": "pi", "depth": 4}, "one block per VLM layer"),
        ({"stage": 3}, "stage is 3"),
    ):
        with pytest.raises(UserError, match=word):
            dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Did you mean 'depth'"):
        build(ExpertConfig, {"depht": 4}, "expert")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "steps", "lr"), [("apt", 1200, 3e-3), ("pi", 1200, 3e-3), ("groot", 2400, 1e-3)]
)
def test_every_architecture_overfits_32_chunks_to_5_mm(arch: str, steps: int, lr: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count, horizon, L = 32, 8, 10
    vlm = VLMShape(width=32, layers=2, kv_heads=2, head_dim=16, rope_theta=None)
    config = ExpertConfig(
        arch=arch, vlm=vlm, width=64, heads=4, depth=2, horizon=horizon, prediction="sample"
    )  # type: ignore[arg-type]
    expert = build_expert(config)
    view = torch.tensor([-1, 0, 0, 0, 0, 1, 1, 1, 1, -1]).expand(count, L)
    features = VLFeatures(
        embeds=torch.randn(count, L, 32),
        taps=torch.randn(2, count, L, 32),
        layers=(0, 1),
        token_type=torch.where(view >= 0, VISION, LANGUAGE),
        view=view,
        uv=torch.rand(count, L, 2),
        kv=tuple((torch.randn(count, L, 2, 16), torch.randn(count, L, 2, 16)) for _ in range(2)),
    )
    state = robot(count)
    pose = state.ee_pose[:, :, None].repeat(1, 1, horizon, 1, 1)
    pose[..., :3, 3] += 0.01 * torch.randn(count, 1, 1, 3) * torch.arange(1, horizon + 1)[:, None]
    opening = (torch.rand(count, 1, horizon) > 0.5).float()
    target = encode_chunk(pose, opening, state.ee_pose, state.ref_pose)
    optimiser = torch.optim.AdamW(expert.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        expert.loss(features, state, target)["total"].backward()
        torch.nn.utils.clip_grad_norm_(expert.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    sample = expert.sample(features, state, torch.randn_like(target))
    predicted, openness = decode_chunk(sample, state.ee_pose, state.ref_pose)
    error = (predicted - pose)[..., :3, 3].norm(dim=-1).mean().item()
    print(f"{arch}: mean chunk error {1000 * error:.1f} mm")
    assert error < 0.005
    assert ((openness > 0.5) == (opening > 0.5)).float().mean() > 0.98


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_mask_as_numbers_gives_the_same_attention(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 8, generator=generator).to(kind) for n, h in ((5, 4), (7, 2), (7, 2)))
    mask = torch.rand(2, 5, 7, generator=generator) > 0.4
    mask[..., 0] = True
    assert torch.equal(attend(q, k, v, mask, NoCode()), attend(q, k, v, attention_bias(mask), NoCode()))
