"""How many revisions are best: chosen on one half of the prompts, told on the other half.

The best of several averages is partly luck, and told on the prompts that chose it, the luck is told as merit. Which
half a prompt belongs to depends on its text and the seed alone.

Axes: N prompts, R = revisions + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping

from torch import Tensor

from srpo.score.pooling import Block, Pooled, Resampling, estimate, pooled, seeds_of
from srpo.score.results import Choice
from srpo.score.scores import Cell, Scored

LEAST = 40  # prompts; a half of fewer than 20 chooses little but luck


def choices(
    scored: Mapping[Cell, Scored], split: str, temperature: float | None, resampling: Resampling
) -> list[Choice]:
    """One choice per system there that was revised at all; none where there are fewer than `LEAST` prompts."""
    found = []
    for system, seeds in seeds_of(scored, split, temperature).items():
        parts = [scored[Cell(seed, system, split, temperature)] for seed in seeds]
        revisions = parts[0].primary_NR.shape[1] - 1
        unchanging = all(not bool(part.changed_NR.any()) for part in parts)
        table = pooled([Block(part.keys, _columns(part, revisions)) for part in parts])
        if revisions and not unchanging and len(table.keys) >= LEAST:
            found.append(_choice(table, revisions, system, split, temperature, resampling))
    return found


def halves(keys: list[str], seed: int) -> tuple[list[int], list[int]]:
    """Rows of the half that chooses and of the half that reports, each ascending; equal prompts stay together.

    Example:
        >>> first, second = halves(["a", "b", "c", "d"], seed=0)
        >>> len(first), sorted(first + second)
        (2, [0, 1, 2, 3])
    """
    names = {key: hashlib.sha256(f"{seed} {key}".encode()).digest() for key in dict.fromkeys(keys)}
    order = sorted(range(len(keys)), key=lambda row: names[keys[row]])
    middle = len(keys) // 2
    while 0 < middle < len(keys) and keys[order[middle - 1]] == keys[order[middle]]:
        middle += 1
    return sorted(order[:middle]), sorted(order[middle:])


def _columns(scored: Scored, revisions: int) -> dict[Hashable, Tensor]:
    columns: dict[Hashable, Tensor] = {}
    for k in range(revisions + 1):
        columns["score", k] = scored.primary_NR[:, k]
        columns["gain", k] = scored.primary_NR[:, k] - scored.primary_NR[:, 0]
    return columns


def _choice(
    table: Pooled, revisions: int, system: str, split: str, temperature: float | None, resampling: Resampling
) -> Choice:
    chooses, reports = (table.only(rows) for rows in halves(table.keys, resampling.seed))
    means = [float(chooses.column(("score", k)).nanmean()) for k in range(revisions + 1)]
    best = means.index(max(means))  # the fewest revisions of equals
    found = estimate(reports, resampling)
    numbers = (*found["score", best], *found["gain", best])
    return Choice(system, split, temperature, best, len(chooses.keys), len(reports.keys), *numbers)
