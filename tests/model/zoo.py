"""Tiny models of every attention family the back-ends meet, token sequences to score, and a plain way to score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.sequences.tree import PrefixTree

VOCAB, WINDOW = 64, 7  # the window is shorter than any sequence of `random_six`
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED_LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
# The settings of a linear-attention layer.
LINEAR = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2) | {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

# name → model type and settings, of models that path attention serves …
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama without GQA": ("llama", {"num_key_value_heads": 4}),
    "qwen3": ("qwen3", {}),
    "mistral, window": ("mistral", {"sliding_window": WINDOW}),
    "gemma3, mixed windows": ("gemma3_text", MIXED_LAYERS),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),  # its second layer has no positions
    "phi3": ("phi3", {"partial_rotary_factor": 1.0}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "experts_implementation": "eager",  # the grouped kernel takes no float64
        },
    ),
}
# … and of models it must refuse, with a word of the reason
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2": ("gemma2", {"sliding_window": 4096}, "its attention uses attn_logit_softcapping"),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, **MIXED_LAYERS}, "attention with s_aux"),
    "qwen3_next": (
        "qwen3_next",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            **LINEAR,
        },
        "it has no exchangeable attention",
    ),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "it has layers of kind conv"),
}


def build(model_type: str, seed: int = 0, **settings: Any) -> Any:
    """A seeded tiny model in eval mode, float32, its matrices large enough that attention is sharp.

    With the usual small weights attention is near uniform, and a wrong mask costs hardly anything.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(model_type, **{**TINY, **settings})
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for weight in model.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.2)
    return model


def exact_casts(model: nn.Module, patch: pytest.MonkeyPatch) -> None:
    """Lets RMS norms and the softmax of routers compute in the dtype they are given; families cast to float32 there."""

    def forward(self: Any, x: Tensor) -> Tensor:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        weight = 1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    for kind in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
        patch.setattr(kind, "forward", forward)
    patch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: torch.softmax(x, dim))


Sequences = list[tuple[list[int], list[int]]]


def random_six(seed: int, shape: str = "turn", *, prompt: int = 12, w: int = 7, l: int = 5) -> Sequences:
    """The six sequences of a made-up pair, in the order of `SixLogps`; contexts share as that kind of template does.

    Args:
        shape: "turn": the draft stands as a turn, so w and l are prefixes of revisions. "quote": the draft is repeated
            after words that follow the prompt. "paper": a revision begins with other words.
    """
    source = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=source).tolist()

    x, answers, words = tokens(prompt), (tokens(w), tokens(l)), tokens(3)
    before = {"turn": x, "quote": x + words, "paper": words + x}[shape]
    after = tokens(3)
    drafts = [(x, answer) for answer in answers]
    return drafts + [(before + draft + after, answer) for draft in answers for answer in answers]


def forest_of(shape: str = "turn", *, pairs: int = 3) -> list[PrefixTree]:
    """Trees of unlike lengths."""
    sizes = [(12, 7, 5), (20, 3, 9), (9, 1, 2), (15, 6, 6)]
    return [
        PrefixTree.pack(random_six(seed, shape, prompt=x, w=w, l=l)) for seed, (x, w, l) in enumerate(sizes[:pairs])
    ]


def plain_logps(model: nn.Module, trees: Sequence[PrefixTree]) -> Tensor:
    """[B, K] the second implementation: one unpadded forward per sequence, softmax over every position."""
    rows = []
    for tree in trees:
        for context, answer in tree.unpack():
            logits_LV = model(input_ids=torch.tensor([[*context, *answer]]), use_cache=False).logits[0]
            logp_LV = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32)).log_softmax(-1).double()
            scored = [logp_LV[len(context) + i - 1, token] for i, token in enumerate(answer)]
            rows.append(torch.stack(scored).sum())
    return torch.stack(rows).view(len(trees), -1)
