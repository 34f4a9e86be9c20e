"""LangForce: the inputs of each branch, the parameters that each loss term trains, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import images, model, robot, tokenizer, vla, vlm
from torch.testing import assert_close

from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.hf_vlm import wrap
from apt_bench.models.langforce import Branches, check, instruction_nll, langforce_loss
from apt_bench.models.vla import VLA, VLMSpec

CAUSAL = ("qwen3", "qwen2_5", "smolvlm", "mini")
ONE, TWO = ["kjq xwv", "go"], ["xwv kjq", "og"]  # the same number of tokens
WEIGHTS = {"prior_share": 0.3, "llr_weight": 0.1}


def network(family: str, queries: int = 6, mode: str = "full") -> VLA:
    net = vla(family, "groot", 2)
    net.vlm.add_queries(queries)
    net.vlm.set_mode(mode)  # type: ignore[arg-type]
    return net


def branches(net: VLA, text: list[str]) -> Branches:
    views = images(len(text))
    return Branches(net.vlm.prepare(views, text), net.vlm.prepare(views, text, queries_first=True))


def loss(net: VLA, text: list[str], **change: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = 0.1 * torch.randn(len(text), 1, 4, 10, generator=generator)
    return langforce_loss(
        net, branches(net, text), robot(len(text)), target, generator=generator, **(WEIGHTS | change)
    )


@pytest.mark.parametrize("family", CAUSAL)
def test_the_priors_queries_know_no_instruction_and_the_posteriors_do(family: str) -> None:
    net = network(family)
    layer = (net.vlm.shape.layers - 1,)
    with torch.no_grad():
        read = [[net.vlm(p, layer).at(p.query).taps for p in (b.posterior, b.prior)]
                for b in (branches(net, ONE), branches(net, TWO))]  # fmt: skip
    assert read[0][0].shape == (1, 2, 6, net.vlm.shape.width)
    assert torch.equal(read[0][1], read[1][1])
    assert not torch.allclose(read[0][0], read[1][0], atol=1e-4)
    # The expert sees the posterior's queries alone, with no other switch than the model having queries.
    features = net.features(branches(net, ONE).posterior)
    assert torch.equal(features.taps, read[0][0])


@pytest.mark.parametrize("family", CAUSAL)
def test_both_branches_hold_the_same_words(family: str) -> None:
    net = network(family)
    both = branches(net, ["move the red cube", "go"])
    for row in range(2):
        words = [p.ids[row][p.word[row]].tolist() for p in (both.posterior, both.prior)]
        assert words[0] == words[1]
        assert words[0] == list(net.vlm.turn(["move the red cube", "go"][row]).text)
        query, word = (getattr(both.prior, n)[row].nonzero()[:, 0] for n in ("query", "word"))
        assert query.max() < word.min()
        query, word = (getattr(both.posterior, n)[row].nonzero()[:, 0] for n in ("query", "word"))
        assert word.max() < query.min()


def test_the_instructions_nll_is_that_of_the_models_own_head() -> None:
    torch.manual_seed(0)
    whole = model("qwen3").eval()
    net = wrap(whole, tokenizer(), side=64)
    prompt = net.prepare(images(2), ["move the red cube", "go"])
    with torch.no_grad():
        logits = whole(
            input_ids=prompt.ids, attention_mask=prompt.present.long(), position_ids=net.positions(prompt),
            **prompt.pixels, **net.extra(prompt),
        ).logits  # fmt: skip
        per_word = F.cross_entropy(logits[:, :-1].transpose(1, 2), prompt.ids[:, 1:], reduction="none")
        words = prompt.word[:, 1:]
        expected = torch.stack([x[w].mean() for x, w in zip(per_word, words, strict=True)]).mean()
        last = net.shape.layers - 1
        assert_close(instruction_nll(net, net(prompt, (last,)).taps[0], prompt), expected)


@pytest.mark.parametrize("family", CAUSAL)
def test_each_term_trains_what_it_should(family: str) -> None:
    def reached(net: VLA) -> set[str]:
        return {n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    net = network(family)
    loss(net, ONE, prior_share=1.0, llr_weight=0.0)[
        "total"
    ].backward()  # the prior's actions: the expert alone
    assert reached(net)
    assert all(n.startswith("expert.") for n in reached(net))
    net.zero_grad()
    loss(net, ONE, prior_share=0.0, llr_weight=0.0)["total"].backward()  # the posterior's: both
    assert {"vlm.queries", "expert.head.weight"} <= reached(net)
    net.zero_grad()
    found = loss(net, ONE, prior_share=0.0, llr_weight=1.0)
    found["llr"].backward()  # the ratio: the VLM alone, through the prior branch
    assert "vlm.queries" in reached(net)
    assert all(n.startswith("vlm.") for n in reached(net))
    parts = [loss(net, ONE, prior_share=share, llr_weight=0.0)["total"] for share in (0.0, 1.0)]
    assert_close(loss(net, ONE)["total"], 0.7 * parts[0] + 0.3 * parts[1] - 0.1 * found["llr"])


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_round_trip(tmp_path, mode: str) -> None:
    net = network("mini", mode=mode)
    assert net.vlm.queries.requires_grad
    net.spec = VLMSpec("mini", mode, net.vlm.config, queries=6)  # type: ignore[arg-type]
    net.vlm.queries.data += 1.0
    again = checkpoint.load(checkpoint.save(tmp_path / "c", net, {}))
    noise = torch.randn(2, 1, 4, 10)
    a, b = (
        n.expert.sample(n.features(n.vlm.prepare(images(2), ONE)), robot(2), noise)
        for n in (net.eval(), again)
    )
    assert torch.equal(a, b)


def test_a_vlm_that_sees_ahead_or_has_a_head_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="needs a causal VLM"):
        check(vlm("paligemma"))
    net = vlm("qwen3")
    check(net)
    net.tied = False
    with pytest.raises(UserError, match="separate output layer"):
        check(net)


@pytest.mark.medium
def test_queries_before_the_instruction_learn_to_predict_it() -> None:
    """Each image belongs to one of two instructions, so the prior's queries can predict it: the ratio rises above 0.
    The posterior learns the action."""
    torch.set_num_threads(1)
    net = network("mini", queries=4)
    words = ["red cube to the bowl", "move the bowl"] * 4
    views = [images(1, seed=i % 2)[0] for i in range(8)]
    both = Branches(net.vlm.prepare(views, words), net.vlm.prepare(views, words, queries_first=True))
    target = torch.zeros(8, 1, 4, 10)
    target[1::2] = 0.3
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
    state, generator = robot(8), torch.Generator().manual_seed(0)
    history = []
    for _ in range(120):
        optimiser.zero_grad()
        found = langforce_loss(
            net, both, state, target, prior_share=0.3, llr_weight=1.0, generator=generator, draws=2
        )
        found["total"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        history.append({k: v.item() for k, v in found.items()})
    early, late = (
        {k: sum(h[k] for h in part) / 10 for k in part[0]} for part in (history[:10], history[-10:])
    )
    assert late["position"] < 0.6 * early["position"]
    assert late["llr"] > early["llr"] + 0.5
