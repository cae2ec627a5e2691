"""The carry task: a sum of two numbers, its answer written most significant digit first.

A draft must write a digit before it has worked out the carries to the right of it; a revision can read them off the
draft. So one pass is hard, a revision is easier, and the judge is exact.

    in distribution        operands uniform
    out of distribution    long carry chains: a_i + b_i = 9 in 70 % of the columns

The base model is trained from scratch, in both roles, on answers that forget or invent each carry with probability
0.25: it knows the task and makes mistakes. Half of its training revisions copy the draft and half answer afresh, so it
knows the format of a revision and has not learnt to improve a draft. Preference pairs are two of its own samples,
ordered by the number of right digits.

Axes: N sums, D digits of an operand, A = D + 1 digits of an answer, L tokens of a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srpo.errors import ConfigError
from srpo.judge.single import Judge, per_character
from srpo.sequences.render import RevisionTemplate
from srpo.tasks.pretraining import Outcomes, character_tokenizer, fit, small_llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = RevisionTemplate("carry", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}?")
SPLITS = ("in", "out")
ALPHABET = "0123456789+=?"
Answers = Callable[[Tensor, Tensor], Tensor]  # digits of two operands, [N, D] each → digits of the answer, [N, A]
NINES = 0.7  # share of columns that pass a carry on, out of distribution


@dataclass(frozen=True)
class BaseConfig:
    """Settings of the carry task's base model and of its training.

    Attributes:
        digits: digits of each operand.
        hidden, layers, heads: shape of the Llama.
        steps, batch, learning_rate: optimiser steps, sums per step and learning rate of its training.
        mistakes: probability that a digit of a training answer forgets or invents its carry.
        seed: seed of weights and data.
        threads: CPU threads of its training; another number rounds differently and gives another base.
    """

    digits: int = 5
    hidden: int = 96
    layers: int = 3
    heads: int = 3
    steps: int = 3200
    batch: int = 64
    learning_rate: float = 2e-3
    mistakes: float = 0.25
    seed: int = 0
    threads: int = 2


# ---------------------------------------------------------------------- sums


def operands(n: int, digits: int, split: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws the digits of the two operands of N = `n` sums; returns two tensors [N, D digits].

    Args:
        split: "in" draws uniform digits, "out" long chains of carries.

    Raises:
        ConfigError: `split` is neither "in" nor "out".
    """
    if split not in SPLITS:
        raise ConfigError(f"no split {split!r}", expected="in or out")
    a_ND, b_ND = (torch.randint(10, (n, digits), generator=generator) for _ in "ab")
    if split == "out":
        passes_on_ND = torch.rand(n, digits, generator=generator) < NINES
        b_ND = torch.where(passes_on_ND, 9 - a_ND, b_ND)
        starts_N = torch.rand(n, generator=generator) < NINES  # a chain of carries begins in the last column
        for operand_ND in (a_ND, b_ND):
            high_N = torch.randint(5, 10, (n,), generator=generator)
            operand_ND[:, -1] = torch.where(starts_N, high_N, operand_ND[:, -1])
    return a_ND, b_ND


def answers(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Returns the digits [N, D + 1] of the sums of N operands a and b, given by their digits [N, D]."""
    answer_NA = torch.zeros(len(a_ND), a_ND.shape[1] + 1, dtype=torch.long)
    carry_N = torch.zeros(len(a_ND), dtype=torch.long)
    for column in range(a_ND.shape[1] - 1, -1, -1):
        total_N = a_ND[:, column] + b_ND[:, column] + carry_N
        answer_NA[:, column + 1] = total_N % 10
        carry_N = total_N // 10
    answer_NA[:, 0] = carry_N
    return answer_NA


def with_mistakes(answer_NA: Tensor, a_ND: Tensor, b_ND: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Returns a copy of right answers [N, D + 1] with wrong carries in some digits.

    Args:
        answer_NA, a_ND, b_ND: digits of the answers and of the operands.
        rate: probability that a digit forgets or invents its carry; the last digit has none.
    """
    no_carry_NA = F.pad((a_ND + b_ND) % 10, (1, 0))
    carry_in_NA = (answer_NA - no_carry_NA) % 10
    wrong_NA = torch.rand(answer_NA.shape, generator=generator) < rate
    wrong_NA[:, -1] = False
    return torch.where(wrong_NA, (no_carry_NA + 1 - carry_in_NA) % 10, answer_NA)


def sums(n: int, split: str, *, digits: int = 5, seed: int = 0) -> list[dict[str, str]]:
    """Draws `n` sums; returns rows with `prompt` and `gold` (the right answer). Equal seeds give equal rows.

    Example:
        >>> sums(1, "in", digits=3, seed=1)[0]["prompt"][3]
        '+'
    """
    a_ND, b_ND = operands(n, digits, split, torch.Generator().manual_seed(seed))
    golds = answers(a_ND, b_ND).tolist()
    text = ["".join(map(str, row)) for row in torch.cat([a_ND, b_ND], 1).tolist()]
    return [
        {"prompt": f"{both[:digits]}+{both[digits:]}=", "gold": "".join(map(str, gold))}
        for both, gold in zip(text, golds, strict=True)
    ]


# ---------------------------------------------------------------------- the base model


def carry_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the carry task's tokenizer: one token per character of a sum."""
    return character_tokenizer(ALPHABET)


def untrained_base(config: BaseConfig) -> LlamaForCausalLM:
    """Returns the untrained base model: a Llama of the configured shape with random weights."""
    shape = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads}
    return small_llama(carry_tokenizer(), window=64, seed=config.seed, **shape)


def train_base(config: BaseConfig, right: Answers | None = None) -> Iterator[tuple[int, float, LlamaForCausalLM]]:
    """Trains the base model from scratch; yields (step, loss, model) after each step.

    Args:
        right: computes the right answers to two operands, for another task than sums; None computes sums.
    """
    tokenizer, generator = carry_tokenizer(), torch.Generator().manual_seed(config.seed)
    batches = (_both_roles(config, tokenizer, generator, right or answers) for _ in range(config.steps))
    yield from fit(
        untrained_base(config),
        batches,
        steps=config.steps,
        learning_rate=config.learning_rate,
        mistakes=config.mistakes,
    )


def _both_roles(
    config: BaseConfig, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator, right: Answers
) -> Outcomes:
    """Draws rows `<bos>a+b=draft?revision` with the next token of each position, without and with a mistake.

    One row teaches both roles: the token to predict after the draft's last digit is the end token, although "?" follows
    in the row. The draft and half of the revisions are drawn with mistakes, but each of their digits is predicted with
    both outcomes, right and mistaken, which `fit` weighs. The other revisions copy the draft and have one outcome.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plus, equals, revise = (int(tokenizer.vocab[mark]) for mark in "+=?")
    n = config.batch
    a_ND, b_ND = operands(n, config.digits, "in", generator)
    right_NA = right(a_ND, b_ND)
    mistaken_NA = with_mistakes(right_NA, a_ND, b_ND, 1.0, generator)
    draft_NA, fresh_NA = (with_mistakes(right_NA, a_ND, b_ND, config.mistakes, generator) for _ in range(2))
    copies_N1 = torch.rand(n, 1, generator=generator) < 0.5
    column = [torch.full((n, 1), token) for token in (bos, plus, equals, revise, eos)]
    prompt_NL = torch.cat([column[0], a_ND, column[1], b_ND, column[2]], 1)
    ids_NL = torch.cat([prompt_NL, draft_NA, column[3], torch.where(copies_N1, draft_NA, fresh_NA)], 1)
    unscored_NL = torch.full((n, prompt_NL.shape[1] - 1), -100)
    right_NL, mistaken_NL = (
        torch.cat([unscored_NL, digit_NA, column[4], torch.where(copies_N1, draft_NA, digit_NA), column[4]], 1)
        for digit_NA in (right_NA, mistaken_NA)
    )
    return Outcomes(ids_NL, right_NL, mistaken_NL)


# ---------------------------------------------------------------------- pairs


def label(
    rows: list[dict[str, str]], first: list[str], second: list[str], judge: Judge = per_character
) -> list[dict[str, str]]:
    """Makes preference rows from two answers to each prompt.

    The answer with the higher score is chosen; prompts with equal scores or an empty answer are left out.

    Args:
        rows: prompts with their gold answers.
        first, second: two answers to each prompt.
        judge: scores an answer in [0, 1].
    """
    pairs = []
    for row, one, other in zip(rows, first, second, strict=True):
        score, rival = (judge(row["prompt"], answer, row["gold"]) for answer in (one, other))
        if score != rival and one and other:
            chosen, rejected = (one, other) if score > rival else (other, one)
            pairs.append({**row, "chosen": chosen, "rejected": rejected})
    return pairs


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows to `path`, one JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
