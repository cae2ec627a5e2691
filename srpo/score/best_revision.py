"""The best number of revisions: chosen on one half of the prompts, reported on the other half.

A best mean reported on the prompts that chose it counts luck as gain. The half to which a prompt belongs depends on
its text and the seed alone.

Axes: N prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from srpo.score.pooling import Columns, Group, Resampling, estimate
from srpo.score.results import BestRevision
from srpo.score.scores import ScoredTrails

LEAST = 40  # smallest number of prompts: a half of fewer than 20 would choose by luck
Name = TypeVar("Name", bound=Hashable)


def halves(keys: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Splits rows at random into one half for choosing and one for reporting; returns both as ascending row numbers.

    Args:
        keys: text of each row's prompt; rows with equal texts are in the same half.

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


def largest_mean(columns: Mapping[Name, Tensor]) -> Name:
    """Returns the name of the column with the largest mean, nan values left out; of equal means the first."""
    means = {name: float(column_N.nanmean()) for name, column_N in columns.items()}
    return max(means, key=means.__getitem__)


def best_revisions(group: Group, resampling: Resampling) -> list[BestRevision]:
    """Returns, for each system whose answers changed, the number of revisions that scores best on half of the prompts.

    Its score and gain are measured on the other half. With fewer than `LEAST` prompts the list is empty.

    Args:
        group: scores of all systems on one split at one temperature.
        resampling: settings of the bootstrap intervals.
    """
    found = []
    for system, seeds in group.systems.items():
        table = group.table([system], seeds, _columns)
        changed = any(bool(each.changed_NR.any()) for each in seeds.values())
        if group.last and changed and len(table.keys) >= LEAST:
            chooses, reports = (table.only(rows) for rows in halves(table.keys, resampling.seed))
            k = largest_mean({k: chooses.column(("score", k)) for k in range(group.last + 1)})
            intervals = estimate(reports, resampling)
            numbers = (k, len(chooses.keys), len(reports.keys), *intervals["score", k], *intervals["gain", k])
            found.append(BestRevision(system, group.split, group.temperature, *numbers))
    return found


def _columns(system: str, scored: ScoredTrails) -> Columns:
    columns: Columns = {}
    for k, (score_N, gain_N) in enumerate(zip(scored.primary_NR.unbind(1), scored.gain_NR.unbind(1), strict=True)):
        columns |= {("score", k): score_N, ("gain", k): gain_N}
    return columns
