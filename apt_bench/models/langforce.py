"""LangForce, a rival training recipe: learned queries, read with and without the instruction before them.

The VLM gets K extra tokens, and the action expert (GR00T-style) sees nothing but the VLM's last layer at these. Every
sample is read twice:

    posterior   images, instruction, queries    the queries know what is asked
    prior       images, queries, instruction    the queries know what is seen, and the instruction comes after them

With L the denoising loss of actions under the queries of a branch, and nll = -log p(instruction | what stands before
it) per word,

    loss = (1 - prior_share) L_post + prior_share L_prior - llr_weight (nll_post - nll_prior)

L_prior trains the expert alone (its queries are detached), nll_post is a constant (detached): there the queries come
later, so it estimates -log p(l | v). What is left of the last term raises log p(l | v, queries): queries that see no
instruction must tell it, which vision alone answers only with the action that was meant. A policy acts on the
posterior branch.

Formulas: LangForce (ZGC-EmbodyAI/LangForce, and its rendering in starVLA). docs/model.md says what differs.
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
    """-log p of the instruction's tokens given what stands before each, mean over tokens, then over samples.

    hidden (B, L, width): outputs of the last decoder layer. A token is scored where the one before it stands; template,
    image and padding tokens are not scored."""
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
    """The recipe's loss (`total`), the posterior's action losses, and `llr` = nll_post - nll_prior: how much better the
    instruction is guessed from the prior's queries than from vision. `options` go to `ActionExpert.loss`."""
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
    """Raises UserError for a VLM that cannot serve."""
    if not vlm.causal:
        raise UserError(
            "LangForce needs a causal VLM: in this one the prior's queries would see the instruction behind them. Use "
            "a Qwen VLM, SmolVLM or the mini VLM."
        )
    if not vlm.tied:
        raise UserError(
            "LangForce scores the instruction with the VLM's input embeddings, but this one has a separate output "
            "layer. Use a model with tied embeddings, such as Qwen/Qwen3-VL-2B-Instruct."
        )
