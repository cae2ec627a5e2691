"""Chains of revisions whose answers are scripted: how often a revision differs from its draft is chosen, not hoped for.

A model of 25.5M random weights (hidden 512, 6 layers, 8 heads, 4 key-value heads, vocabulary 8,192), prompts of 256
tokens, answers of 128, an instruction of 16. At each position one token gets 10,000 nats more, so that each revision
differs from its draft by exactly the edits asked for, a third of them deletions, replacements and insertions each,
while every forward costs what it costs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, ANSWER, INSTRUCTION, VOCABULARY, EOS = 256, 128, 16, 8192, 2
ROOM = PROMPT + 3 * ANSWER + INSTRUCTION
REVISIONS = 5

# Edit rates of the five revisions of a row; with several rows, row n takes schedule n, over and over.
CASES: dict[str, Sequence[Sequence[float]]] = {
    "converging": [(0.10, 0.05, 0.02, 0, 0)],
    "mixed": [
        (0.10, 0.05, 0.02, 0, 0),
        (0.05,) * 5,
        (0.20, 0.10, 0.05, 0.02, 0),
        (0.02, 0, 0, 0, 0),
        (0.30, 0.10, 0.05, 0.02, 0.02),
        (0.02,) * 5,
        (0.05, 0.02, 0, 0, 0),
        (0.10,) * 5,
    ],
    **{f"steady {rate:.0%}": [(rate,) * 5] for rate in (0.0, 0.02, 0.05, 0.10, 0.20, 0.30, 0.50)},
    "unrelated": [(1.0,) * 5],
}


@dataclass(frozen=True)
class Chain:
    """Token ids of one prompt's draft and revisions: the context of each, and its answer with the terminator."""

    contexts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]


class Subject(Protocol):
    """Protocol of a model whose decoding is measured, with the chains of answers that it writes.

    Attributes:
        pad_id, stop_ids, max_new_tokens: arguments for the engines that decode with the model.
        folder: folder of the saved model; empty for a model that is not saved.
    """

    model: Any
    pad_id: int
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    folder: str

    def chains(self, case: str, rows: int, seed: int, temperature: float) -> list[Chain]:
        """Returns the chains of `rows` prompts as plain decoding writes them."""
        ...

    def turn_to(self, rows: Sequence[Chain], revision: int) -> None:
        """Prepares the model to write revision number `revision` of these chains."""
        ...


# ---------------------------------------------------------------------- a model that follows a script


class ScriptedLlama(LlamaForCausalLM):
    """A Llama that always writes token `script[p, t]` after token t at position p."""

    script: Tensor

    def forward(self, input_ids: Any = None, position_ids: Any = None, logits_to_keep: Any = 0, **rest: Any) -> Any:
        out = super().forward(input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **rest)
        kept = out.logits.shape[1]
        if position_ids is None:
            past = rest["past_key_values"].get_seq_length() if rest.get("past_key_values") is not None else None
            start = 0 if past is None else past - input_ids.shape[1]
            position_ids = start + torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        said_NK1 = self.script[position_ids[:, -kept:], input_ids[:, -kept:]][..., None]
        out.logits.scatter_add_(-1, said_NK1, out.logits.new_full(said_NK1.shape, 1e4))
        return out


class Scripted:
    """The subject with the scripted model that the top of this file describes.

    Args:
        settings: fields of LlamaConfig that replace those of the 25.5M model.
    """

    pad_id, stop_ids, max_new_tokens, folder = 0, (EOS,), 2 * ANSWER, ""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        shape = {
            "hidden_size": 512,
            "intermediate_size": 1344,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096,
            "pad_token_id": self.pad_id,
            "bos_token_id": 1,
            "eos_token_id": EOS,
        }
        self.model = ScriptedLlama(LlamaConfig(**(shape | settings))).eval()

    def chains(self, case: str, rows: int, seed: int, temperature: float) -> list[Chain]:
        """Makes the chains; each has a part of the vocabulary to itself, so that one script serves a whole batch."""
        assert temperature == 0  # a script leaves nothing to chance
        rng, share, schedules = random.Random(seed), (VOCABULARY - 3) // rows, CASES[case]
        made = []
        for row in range(rows):
            own = range(3 + row * share, 3 + (row + 1) * share)
            prompt, draft, instruction = ([rng.choice(own) for _ in range(n)] for n in (PROMPT, ANSWER, INSTRUCTION))
            answers, contexts = [draft], [prompt]
            for rate in schedules[row % len(schedules)]:
                contexts.append(prompt + answers[-1] + instruction)
                answers.append(edited(answers[-1], rate, own, rng))
            made.append(Chain(contexts, [[*answer, EOS] for answer in answers]))
        return made

    def turn_to(self, rows: Sequence[Chain], revision: int) -> None:
        """Sets the script so that the model writes revision number `revision` of each chain."""
        table = torch.full((ROOM, VOCABULARY), EOS)
        for row in rows:
            context, answer = row.contexts[revision], row.answers[revision]
            for at, (token, following) in enumerate(pairwise([*context[-1:], *answer]), len(context) - 1):
                table[at, token] = following
        self.model.script = table.to(self.model.device)


def edited(draft: Sequence[int], rate: float, vocabulary: Sequence[int], rng: random.Random) -> list[int]:
    """Returns an edited copy of a draft.

    Each token is left out, replaced, or preceded by another one, each with probability `rate` / 3; at rate 1 every
    token is drawn anew.
    """
    if rate == 1:
        return [rng.choice(vocabulary) for _ in draft]
    out: list[int] = []
    for token in draft:
        kind = rng.random()
        if kind < rate / 3:
            continue
        if kind < rate:
            out.append(rng.choice(vocabulary))
        if kind >= 2 * rate / 3:
            out.append(token)
    return out
