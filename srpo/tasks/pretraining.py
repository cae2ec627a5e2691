"""A base model from scratch that knows its task and makes mistakes at a known rate.

Axes: N rows, L tokens of a row, R = N · L, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Outcomes(NamedTuple):
    """A batch of rows and what each of their tokens is to predict.

    Attributes:
        ids_NL: the rows, padded on the right.
        right_NL: the next token if no mistake is made; −100 is not scored.
        mistaken_NL: the next token if one is made, equal where none can be.
    """

    ids_NL: Tensor
    right_NL: Tensor
    mistaken_NL: Tensor


def character_tokenizer(alphabet: str) -> Any:
    """A tokenizer with one token per character of that alphabet."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {character: i for i, character in enumerate(alphabet)}
    vocab |= {token: len(vocab) + i for i, token in enumerate(("<pad>", "<bos>", "<eos>"))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def small_llama(tokenizer: Any, *, hidden: int, layers: int, heads: int, window: int, seed: int) -> Any:
    """A Llama of that shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=window,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def fit(
    model: Any, batches: Iterable[Outcomes], *, steps: int, learning_rate: float, mistakes: float
) -> Iterator[tuple[int, float, Any]]:
    """Trains on a batch per step; yields (step, loss, model) after each, so that the caller can show it.

    The loss weighs the two outcomes of a token, which is the same in expectation as drawing one and spares the model
    the noise of drawing.

    Args:
        batches: at least one for each step.
        mistakes: probability of the mistaken outcome.
    """
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        logits_RV = model(input_ids=batch.ids_NL, use_cache=False).logits.flatten(0, 1)
        loss = (1 - mistakes) * _nll(logits_RV, batch.right_NL) + mistakes * _nll(logits_RV, batch.mistaken_NL)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step, loss.item(), model


def _nll(logits_RV: Tensor, labels_NL: Tensor) -> Tensor:
    return F.cross_entropy(logits_RV, labels_NL.flatten(), ignore_index=-100)
