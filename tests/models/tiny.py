"""Tiny vision-language models with random weights: transformers' real classes, and the mini VLM."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from apt_bench.models.action_codes import make_pose
from apt_bench.models.config import ExpertConfig
from apt_bench.models.hf_vlm import wrap
from apt_bench.models.inputs import RobotState, fractional_intrinsics, random_rotations
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.models.vla import VLA, VLMSpec, build_expert
from apt_bench.models.vlm import VLM

FAMILIES = ("qwen3", "qwen2_5", "paligemma", "smolvlm", "mini")
SPECIAL = [
    "<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<|vision_start|>",
    "<|vision_end|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
]  # fmt: skip


@cache
def tokenizer() -> Any:
    """Byte-level BPE trained on one sentence; ids of the special tokens are their places in SPECIAL."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(["move the red cube to the bowl"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=SPECIAL[3:],
    )  # fmt: skip


def model(family: str) -> Any:
    """A random model of about a million parameters."""
    import transformers as t

    text = {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    ends, vision = {"bos_token_id": 2, "eos_token_id": 1}, {"hidden_size": 64, "intermediate_size": 128}
    ids = {
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
        "tie_word_embeddings": True,
    }
    siglip = dict(**vision, num_hidden_layers=2, num_attention_heads=4)
    qwen = dict(
        **vision, depth=2, num_heads=4, out_hidden_size=128, spatial_merge_size=2, temporal_patch_size=2
    )
    if family == "qwen3":
        rope = {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [8, 4, 4],
            "mrope_interleaved": True,
        }
        config = t.Qwen3VLConfig(
            text_config=dict(**text, num_key_value_heads=2, head_dim=32, rope_parameters=rope),
            vision_config=dict(
                **qwen, patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=[0]
            ),
            **ids,
        )
        cls = t.Qwen3VLForConditionalGeneration
    elif family == "qwen2_5":
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
        config = t.Qwen2_5_VLConfig(
            text_config=dict(**text, **ends, num_key_value_heads=2, rope_parameters=rope),
            vision_config=dict(**qwen, patch_size=14, window_size=56, fullatt_block_indexes=[1]),
            **ids,
        )
        cls = t.Qwen2_5_VLForConditionalGeneration
    elif family == "paligemma":
        config = t.PaliGemmaConfig(
            vision_config=dict(
                model_type="siglip_vision_model", **siglip, patch_size=14, image_size=56, vision_use_head=False
            ),
            text_config=dict(model_type="gemma", **text, **ends, num_key_value_heads=1, head_dim=32),
            image_token_index=5, projection_dim=128, hidden_size=128, vocab_size=512,
        )  # fmt: skip
        cls = t.PaliGemmaForConditionalGeneration
    else:
        config = t.SmolVLMConfig(
            text_config=dict(model_type="llama", **text, **ends, num_key_value_heads=2, head_dim=32),
            vision_config=dict(**siglip, image_size=64, patch_size=16),
            image_token_id=5, scale_factor=2, tie_word_embeddings=True, pad_token_id=0,
        )  # fmt: skip
        cls = t.SmolVLMForConditionalGeneration
    return cls._from_config(config, attn_implementation="sdpa")


def vlm(family: str) -> VLM:
    torch.manual_seed(0)
    if family == "mini":
        return MiniVLM(
            MiniVLMConfig(
                words=("move", "the", "cube", "to", "bowl", "red"), image_size=(64, 64), width=64, layers=4
            )
        )
    return wrap(model(family), tokenizer(), **({"side": 64} if "qwen" in family else {}))


def vla(family: str, arch: str, stage: int, seed: int = 0, **config: Any) -> VLA:
    """A small VLA with random numbers in its zero-initialised parts, so that every part affects the output."""
    backbone = vlm(family)
    torch.manual_seed(seed)
    expert = build_expert(
        ExpertConfig(
            **{
                "arch": arch,
                "stage": stage,
                "vlm": backbone.shape,
                "width": 64,
                "heads": 4,
                "depth": 4,
                "horizon": 4,
            }
            | config  # type: ignore[arg-type]
        )
    )
    for p in expert.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return VLA(backbone, expert, VLMSpec(name=family))


def images(samples: int, views: int = 2, size: int = 64, seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(views)] for _ in range(samples)
    ]


def robot(samples: int, views: int = 2, seed: int = 0) -> RobotState:
    g = torch.Generator().manual_seed(seed)

    def poses(n: int) -> torch.Tensor:
        R, p = random_rotations(samples * n, g), torch.randn(samples * n, 3, generator=g) * 0.3
        return make_pose(R, p).reshape(samples, n, 4, 4)

    cameras = poses(views)
    K = torch.tensor([[60.0, 0, 31.5], [0, 60.0, 31.5], [0, 0, 1]]).expand(samples, views, 3, 3)
    return RobotState(
        camera_pose=cameras,
        intrinsics=fractional_intrinsics(K, 64, 64),
        camera_present=torch.ones(samples, views, dtype=torch.bool),
        ee_pose=poses(1),
        ref_pose=cameras[:, :1],
        openness=torch.rand(samples, 1, generator=g),
        arm_valid=torch.ones(samples, 1, dtype=torch.bool),
    )
