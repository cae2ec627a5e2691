"""Training of a base model from scratch that knows its task and makes mistakes at a known rate.

Axes: N rows, L tokens of a row, R = N · L, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class Outcomes(NamedTuple):
    """A batch of N token rows, padded to L tokens, with two possible next tokens for each position: right and mistaken.

    Attributes:
        ids_NL: token ids of the rows, padded on the right.
        right_NL: next token without a mistake; −100 is not scored.
        mistaken_NL: next token with a mistake; equal to `right_NL` where no mistake is possible.
        inputs: further inputs of the model by name, such as pixels.
    """

    ids_NL: Tensor
    right_NL: Tensor
    mistaken_NL: Tensor
    inputs: Mapping[str, Tensor] = {}


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per character of the alphabet."""
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


def small_llama(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, heads: int, window: int, seed: int
) -> LlamaForCausalLM:
    """Returns a small Llama with random weights.

    Args:
        hidden, layers, heads: hidden size, number of layers and of attention heads.
        window: length of its context in tokens.
        seed: seed of the weights.
    """
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
    model: LlamaForCausalLM, batches: Iterable[Outcomes], *, steps: int, learning_rate: float, mistakes: float
) -> Iterator[tuple[int, float, LlamaForCausalLM]]:
    """Trains a model on one batch of `Outcomes` per step; yields (step, loss, model) after each step.

    The loss weighs the two outcomes of a token by their probabilities. Its expectation equals that of drawing one
    outcome, without the noise of drawing.

    Args:
        batches: at least one batch for each step.
        mistakes: probability of the mistaken outcome.
    """
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        logits_RV = model(input_ids=batch.ids_NL, use_cache=False, **batch.inputs).logits.flatten(0, 1)
        loss = (1 - mistakes) * _nll(logits_RV, batch.right_NL) + mistakes * _nll(logits_RV, batch.mistaken_NL)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step, loss.item(), model


def _nll(logits_RV: Tensor, labels_NL: Tensor) -> Tensor:
    return F.cross_entropy(logits_RV, labels_NL.flatten(), ignore_index=-100)
