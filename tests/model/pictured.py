"""Tiny vision-language models, pictures of noise, and a plain way to score sequences that contain them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srpo.sequences.picture_inputs import PicturedIds, PictureInputs
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import TINY, VOCAB, random_six

IMAGE, OPEN, CLOSE = 63, 62, 61  # ids that `random_six` may draw too; `pictured_six` replaces them
PATCH, SIDE = 2, 8  # pixels
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def rope(section: list[int]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4}}


# name → settings of the text model, of the vision tower, and of the whole
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (rope([1, 1, 2]), {"window_size": 2 * PATCH}, {}),
    "qwen3_vl": (rope([2, 1, 1]), {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}, {}),
    "smolvlm": ({"model_type": "llama"}, {}, {"scale_factor": 2}),
    "idefics3": ({"model_type": "llama"}, {}, {"scale_factor": 2}),
    "llava": (
        {"model_type": "llama"},
        {"model_type": "siglip_vision_model"},
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    "llava_onevision": (
        {"model_type": "qwen2"},
        {"model_type": "siglip_vision_model", "vision_use_head": False},
        {"vision_feature_layer": -1, "image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]},
    ),
    "gemma3": (
        {"model_type": "gemma3_text", "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "siglip_vision_model", "vision_use_head": False},
        {"mm_tokens_per_image": 4, "boi_token_index": 62, "eoi_token_index": 61},
    ),
}


# kind → the model's input that marks image tokens
MARKS = {"qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}


def build(kind: str, seed: int = 0, *, vocabulary: int = VOCAB, image: int = IMAGE) -> Any:
    """A seeded tiny vision-language model in eval mode, float32, its matrices large enough that attention is sharp.

    Args:
        vocabulary: number of token ids.
        image: id of the image token.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    text, vision, whole = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = {"image_token_id": image, "image_token_index": image, "video_token_id": 60, "video_token_index": 60}
        text = {**TINY, "vocab_size": vocabulary, **text}
        config = AutoConfig.for_model(kind, text_config=text, vision_config={**VISION, **vision}, **tokens, **whole)
        model = AutoModelForImageTextToText.from_config(config).float().eval()
        for weight in model.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.2)
    return model


def picture(kind: str, seed: int, *, high: int = 4, wide: int = 4) -> PictureInputs:
    """A picture of noise of `high` by `wide` patches, as the model of that kind takes it."""
    source = torch.Generator().manual_seed(1000 + seed)
    key = f"{kind} {seed} {high} {wide}".encode()
    if kind == "gemma3":  # every picture is scaled to one size
        inputs = {"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=source)}
        return PictureInputs(key, IMAGE, 4, lambda: inputs)
    if kind.startswith("qwen"):
        pixels = torch.randn(high * wide, 3 * 2 * PATCH**2, generator=source)
        inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, high, wide]])}
        return PictureInputs(key, IMAGE, high * wide // 4, lambda: inputs)
    if kind in ("smolvlm", "idefics3"):  # tiles; `wide` patches beyond one tile's make another tile
        tiles = -(-wide * PATCH // SIDE)
        pixels = torch.randn(1, tiles, 3, SIDE, SIDE, generator=source)
        inputs = {"pixel_values": pixels, "pixel_attention_mask": torch.ones(1, tiles, SIDE, SIDE, dtype=torch.long)}
        return PictureInputs(key, IMAGE, 4 * tiles, lambda: inputs)
    if kind == "llava_onevision":
        across = -(-wide * PATCH // SIDE)
        pixels = torch.randn(1, 1 + across, 3, SIDE, SIDE, generator=source)
        sizes = torch.tensor([[SIDE, across * SIDE]])
        patches, inputs = SIDE // PATCH, {"pixel_values": pixels, "image_sizes": sizes}
        return PictureInputs(key, IMAGE, patches**2 + patches * (across * patches + 1), lambda: inputs)
    inputs = {"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=source)}
    return PictureInputs(key, IMAGE, (SIDE // PATCH) ** 2, lambda: inputs)


def pictured_tree(pictures: Sequence[PictureInputs], seed: int, shape: str = "turn", **sizes: int) -> PrefixTree:
    """A tree of six sequences as in `random_six`, whose prompt begins with pictures and a token after each."""
    taken = {IMAGE: 3, OPEN: 4, CLOSE: 5, 60: 6}
    six = [([taken.get(t, t) for t in c], [taken.get(t, t) for t in a]) for c, a in random_six(seed, shape, **sizes)]
    shown = [token for each in pictures for token in (OPEN, *[IMAGE] * each.count, CLOSE)]
    before = 3 if shape == "paper" else 0  # revisions begin with other words, then the picture
    contexts = [
        [*context[: before * (k > 1)], *shown, *context[before * (k > 1) :]] for k, (context, _) in enumerate(six)
    ]
    return PrefixTree.pack(
        [(PicturedIds(c, pictures) if pictures else c, answer) for c, (_, answer) in zip(contexts, six, strict=True)]
    )


def pictured_forest(kind: str) -> list[PrefixTree]:
    """One picture, two pictures of unlike sizes, no picture, and another pair of the first prompt; all three shapes."""
    one, wide = picture(kind, 1), picture(kind, 2, wide=8)
    alone = pictured_tree([one], 0, "turn")
    again = [(context, [*answer[:-1], 7 + k % 2]) for k, (context, answer) in enumerate(alone.unpack())]
    # A prompt of two pictures would be cut otherwise by the processor of this model, and is not rendered.
    both = [wide] if kind == "llava_onevision" else [wide, one]
    return [
        alone,
        pictured_tree(both, 1, "quote", prompt=5, w=3, l=9),
        pictured_tree([], 2, "turn", prompt=4, w=2, l=1),
        pictured_tree([wide], 3, "paper", prompt=3, w=2, l=2),
        PrefixTree.pack(again),
    ]


def plain_logps(model: nn.Module, trees: Sequence[PrefixTree]) -> Tensor:
    """[B, K] the second implementation: one unpadded forward per sequence, its pictures as the model's own inputs."""
    rows = []
    tiled = model.config.model_type in ("smolvlm", "idefics3")
    for tree in trees:
        for context, answer in tree.unpack():
            ids = torch.tensor([[*context, *answer]])
            inputs: dict[str, Tensor] = {}
            for name in tree.pictures[0].tensors if tree.pictures else ():
                inputs[name] = torch.cat([each.tensors[name] for each in tree.pictures], int(tiled))
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
                if marks := MARKS.get(model.config.model_type):
                    inputs[marks] = (ids == tree.pictures[0].token).int()
            logits_LV = model(input_ids=ids, use_cache=False, **inputs).logits[0]
            logp_LV = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32)).log_softmax(-1).double()
            scored = [logp_LV[len(context) + i - 1, token] for i, token in enumerate(answer)]
            rows.append(torch.stack(scored).sum())
    return torch.stack(rows).view(len(trees), -1)
