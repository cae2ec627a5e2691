"""Prompts of several seeds put together, averaged and resampled.

Intervals are bootstrap intervals over prompts (`srpo.statistics.bootstrap`), all systems on the same draws. Pooled over
seeds:

    the seeds share their prompts      a prompt is drawn together with its scores of every seed: one prompt answered by
                                       three models is not three prompts
    they do not                        each seed's prompts are drawn within the seed; every prompt weighs the same

Either way the training runs are held fixed: an interval is about other prompts, and what another run might give is seen
from the seeds beside each other. A score that is nan was not given: it is left out, and a prompt that several seeds
share is averaged over those that have one.

Axes: N prompts, C columns to average.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from srpo.score.results import POOL
from srpo.score.scores import Cell, Scored
from srpo.statistics.bootstrap import DRAWS, LEVEL, Interval, bootstrap

SHARED = "prompts are shared by the seeds and drawn with their scores of every seed"
APART = "each seed has its own prompts, drawn within the seed"
ONE = "one seed"


class Resampling(NamedTuple):
    """How intervals are made: the arguments of `bootstrap`."""

    draws: int = DRAWS
    seed: int = 0
    level: float = LEVEL
    size: int | None = None


USUAL = Resampling()
# "paper" is arXiv 2406.01660's: 20 bootstraps of 512 prompts. Its intervals are those of 512 prompts, whatever there
# are, and their ends the second-smallest and second-largest of 20 numbers: for comparing with the paper, not to quote.
RESAMPLINGS = {"prompts": USUAL, "paper": Resampling(draws=20, size=512)}


class Block(NamedTuple):
    """One seed's columns: what is averaged, [N] each, and the prompts they stand for."""

    keys: tuple[str, ...]
    columns: dict[Hashable, Tensor]


class Scope(NamedTuple):
    """The systems that have the same seeds, and those seeds; `name` is a seed or the pool."""

    name: int | str
    seeds: tuple[int, ...]
    systems: tuple[str, ...]


class Pooled(NamedTuple):
    """All blocks as one: `rows_NC` with nan where there is no score, the columns' names, a key per row, and the lengths
    of what is resampled apart, None where all rows are one."""

    rows_NC: Tensor
    names: list[Hashable]
    keys: list[str]
    strata: list[int] | None

    def column(self, name: Hashable) -> Tensor:
        """[N] one column, nan where there is no score."""
        return self.rows_NC[:, self.names.index(name)]

    def only(self, rows: list[int]) -> Pooled:
        """Some of the rows, ascending; strata that lose all of theirs are gone."""
        strata, start = None, 0
        if self.strata is not None:
            strata = []
            for length in self.strata:
                strata.append(sum(start <= row < start + length for row in rows))
                start += length
            strata = [length for length in strata if length]
        return Pooled(self.rows_NC[rows], self.names, [self.keys[row] for row in rows], strata)


def pooled(blocks: list[Block]) -> Pooled:
    """The blocks' columns as one table; how they are pooled is said at the top."""
    names = list(blocks[0].columns)
    seeds_NC = [torch.stack([block.columns[name] for name in names], 1) for block in blocks]
    if all(block.keys == blocks[0].keys for block in blocks):
        return Pooled(torch.stack(seeds_NC).nanmean(0), names, list(blocks[0].keys), None)
    keys = [key for block in blocks for key in block.keys]
    return Pooled(torch.cat(seeds_NC), names, keys, [len(each) for each in seeds_NC])


def estimate(table: Pooled, resampling: Resampling) -> dict[Hashable, Interval]:
    """Mean and interval of each column over its prompts with a score."""
    known_NC = ~table.rows_NC.isnan()
    some = None if bool(known_NC.all()) else known_NC
    rows_NC = table.rows_NC.nan_to_num(0.0) if some is not None else table.rows_NC
    found = bootstrap(rows_NC, **resampling._asdict(), strata=table.strata, known_NM=some)
    return {name: found.column(index) for index, name in enumerate(table.names)}


def seeds_of(scored: Mapping[Cell, Scored], split: str, temperature: float | None) -> dict[str, tuple[int, ...]]:
    """System → the seeds it has there."""
    found: dict[str, tuple[int, ...]] = {}
    for cell in scored:
        if (cell.split, cell.temperature) == (split, temperature):
            found[cell.system] = (*found.get(cell.system, ()), cell.seed)
    return found


def scopes_of(scored: Mapping[Cell, Scored], split: str, temperature: float | None) -> list[Scope]:
    """Every seed with its systems, then the pool; systems with other seeds are pooled apart."""
    seeds = seeds_of(scored, split, temperature)
    every = dict.fromkeys(seed for each in seeds.values() for seed in each)
    single = [Scope(seed, (seed,), tuple(name for name in seeds if seed in seeds[name])) for seed in every]
    groups = dict.fromkeys(seeds.values())
    return single + [Scope(POOL, group, tuple(name for name in seeds if seeds[name] == group)) for group in groups]


def pooling_of(scored: Mapping[Cell, Scored], split: str, temperature: float | None) -> str:
    """In words, how the seeds there are pooled."""
    ways = set()
    for scope in scopes_of(scored, split, temperature):
        if len(scope.seeds) > 1:
            keys = {scored[Cell(seed, scope.systems[0], split, temperature)].keys for seed in scope.seeds}
            ways.add(SHARED if len(keys) == 1 else APART)
    return "; ".join(sorted(ways)) or ONE
