"""Hugging Face vision-language models with the `VLM` interface: Qwen3-VL, Qwen2.5-VL, PaliGemma, SmolVLM2.

This module resizes and normalises images and applies the chat templates as the models' own processors do (those of Qwen
need torchvision). Only the tokenizer comes from the hub. Tests compare the results with transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.models.config import VLMShape
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.vlm import VLM, Prompt, Turn

DEFAULT = "Qwen/Qwen3-VL-2B-Instruct"
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class HFBackbone(VLM):
    """Base class: it runs the model without its language head and captures outputs of decoder layers."""

    normalisation = _HALF  # mean and standard deviation per channel, for pixels in [0, 1]

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        head = getattr(model, "lm_head", None)
        self.model = model if head is None else model.model
        self.tied = head is None or head.weight is self.word_embedding.weight
        self.tokenizer = tokenizer
        self.shape = shape_of(self.model.config)
        self.pad_id = tokenizer.pad_token_id or 0
        self.set_mode("frozen")

    @property
    def text_model(self) -> Any:
        """The language model, without the vision tower."""
        return self.model.language_model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The language model's layers."""
        return self.text_model.layers

    @property
    def word_embedding(self) -> nn.Embedding:
        """The input embeddings of tokens."""
        return self.model.get_input_embeddings()

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder layer."""
        return self.text_model.norm

    def encode(self, text: str) -> list[int]:
        """Token ids of a part of a prompt, which may contain special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def normalised(self, images: list[np.ndarray]) -> Tensor:
        """uint8 images -> normalised floats (n, 3, H, W)."""
        if not images:
            return torch.zeros(0, 3, *self.image_size)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in self.normalisation)
        return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def positions(self, prompt: Prompt) -> Tensor:
        """Rotary positions, (B, L) or as the model expects them."""
        return (prompt.present.long().cumsum(1) - 1).clamp(min=0)

    def extra(self, prompt: Prompt) -> dict[str, Tensor]:
        """Additional arguments of the model."""
        return {}

    def read(self, prompt: Prompt, layers: tuple[int, ...], kv: bool) -> VLFeatures:
        """Capture the input of the first layer, and what each tapped layer passes to the next one.

        A hook stops the forward pass after the last tapped layer."""
        captured: dict[int, Tensor] = {}
        stop_at = None if kv else max(layers, default=-1)

        def catch(layer: int, hidden: Tensor) -> None:
            captured[layer] = hidden
            if layer == stop_at:
                raise _StopForward

        followers = [*self.decoder_layers, self.text_model.norm]
        hooks = [_on_input(followers[0], catch, -1)]
        if self.queries is not None:
            place = self.with_queries
            hooks.append(self.word_embedding.register_forward_hook(lambda m, a, out: place(out, prompt)))
        for layer in layers:
            inside = self.tap_inside(layer)
            hooks.append(
                _on_output(followers[layer], catch, layer)
                if inside
                else _on_input(followers[layer + 1], catch, layer)
            )
        position = self.positions(prompt)
        dtype = next(self.parameters()).dtype
        pixels = {k: v.to(dtype) if v.is_floating_point() else v for k, v in prompt.pixels.items()}
        cache: Any = ()
        try:
            cache = self.model(
                input_ids=prompt.ids,
                attention_mask=prompt.present.long(),
                position_ids=position,
                use_cache=kv,
                **pixels,
                **self.extra(prompt),
            ).past_key_values
        except _StopForward:
            pass
        finally:
            for handle in hooks:
                handle.remove()
        embeds = captured[-1]
        return VLFeatures(
            embeds=embeds,
            taps=torch.stack([captured[layer] for layer in layers])
            if layers
            else embeds.new_zeros(0, *embeds.shape),
            layers=tuple(layers),
            token_type=prompt.token_type,
            view=prompt.view,
            uv=prompt.uv,
            kv=tuple((c.keys.transpose(1, 2), c.values.transpose(1, 2)) for c in cache.layers) if kv else (),
            position=position.amax(0) if position.dim() == 3 else position,
        )

    def tap_inside(self, layer: int) -> bool:
        """Whether to tap the layer's own output instead of the next module's input."""
        return False


class _StopForward(Exception):
    """A hook raises it when the last tapped layer is captured."""


def _on_input(module: nn.Module, catch: Callable[[int, Tensor], None], layer: int) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
        catch(layer, args[0] if args else kwargs["hidden_states"])

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: nn.Module, catch: Callable[[int, Tensor], None], layer: int) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple, out: Any) -> None:
        catch(layer, out[0] if isinstance(out, tuple) else out)

    return module.register_forward_hook(hook)


class QwenVLM(HFBackbone):
    """Qwen3-VL and Qwen2.5-VL.

    Qwen3-VL adds deep-stack image features after its first layers. `deepstack_in_taps` sets whether a tap of such a
    layer includes them, as the next layer's input does. In transformers 4.57, on which the released APT was developed,
    the tap includes them because the addition is in place. In 5.x the layer's output does not. This affects only tap 0,
    which Stage 1 does not use. Which variant trained the released weights is unknown.
    """

    def __init__(
        self, model: Any, tokenizer: Any, side: int | None = None, deepstack_in_taps: bool = True
    ) -> None:
        super().__init__(model, tokenizer)
        config, vision = self.model.config, self.model.config.vision_config
        self.old = "2_5" in config.model_type
        self.normalisation = _CLIP if self.old else _HALF
        self.deepstack_in_taps = deepstack_in_taps
        self.patch, self.merge = vision.patch_size, vision.spatial_merge_size
        cell = self.patch * self.merge
        side = round((side or 256) / cell) * cell
        self.image_size, self.grid = (side, side), (side // cell, side // cell)
        self.image_id = config.image_token_id
        self.brackets = config.vision_start_token_id, config.vision_end_token_id

    def turn(self, text: str) -> Turn:
        """One user turn with the generation prompt. Qwen2.5's template starts with a system turn."""
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if self.old else ""
        start, end = self.brackets
        return Turn(
            before=self.encode(f"{system}<|im_start|>user\n"),
            opening=[start],
            closing=[end],
            text=self.encode(text),
            after=self.encode("<|im_end|>\n<|im_start|>assistant\n"),
        )

    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Patches in the order of the tower's merged tokens, each repeated over the temporal patch of 2."""
        pixels = self.normalised([image for sample in images for image in sample])
        n, (rows, cols), m, p = len(pixels), self.grid, self.merge, self.patch
        x = pixels.reshape(n, 1, 3, rows, m, p, cols, m, p).expand(-1, 2, -1, -1, -1, -1, -1, -1, -1)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(n * rows * m * cols * m, -1)
        return {
            "pixel_values": x,
            "image_grid_thw": torch.tensor([[1, rows * m, cols * m]] * n).reshape(n, 3),
        }

    def extra(self, prompt: Prompt) -> dict[str, Tensor]:
        """Mark image tokens, for the 3-D positions."""
        return {"mm_token_type_ids": (prompt.view >= 0).int()}

    def positions(self, prompt: Prompt) -> Tensor:
        """(3, B, L): time, height, width."""
        position, _ = self.model.get_rope_index(
            prompt.ids,
            image_grid_thw=prompt.pixels["image_grid_thw"],
            attention_mask=prompt.present.long(),
            **self.extra(prompt),
        )
        return position

    def tap_inside(self, layer: int) -> bool:
        """The layer's own output does not include deep-stack features."""
        return not self.deepstack_in_taps


class PaliGemmaVLM(HFBackbone):
    """PaliGemma. Its prompt attends in both directions, so vision tokens see language unless the prompt is blind."""

    causal = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        vision = self.model.config.vision_config
        rows = vision.image_size // vision.patch_size
        self.image_size, self.grid = (vision.image_size,) * 2, (rows, rows)
        self.image_id = self.model.config.image_token_id

    def turn(self, text: str) -> Turn:
        """Images, then <bos>, the text and a newline."""
        return Turn(lead=[self.tokenizer.bos_token_id], text=self.encode(text), after=self.encode("\n"))

    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """(all images, 3, H, W)."""
        return {"pixel_values": self.normalised([image for sample in images for image in sample])}

    def positions(self, prompt: Prompt) -> Tensor:
        """Rotary positions, from 1."""
        return super().positions(prompt) + 1

    def extra(self, prompt: Prompt) -> dict[str, Tensor]:
        """Token type 0: a prefix with attention in both directions."""
        return {"token_type_ids": torch.zeros_like(prompt.ids)}


class SmolVLM(HFBackbone):
    """SmolVLM2, one tile per image."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        config, vision = self.model.config, self.model.config.vision_config
        rows = vision.image_size // vision.patch_size // config.scale_factor
        self.image_size, self.grid = (vision.image_size,) * 2, (rows, rows)
        self.image_id = config.image_token_id

    @property
    def text_model(self) -> Any:
        """The language model, without the vision tower."""
        return self.model.text_model

    def turn(self, text: str) -> Turn:
        """One user turn with the generation prompt."""
        around = self.encode("<fake_token_around_image>")
        opening = around + self.encode("<global-img>")
        return Turn(
            before=self.encode("<|im_start|>User:"),
            opening=opening,
            closing=around,
            text=self.encode(text),
            after=self.encode("<end_of_utterance>\nAssistant:"),
        )

    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """(B, maximum number of images, 3, H, W). Missing images are zero; the model drops them."""
        most = max(len(sample) for sample in images)
        out = torch.zeros(len(images), most, 3, *self.image_size)
        for row, sample in zip(out, images, strict=True):
            row[: len(sample)] = self.normalised(sample)
        return {"pixel_values": out}


_FAMILIES = {
    "qwen3_vl": QwenVLM,
    "qwen2_5_vl": QwenVLM,
    "paligemma": PaliGemmaVLM,
    "smolvlm": SmolVLM,
    "idefics3": SmolVLM,
}


def wrap(model: Any, tokenizer: Any, **options: Any) -> HFBackbone:
    """Wrap a loaded transformers model. Raises UserError for an unsupported one."""
    kind = model.config.model_type
    if kind not in _FAMILIES:
        raise _unsupported(kind)
    return _FAMILIES[kind](model, tokenizer, **options)


def shape_of(config: Any) -> VLMShape:
    """The decoder's sizes from a model's configuration."""
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return VLMShape(
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        rope_theta=float(text.rope_parameters["rope_theta"]),
    )


def check_hf(name: str) -> VLMShape:
    """The decoder's sizes of a model that `load_hf` would load, from its configuration only.

    Raises:
        UserError: The configuration cannot be found or loaded, or the model is not supported.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type in _FAMILIES:
            return shape_of(config)
    except Exception as error:  # as in load_hf
        raise _unloadable(name, error) from error
    raise _unsupported(config.model_type)


def _unsupported(kind: str) -> UserError:
    return UserError(f"VLM of type '{kind}' is not supported; use one of {', '.join(sorted(_FAMILIES))}.")


def _unloadable(name: str, error: Exception) -> UserError:
    where = (
        "the folder exists but could not be read"
        if Path(name).exists()
        else "there is no such folder, and it could not be downloaded"
    )
    return UserError(
        f"VLM '{name}' could not be loaded ({where}: {reason(error).splitlines()[0]}). "
        "Give a folder with a downloaded model, or connect to the network once so that it is cached."
    )


def load_hf(name: str = DEFAULT, dtype: torch.dtype = torch.float32, **options: Any) -> HFBackbone:
    """Load a model by hub id or folder, with sdpa attention.

    Code that comes with a model is never run (by default, transformers asks on the terminal).

    Args:
        name: Hub id or folder.
        dtype: Type of the weights.
        **options: Arguments of the wrapper class.

    Raises:
        UserError: The model cannot be found or loaded, is not supported, or needs code of its own.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    check_hf(name)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged or foreign folder makes transformers raise anything
        raise _unloadable(name, error) from error
    return wrap(model, tokenizer, **options)
