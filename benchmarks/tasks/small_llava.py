"""A LLaVA of a few hundred thousand weights and its processor, for tasks whose base model is trained from scratch."""

from __future__ import annotations

from typing import Any

import torch

from srpo.tasks.pretraining import character_tokenizer

# The user's turns as they are, the assistant's with <eos> behind them.
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def small_processor(alphabet: str, *, side: int, patch: int) -> Any:
    """Returns a processor with a token for each character of the alphabet and an image token for each patch.

    Args:
        side: pixels along a side of a picture, a multiple of `patch`.
        patch: pixels along a side of a patch.
    """
    from transformers import LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = character_tokenizer(alphabet)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = CHAT
    size = {"height": side, "width": side}
    how = {"patch_size": patch, "vision_feature_select_strategy": "full", "chat_template": CHAT}
    return LlavaProcessor(SiglipImageProcessorPil(size=size), tokenizer, **how)


def small_llava(
    tokenizer: Any,
    *,
    hidden: int,
    layers: int,
    heads: int,
    window: int,
    tower: int,
    tower_layers: int,
    side: int,
    patch: int,
    seed: int,
) -> Any:
    """Returns a LLaVA with random weights: a SigLIP tower and a Llama.

    Args:
        hidden, layers, heads: shape of the Llama; `window` is its context in tokens.
        tower, tower_layers: hidden size and layers of the tower.
        side, patch: pixels along a side of a picture and of a patch.
        seed: seed of the weights.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": window,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": tower,
        "intermediate_size": 3 * tower,
        "num_hidden_layers": tower_layers,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
        "vision_use_head": False,
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    whole = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_seq_length": (side // patch) ** 2,
        "image_token_id": image,
        "image_token_index": image,
    }
    torch.manual_seed(seed)
    return AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("llava", text_config=text, vision_config=vision, **whole)
    )
