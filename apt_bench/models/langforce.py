"""LangForce, a rival training recipe: learned queries, evaluated with and without the instruction before them.

The VLM gets K learned tokens (queries). The action expert (GR00T-style) uses only the VLM's last layer at the queries.
Every sample is evaluated in two branches, with different prompts:

    posterior   images, instruction, queries    the queries attend to images and instruction
    prior       images, queries, instruction    the queries attend to images only

L is the denoising loss of the actions given the queries of a branch. nll is -log p(instruction | tokens before it), a
mean over the instruction's tokens.

    loss = (1 - prior_share) L_post + prior_share L_prior - llr_weight (nll_post - nll_prior)

L_prior trains only the expert, as its queries are detached. nll_post is detached too. There the queries come after the
instruction, so it estimates -log p(l | v). The rest of the last term raises log p(l | v, queries): the prior's queries,
which do not see the instruction, must predict it, and beyond the image only the intended action predicts it. A policy
acts on the posterior branch.

Formulas: LangForce (repository ZGC-EmbodyAI/LangForce and its version in starVLA). docs/model.md lists the differences.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_bench.core.errors import UserError
from apt_bench.models.inputs import RobotState, TensorRecord
from apt_bench.models.vla import VLA
from apt_bench.models.vlm import VLM, Prompt


@dataclasses.dataclass(frozen=True)
class Branches(TensorRecord):
    """The two prompts of each sample."""

    posterior: Prompt
    prior: Prompt


def instruction_nll(vlm: VLM, hidden: Tensor, prompt: Prompt) -> Tensor:
    """-log p of the instruction's tokens given the tokens before them, a mean over tokens, then over samples.

    Template, image and padding tokens are not scored.

    Args:
        vlm: The model.
        hidden: Outputs of its last decoder layer, (B, L, width).
        prompt: The prompts.
    """
    row, at = prompt.word.nonzero().unbind(1)
    h = vlm.final_norm(hidden[row, at - 1])
    logits = h @ vlm.word_embedding.weight.to(h.dtype).T
    nll = F.cross_entropy(logits.float(), prompt.ids[row, at], reduction="none")
    total = torch.zeros(len(hidden), device=h.device).index_add(0, row, nll)
    return (total / prompt.word.sum(1).clamp(min=1)).mean()


def langforce_loss(
    model: VLA,
    branches: Branches,
    robot: RobotState,
    target: Tensor,
    *,
    prior_share: float,
    llr_weight: float,
    **options: Any,
) -> dict[str, Tensor]:
    """Compute the LangForce loss; see the module's docstring.

    Args:
        model: The network.
        branches: The prompts of both branches.
        robot: Cameras and arms.
        target: Codes of the demonstrated action chunks, (B, E, T, 10).
        prior_share: Weight of the prior branch's action loss, in [0, 1].
        llr_weight: Weight of the log-likelihood ratio.
        **options: Further arguments of `ActionExpert.loss`.

    Returns:
        `total`; the posterior's action losses; and `llr` = nll_post - nll_prior, which measures how much better the
        prior's queries predict the instruction than the images do.
    """
    layers = (model.vlm.shape.layers - 1,)
    read = [model.vlm(prompt, layers) for prompt in (branches.posterior, branches.prior)]
    action = model.expert.loss(read[0].at(branches.posterior.query), robot, target, **options)
    unasked = read[1].at(branches.prior.query).map(Tensor.detach)
    blind = model.expert.loss(unasked, robot, target, **options)
    with torch.no_grad():
        unaided = instruction_nll(model.vlm, read[0].taps[0], branches.posterior)
    llr = unaided - instruction_nll(model.vlm, read[1].taps[0], branches.prior)
    total = (1 - prior_share) * action["total"] + prior_share * blind["total"] - llr_weight * llr
    return {**action, "total": total, "llr": llr}


def check(vlm: VLM) -> None:
    """Raise UserError for a VLM that LangForce cannot use."""
    if not vlm.causal:
        raise UserError(
            "LangForce needs a causal VLM: in this one the prior's queries would see the instruction after them. Use "
            "a Qwen VLM, SmolVLM or the mini VLM."
        )
    if not vlm.tied:
        raise UserError(
            "LangForce scores the instruction with the VLM's input embeddings, but this one has a separate output "
            "layer. Use a model with tied embeddings, such as Qwen/Qwen3-VL-2B-Instruct."
        )
