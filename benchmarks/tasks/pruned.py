"""A pretrained model with the part of its vocabulary that a task's texts use.

Of Gemma 3 270M, with 262,144 words, 170 of 270 million weights are embeddings. A task in a few hundred words needs few
of them: its logits are those of the whole model over the words that are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

SPECIAL = ("pad_token", "bos_token", "eos_token", "unk_token")
CHECKED = 200  # texts, evenly spaced, whose tokens are compared
NEAR = 1e-3  # largest difference of logits


@torch.no_grad()
def prune_vocabulary(model: str, folder: Path, texts: Sequence[str]) -> None:
    """Saves the model and its tokenizer in `folder` with the words of `texts`, in float32; the texts keep their tokens.

    Merges build a word from parts of it. So the words in `texts`, their parts and the merges among these are kept, and
    the bytes.

    Args:
        model: folder of a causal model with a tokenizer of merges and bytes, as Gemma has.

    Raises:
        ValueError: tokens or logits are not those of the whole model.
    """
    whole, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        AutoTokenizer.from_pretrained(model),
    )
    named = {name: token for name in SPECIAL if (token := getattr(tokenizer, name))}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    used = {word for text in set(texts) for word in tokenizer.tokenize(text)}
    parts = {word[i:j] for word in used for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    kept = [w for w in vocab if w in parts or w in named.values() or (w.startswith("<0x") and w.endswith(">"))]
    place, ids = {word: at for at, word in enumerate(kept)}, [vocab[word] for word in kept]
    state["model"]["vocab"] = place
    state["model"]["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= place.keys()]
    state["added_tokens"] = [
        {**each, "id": place[each["content"]]} for each in state["added_tokens"] if each["content"] in named.values()
    ]
    for each in (state["post_processor"] or {}).get("special_tokens", {}).values():
        each["ids"] = [place[token] for token in each["tokens"]]
    small = type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **named)
    checked = texts[:: max(1, len(texts) // CHECKED)]
    old, new = (each(list(checked)).input_ids for each in (tokenizer, small))
    if old != [[ids[token] for token in row] for row in new]:
        raise ValueError("the pruned tokenizer splits the texts in another way")
    before = [whole(torch.tensor(rows[:1])).logits[..., ids] for rows in (old, old[-1:])]
    cut(whole, ids, {name: place[token] for name, token in named.items()})
    after = [whole(torch.tensor(rows[:1])).logits for rows in (new, new[-1:])]
    if (worst := max((a - b).abs().max().item() for a, b in zip(before, after, strict=True))) > NEAR:
        raise ValueError(f"logits of the pruned model differ by {worst:.2g}")
    for each in (whole, small):
        each.save_pretrained(folder)


def cut(model: Any, ids: Sequence[int], special: dict[str, int]) -> None:
    """Leaves the rows `ids` of the model's tied embeddings; `special` holds the new ids of its special tokens."""
    embedding = model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.detach()[list(ids)].clone())
    embedding.num_embeddings, embedding.padding_idx = len(ids), None
    model.lm_head.weight, model.lm_head.out_features = embedding.weight, len(ids)
    model.config.vocab_size = len(ids)
    for name, at in special.items():
        for config in (model.config, model.generation_config):
            if getattr(config, f"{name}_id", None) is not None:
                setattr(config, f"{name}_id", at)
