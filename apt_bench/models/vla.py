"""The whole policy network: a vision-language model and an action expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import nn

from apt_bench.core.config import Range, check_fields
from apt_bench.core.errors import UserError
from apt_bench.models.action_expert import ActionExpert
from apt_bench.models.apt_expert import APTExpert
from apt_bench.models.config import ExpertConfig, on_meta_device
from apt_bench.models.groot_style import GR00TExpert
from apt_bench.models.hf_vlm import DEFAULT, QwenVLM, load_hf
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.models.pi_style import PiExpert
from apt_bench.models.vlm import VLM, Prompt, VLMMode

ARCHITECTURES: dict[str, Callable[[ExpertConfig], ActionExpert]] = {
    "apt": APTExpert,
    "pi": PiExpert,
    "groot": GR00TExpert,
}


@dataclass(frozen=True)
class VLMSpec:
    """Which vision-language model to use, and which of its weights train.

    Attributes:
        name: Hub id or folder, or `mini`.
        mode: `frozen`, `lora` or `full`; see `VLM.set_mode`.
        mini: Configuration of the mini VLM, for the name `mini`.
        deepstack_in_taps: For Qwen3-VL; see `QwenVLM`.
        dtype: Type of the weights.
        queries: Number of learned tokens that replace all other tokens as the expert's input (LangForce); 0 = none.
        plain_words: Whether the expert gets the embeddings of words at every layer, without what the VLM's layers add,
            such as the place of a noun's object. Mini VLM only.
    """

    name: str = DEFAULT
    mode: VLMMode = "frozen"
    mini: MiniVLMConfig = field(default_factory=MiniVLMConfig)
    deepstack_in_taps: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    queries: Annotated[int, Range(least=0, most=4096)] = 0
    plain_words: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "VLM config")
        if self.plain_words and self.name != "mini":
            raise UserError(
                f"vlm.plain_words is for the mini VLM only, and the VLM is {self.name}. Leave it out."
            )

    def on_meta_device(self) -> VLM:
        """Make the mini VLM without memory for its weights. Raises UserError if it would be too large."""

        def make() -> VLM:
            return self._equipped(MiniVLM(self.mini))

        return on_meta_device(make, "The mini VLM")

    def load(self) -> VLM:
        """Load the model and set its mode. The mini VLM is initialised at random.

        Raises:
            UserError: The model cannot be found, is not supported, or would be too large.
        """
        if self.name == "mini":
            self.on_meta_device()
            vlm: VLM = MiniVLM(self.mini)
        else:
            vlm = load_hf(self.name, getattr(torch, self.dtype))
            if isinstance(vlm, QwenVLM):
                vlm.deepstack_in_taps = self.deepstack_in_taps
        return self._equipped(vlm)

    def _equipped(self, vlm: VLM) -> VLM:
        if self.queries:
            vlm.add_queries(self.queries)
        vlm.set_mode(self.mode)
        return vlm


class VLA(nn.Module):
    """A VLM and an expert. A Stage-1 network is `blind`: its prompts contain no instruction."""

    def __init__(self, vlm: VLM, expert: ActionExpert, spec: VLMSpec) -> None:
        super().__init__()
        if vlm.shape != expert.config.vlm:
            raise UserError(
                f"The expert was built for a VLM of shape {expert.config.vlm}, but this VLM has {vlm.shape}. "
                "Use the VLM that the expert was trained with."
            )
        self.vlm, self.expert, self.spec = vlm, expert, spec
        vlm.plain_words = spec.plain_words

    @property
    def blind(self) -> bool:
        """Whether prompts must contain no instruction."""
        return self.expert.config.stage == 1

    def features(self, prompt: Prompt) -> VLFeatures:
        """Compute the features of a prompt that the expert uses; without gradients if the VLM is frozen."""
        features = self.vlm(prompt, self.expert.needed_layers, self.expert.needs_kv)
        return features if self.vlm.queries is None else features.at(prompt.query)


def build_expert(config: ExpertConfig) -> ActionExpert:
    """Make an expert of the architecture `config.arch`, initialised at random. Raises UserError if it is too large."""
    expert_on_meta_device(config)
    return ARCHITECTURES[config.arch](config)


def expert_on_meta_device(config: ExpertConfig) -> ActionExpert:
    """Make the same expert without memory for its parameters."""
    return on_meta_device(lambda: ARCHITECTURES[config.arch](config), f"The {config.arch} expert")
