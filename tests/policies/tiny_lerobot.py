"""Tiny random policies, saved by lerobot itself with its processors. Needs lerobot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

IMAGES = "observation.images."
ACT: dict[str, Any] = {
    "dim_model": 32,
    "n_heads": 2,
    "dim_feedforward": 32,
    "n_encoder_layers": 1,
    "n_decoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 8,
    "pretrained_backbone_weights": None,
    "chunk_size": 10,
    "n_action_steps": 8,
}
SMOLVLA: dict[str, Any] = {
    "chunk_size": 10,
    "n_action_steps": 5,
    "num_vlm_layers": 2,
    "num_steps": 2,
    "resize_imgs_with_padding": (64, 64),
    "tokenizer_max_length": 16,
    "empty_cameras": 1,
}


def save(folder: Path, kind: str, images: tuple[str, ...] = ("image", "image2"), **changes: Any) -> Path:
    """A policy of this type with random weights and made-up statistics of its inputs and outputs."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    settings = {**(ACT if kind == "act" else SMOLVLA), **changes}
    if kind == "smolvla":
        settings["vlm_model_name"] = str(_vlm(folder / "vlm"))
    seen = {IMAGES + name: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for name in images}
    config = make_policy_config(
        kind,
        device="cpu",
        push_to_hub=False,
        input_features={**seen, "observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        **settings,
    )
    torch.manual_seed(0)
    policy = get_policy_class(kind)(config)
    stats = {name: _stats((3, 1, 1), 0.4, 0.2) for name in seen}
    stats |= {"observation.state": _stats((8,), 0.1, 0.5), "action": _stats((7,), 0.2, 0.3)}
    for part in (policy, *make_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(folder)
    return folder


def _stats(shape: tuple[int, ...], mean: float, std: float) -> dict[str, torch.Tensor]:
    return {"mean": torch.full(shape, mean), "std": torch.full(shape, std)}


def _vlm(folder: Path) -> Path:
    """Configuration, tokenizer and processor of a tiny SmolVLM, in the place of the hub's."""
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = ["<pad>", "<bos>", "<eos>"]
    core.train_from_iterator([], trainers.BpeTrainer(special_tokens=ends, initial_alphabet=alphabet))
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=special,
    )
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    t.SmolVLMConfig(
        text_config={
            **width, "model_type": "llama", "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        vision_config={**width, "image_size": 64, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    images, videos = t.SmolVLMImageProcessor(), t.SmolVLMVideoProcessor()
    t.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4).save_pretrained(folder)
    return folder
