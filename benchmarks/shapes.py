"""Pairs of given lengths and the model that speed and memory are measured on.

Lengths are (prompt, chosen, rejected) in tokens. Token ids are random; the six sequences of a pair share as much of
their beginnings as each template makes them share on real text:

    turn         the draft is a turn of its own, the instruction after it: everything before is shared
    quote        the draft is quoted in the user turn, after the prompt: the prompt is shared, the draft repeated
    paper-tldr   the first sentence of the prompt differs: nothing but its first tokens is shared
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srpo.sequences.tree import PrefixTree

TEMPLATES = ("turn", "quote", "paper-tldr")
TLDR_SHARED = 13  # "Below is a reddit POST and the corresponding SUBREDDIT and TITLE" begins both sentences
_PIECE = re.compile(r"\s?\w{1,6}|\S")

Lengths = tuple[int, int, int]
Six = list[tuple[list[int], list[int]]]


def six_of(lengths: Lengths, template: str, *, instruction: int, vocabulary: int, seed: int = 0) -> Six:
    """Returns the six (context ids, answer ids) of one made-up pair, in the order of `SixLogps`.

    Args:
        lengths: tokens of prompt, chosen and rejected answer.
        template: "turn", "quote" or "paper-tldr", which decides how much the six share; see the top of this file.
        instruction: tokens of the instruction to revise.
        vocabulary: size of the vocabulary.
    """
    source = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [source.randrange(3, vocabulary) for _ in range(n)]

    x, *answers = map(tokens, lengths)
    said = tokens(instruction)
    shared = {"turn": len(x), "quote": len(x), "paper-tldr": TLDR_SHARED}[template]
    before = x[:shared] + (said if template == "quote" else tokens(len(x) - shared))
    after = {"turn": said, "quote": [], "paper-tldr": tokens(4)}[template]
    drafts = [(x, answer) for answer in answers]
    return drafts + [(before + draft + after, answer) for draft in answers for answer in answers]


def trees_of(lengths: Sequence[Lengths], template: str, *, instruction: int, vocabulary: int) -> list[PrefixTree]:
    """Returns a prefix tree for each made-up pair; the arguments are those of `six_of`."""
    return [
        PrefixTree.pack(six_of(each, template, instruction=instruction, vocabulary=vocabulary, seed=seed))
        for seed, each in enumerate(lengths)
    ]


def lengths_in(file: str, rows: int, seed: int = 0) -> list[Lengths]:
    """Returns the lengths of `rows` random pairs of a JSONL file; a piece of at most six letters counts as a token."""

    def pieces(text: Any) -> int:
        words = text if isinstance(text, str) else " ".join(message["content"] for message in text)
        return max(1, len(_PIECE.findall(words)))

    lines = Path(file).read_text("utf-8").splitlines()
    chosen = random.Random(seed).sample(lines, rows)
    found = [json.loads(line) for line in chosen]
    return [(pieces(row["prompt"]), pieces(row["chosen"]), pieces(row["rejected"])) for row in found]


def llama(*, vocabulary: int = 8192, hidden: int = 512, layers: int = 6, lora: bool = False, **settings: Any) -> Any:
    """Returns a seeded random Llama in float32, by default with 25.5M weights.

    Args:
        lora: adds LoRA of rank 16 to every linear layer.
        settings: further fields of `LlamaConfig`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "intermediate_size": int(hidden * 8 / 3) // 64 * 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
    }
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, **(shape | settings))
    model: nn.Module = LlamaForCausalLM(config).train()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return model


def real_trees(model: str, file: str, rows: int | None = None, *, seed: int = 0) -> list[PrefixTree]:
    """Returns the prefix trees of a file's pairs, with a model's tokenizer and revision template.

    `rows` is a number of pairs drawn at random; None takes all, in their order.
    """
    from srpo.data.read import read_pairs
    from srpo.model.weights.load import load_tokenizer
    from srpo.sequences.render import Renderer

    pairs = list(read_pairs(file))
    if rows is not None:
        pairs = random.Random(seed).sample(pairs, rows)
    return [PrefixTree.pack(six) for six in Renderer(load_tokenizer(model)).sixes(pairs)]


def loaded(model: str, dtype: str, *, lora: bool) -> Any:
    """Loads a model from a folder; with `lora`, adds LoRA of rank 16 in float32 to every linear layer."""
    from srpo.model.weights.load import load_model

    found = load_model(model, dtype=dtype).train()
    if lora:
        from peft import LoraConfig, get_peft_model

        found = get_peft_model(found, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return found


def padded_logps(model: nn.Module, trees: Sequence[PrefixTree]) -> torch.Tensor:
    """Returns [B, 6] log-probs of B pairs, computed without sharing: six padded rows a pair.

    The head is applied to scored positions alone.
    """
    rows = [sequence for tree in trees for sequence in tree.unpack()]
    length = max(len(context) + len(answer) for context, answer in rows)
    ids_NL, mask_NL = torch.zeros(2, len(rows), length, dtype=torch.long)
    for n, (context, answer) in enumerate(rows):
        ids_NL[n, : len(context) + len(answer)] = torch.tensor([*context, *answer])
        mask_NL[n, : len(context) + len(answer)] = 1
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_NLD = inner.model(input_ids=ids_NL, attention_mask=mask_NL, use_cache=False).last_hidden_state
    logps = []
    for hidden_LD, (context, answer) in zip(hidden_NLD, rows, strict=True):
        logits_TV = inner.lm_head(hidden_LD[len(context) - 1 : len(context) + len(answer) - 1])
        logps.append(-nn.functional.cross_entropy(logits_TV, torch.tensor(answer), reduction="sum"))
    return torch.stack(logps).view(len(trees), 6)
