"""The columns task: two numbers added column by column without carrying, so that a draft can be right in one pass.

Each digit of the answer depends on its own column alone: 27 + 58 is 075. A draft contains nothing that helps with
another digit, so revising has little to add and can only break answers. Everything else is as in the carry task: the
format, the base that adds 1 to a digit by mistake with probability 0.25, pairs of its own drafts.

    in distribution        operands uniform
    shifted                columns that add up to 9 in 70 % of the places, as out of distribution in carry.py

Axes: N sums, D digits of an operand, A = D + 1 digits of an answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srpo.tasks.carry import operands


def columns(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Returns the right answers [N, A]: a 0, then the last digit of the sum of each column.

    Example:
        >>> columns(torch.tensor([[2, 7]]), torch.tensor([[5, 8]])).tolist()
        [[0, 7, 5]]
    """
    return F.pad((a_ND + b_ND) % 10, (1, 0))


def column_sums(n: int, split: str, *, digits: int = 5, seed: int = 0) -> list[dict[str, str]]:
    """Draws `n` rows of `prompt` and `gold` (right answer); equal seeds give equal rows and `carry.sums`' prompts."""
    a_ND, b_ND = operands(n, digits, split, torch.Generator().manual_seed(seed))
    digits_of = [["".join(map(str, row)) for row in t.tolist()] for t in (a_ND, b_ND, columns(a_ND, b_ND))]
    return [{"prompt": f"{a}+{b}=", "gold": gold} for a, b, gold in zip(*digits_of, strict=True)]
