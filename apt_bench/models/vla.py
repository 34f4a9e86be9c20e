"""A whole policy network: a vision-language model and an action expert on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.models.base import ActionExpert
from apt_bench.models.config import ExpertConfig
from apt_bench.models.expert import APTExpert
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
    """Which vision-language model, and how it is trained. `name`: hub id or folder, or `mini`. `queries`: learned
    tokens that alone the expert sees (LangForce); 0 = none."""

    name: str = DEFAULT
    mode: VLMMode = "frozen"
    mini: MiniVLMConfig = field(default_factory=MiniVLMConfig)
    deepstack_in_taps: bool = True  # Qwen3-VL only, see QwenVLM
    dtype: Literal["float32", "bfloat16"] = "float32"
    queries: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VLMSpec:
        """Read from `config.json`; unknown keys are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"VLM config: unknown key '{key}'. {did_you_mean(key, known)}")
        mini = dict(values.get("mini") or {})
        mini = {k: tuple(v) if isinstance(v, list) else v for k, v in mini.items()}
        return cls(**{**values, "mini": MiniVLMConfig(**mini)})

    def load(self) -> VLM:
        """The model, in its mode; the mini one comes without weights."""
        if self.name == "mini":
            vlm: VLM = MiniVLM(self.mini)
        else:
            vlm = load_hf(self.name, getattr(torch, self.dtype))
            if isinstance(vlm, QwenVLM):
                vlm.deepstack_in_taps = self.deepstack_in_taps
        if self.queries:
            vlm.add_queries(self.queries)
        vlm.set_mode(self.mode)
        return vlm


class VLA(nn.Module):
    """VLM and expert. A Stage-1 network is `blind`: its prompts carry no instruction."""

    def __init__(self, vlm: VLM, expert: ActionExpert, spec: VLMSpec) -> None:
        super().__init__()
        if vlm.shape != expert.config.vlm:
            raise UserError(
                f"The expert was built for a VLM of shape {expert.config.vlm}, but this one has {vlm.shape}. "
                "Use the VLM it was trained with."
            )
        self.vlm, self.expert, self.spec = vlm, expert, spec

    @property
    def blind(self) -> bool:
        """Whether language is withheld."""
        return self.expert.config.stage == 1

    def features(self, prompt: Prompt) -> VLFeatures:
        """What the expert needs to know of a prompt; without gradients if the VLM is frozen."""
        features = self.vlm(prompt, self.expert.needed_layers, self.expert.needs_kv)
        return features if self.vlm.queries is None else features.at(prompt.query)


def build_expert(config: ExpertConfig) -> ActionExpert:
    """A fresh expert of the architecture that `config.arch` names."""
    return ARCHITECTURES[config.arch](config)
