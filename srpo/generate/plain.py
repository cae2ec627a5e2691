"""Completions in this process by transformers' own `generate`, one token at a time; speculative.py is the faster way.

Axes: N rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from srpo.errors import ConfigError
from srpo.generate.engine import Completion, Decoding, Keep
from srpo.generate.folded_adapter import FoldedAdapter
from srpo.generate.sampling import choose, uniforms
from srpo.model.packed.pictures import flat_inputs
from srpo.model.unwrap import core
from srpo.model.weights.load import model_context
from srpo.progress import remark_detail

# Options of `generate` that change the distribution or cut answers short. A model's own defaults may set them; draws
# would no longer come from the distribution of training.
# fmt: off
_SHAPING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "min_length", "min_new_tokens", "guidance_scale", "watermarking_config",
    "prompt_lookup_num_tokens", "stop_strings", "max_time",
)
# fmt: on


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """Inside this `with` block, hidden states are made contiguous before the model's output head.

    With `logits_to_keep` a model slices its hidden states. For a strided input and a frozen weight, such as the base
    under an adapter, torch multiplies a batch of copies of the weight instead of one matrix.
    """
    head = core(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _head, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


class HFEngine:
    """An engine that generates with a transformers model in this process, on the model's device.

    Args:
        model: A causal language model.
        pad_id: Token id that fills shorter rows at their beginning; no token attends to it.
        batch_size: Rows generated together.

    Raises:
        ConfigError: A batch size below 1.
    """

    same_batch_same_bits = True
    pictured = True  # contexts may hold pictures

    def __init__(self, model: nn.Module, *, pad_id: int, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ConfigError(f"{batch_size}", where="batch_size", expected="at least 1")
        self.model: Any = model
        self.pad_id, self.batch_size = pad_id, batch_size
        self.folded = FoldedAdapter(model)

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of context and answer together; None if the model has no limit."""
        return model_context(self.model)

    def complete(
        self,
        contexts: Sequence[Sequence[int]],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        keep: Keep | None = None,
    ) -> list[Completion]:
        """Returns one completion per context, in order; equal (seed, key) draw equal random numbers.

        The arguments are those of `Engine.complete`; guesses have no effect.
        """
        done: dict[int, Completion] = {}
        by_length = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))  # less padding
        for at in range(0, len(by_length), self.batch_size):
            chosen = by_length[at : at + self.batch_size]
            noise = None
            if decoding.temperature > 0:
                noise = torch.stack([uniforms(decoding.seed, keys[i], decoding.max_new_tokens) for i in chosen])
            with self.folded.active(contexts[0]):
                rows = self._batch([contexts[i] for i in chosen], noise, decoding)
            done.update(zip(chosen, rows, strict=True))
            if keep is not None:
                for i in chosen:
                    keep(i, done[i])
        return [done[i] for i in range(len(contexts))]

    @torch.no_grad()
    def _batch(
        self,
        contexts: list[Sequence[int]],
        noise_NT: Tensor | None,
        decoding: Decoding,
    ) -> list[Completion]:
        began = time.perf_counter()
        width = max(map(len, contexts))
        device = next(self.model.parameters()).device
        ids_NL = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in contexts], device=device)
        mask_NL = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in contexts], device=device)
        sampler: list[LogitsProcessor] = [_Counting(width, decoding.max_new_tokens)]
        if noise_NT is not None:
            sampler.append(_InverseSampling(noise_NT.to(device), decoding.temperature, width))
        with contiguous_head(self.model):
            out_NL = self.model.generate(
                input_ids=ids_NL,
                attention_mask=mask_NL,
                logits_processor=LogitsProcessorList(sampler),
                **flat_inputs(self.model, contexts, ids_NL),
                **dict.fromkeys(_SHAPING),
                do_sample=False,
                num_beams=1,
                max_new_tokens=decoding.max_new_tokens,
                eos_token_id=list(decoding.stop_ids),
                pad_token_id=self.pad_id,
            )
        seconds = (time.perf_counter() - began) / len(contexts)
        return [_cut(row, decoding.stop_ids, seconds) for row in out_NL[:, width:].tolist()]


class _Counting(LogitsProcessor):
    """Shows the number of generated tokens in the progress and leaves the scores as they are."""

    def __init__(self, prompt_width: int, most: int) -> None:
        self.prompt_width, self.most = prompt_width, most

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        remark_detail(f"{input_ids.shape[1] - self.prompt_width} of at most {self.most} tokens")
        return scores


class _InverseSampling(LogitsProcessor):
    """Masks all tokens but the one that the row's uniform random number selects, so that greedy decoding samples.

    `generate`'s own sampling would draw from a global generator, in an order that depends on the batch.
    """

    def __init__(self, noise_NT: Tensor, temperature: float, prompt_width: int) -> None:
        self.noise_NT, self.temperature, self.prompt_width = noise_NT, temperature, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        chosen_N = choose(scores, self.noise_NT[:, step], self.temperature)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen_N[:, None], 0.0)


def _cut(ids: list[int], stop_ids: tuple[int, ...], seconds: float) -> Completion:
    """Returns a completion of the ids up to the first stop id, unfinished if there is no stop id."""
    for i, token in enumerate(ids):
        if token in stop_ids:
            return Completion(tuple(ids[: i + 1]), True, seconds)
    return Completion(tuple(ids), False, seconds)
