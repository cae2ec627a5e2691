"""Scores grouped by split and temperature, pooled over seeds, and averaged with bootstrap intervals.

Intervals are bootstrap intervals over prompts (`srpo.statistics.bootstrap`), all systems on the same draws. Two ways to
pool the seeds:

    shared prompts       a prompt is drawn together with its scores of every seed: one prompt answered by three models
                         is not three prompts
    different prompts    each seed's prompts are drawn within the seed; every prompt has the same weight

Both hold the training runs fixed: an interval covers other prompts, and the spread over training runs shows in the
single seeds. A nan score is missing: means leave it out, and a prompt shared by seeds is averaged over the seeds that
scored it.

Axes: N prompts, C columns to average.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from srpo.score.results import POOL
from srpo.score.scores import ScoredTrails, TrailsKey
from srpo.statistics.bootstrap import DRAWS, LEVEL, Interval, bootstrap

SHARED = "prompts are shared by the seeds and drawn with their scores of every seed"
APART = "each seed has its own prompts, drawn within the seed"
ONE = "one seed"
Columns = dict[Hashable, Tensor]
Block = tuple[tuple[str, ...], Columns]  # the data of one seed: the keys of its N prompts, and [N] columns by name


class Resampling(NamedTuple):
    """Settings of a bootstrap: number of draws, seed, coverage in (0, 1), and prompts per draw (None: all)."""

    draws: int = DRAWS
    seed: int = 0
    level: float = LEVEL
    size: int | None = None


USUAL = Resampling()
# "paper" repeats arXiv 2406.01660: 20 bootstraps of 512 prompts. Its intervals have the width for 512 prompts, whatever
# the number of prompts; their ends are the second-smallest and second-largest of 20 means. Use it only to compare with
# the paper.
RESAMPLINGS = {"prompts": USUAL, "paper": Resampling(draws=20, size=512)}


@dataclass(frozen=True)
class Group:
    """All systems' scores on one split of the prompts at one sampling temperature.

    Attributes:
        split, temperature: the split of the prompts and the sampling temperature; None if unknown.
        systems: system → seed → scored answers, in the order in which they were given.
    """

    split: str
    temperature: float | None
    systems: Mapping[str, Mapping[int, ScoredTrails]]

    @property
    def last(self) -> int:
        """Largest number of revisions that any system in the group has scores for."""
        return next(iter(next(iter(self.systems.values())).values())).primary_NR.shape[1] - 1

    @property
    def scopes(self) -> list[Scope]:
        """Sets of systems to average together.

        For each seed there is a set of the systems that have it. Then come the sets to pool over seeds: systems are in
        one set if all their seeds are the same.
        """
        seeds = {name: tuple(each) for name, each in self.systems.items()}
        every = dict.fromkeys(seed for each in seeds.values() for seed in each)
        single = [Scope(seed, (seed,), tuple(name for name in seeds if seed in seeds[name])) for seed in every]
        pools = dict.fromkeys(seeds.values())
        return single + [Scope(POOL, pool, tuple(name for name in seeds if seeds[name] == pool)) for pool in pools]

    @property
    def pooling(self) -> str:
        """Sentence for the report on how seeds are pooled: whether they share their prompts."""
        pools = [scope for scope in self.scopes if len(scope.seeds) > 1]
        keys = [{self.systems[pool.systems[0]][seed].keys for seed in pool.seeds} for pool in pools]
        return "; ".join(sorted({SHARED if len(each) == 1 else APART for each in keys})) or ONE

    def table(
        self, systems: Iterable[str], seeds: Iterable[int], columns: Callable[[str, ScoredTrails], Columns]
    ) -> Table:
        """Returns chosen numbers of several systems as one table, rows pooled over the seeds.

        Args:
            seeds: seeds to pool; every system must have them.
            columns: function from a system's name and scored answers to [N] columns by name, N prompts; names must
                differ between systems.
        """
        systems, blocks = list(systems), list[Block]()
        for seed in seeds:
            found = {name: self.systems[name][seed] for name in systems}
            merged: Columns = {}
            for name, each in found.items():
                merged |= columns(name, each)
            blocks.append((found[systems[0]].keys, merged))
        return pooled(blocks)


class Scope(NamedTuple):
    """Systems that are averaged together, and their common seeds; `name` is the one seed, or `POOL` for several."""

    name: int | str
    seeds: tuple[int, ...]
    systems: tuple[str, ...]


def grouped(scored: Mapping[TrailsKey, ScoredTrails]) -> list[Group]:
    """Groups scored answers by split and temperature; returns the groups in the order in which these first occur."""
    found: dict[tuple[str, float | None], dict[str, dict[int, ScoredTrails]]] = {}
    for key, each in scored.items():
        found.setdefault((key.split, key.temperature), {}).setdefault(key.system, {})[key.seed] = each
    return [Group(*place, systems) for place, systems in found.items()]


class Table(NamedTuple):
    """A table of numbers to average: a row per prompt, a column per number; nan for a missing score.

    Attributes:
        rows_NC: the numbers, N rows and C columns.
        names: C names of the columns.
        keys: N texts that identify the prompts.
        strata: lengths of the blocks of rows that are resampled separately; None if all rows are one block.
    """

    rows_NC: Tensor
    names: list[Hashable]
    keys: list[str]
    strata: list[int] | None

    def column(self, name: Hashable) -> Tensor:
        """Returns the column of that name, one number per prompt; nan for missing scores."""
        return self.rows_NC[:, self.names.index(name)]

    def only(self, rows: list[int]) -> Table:
        """Returns a table with just the rows of these ascending numbers; `strata` has the new lengths of the blocks."""
        strata, start = None, 0
        if self.strata is not None:
            strata = []
            for length in self.strata:
                strata.append(sum(start <= row < start + length for row in rows))
                start += length
            strata = [length for length in strata if length]
        return Table(self.rows_NC[rows], self.names, [self.keys[row] for row in rows], strata)


def pooled(blocks: list[Block]) -> Table:
    """Pools the numbers of several seeds into one table.

    If all seeds have the same prompts, each prompt's numbers are averaged; otherwise each seed becomes a block of rows.

    Args:
        blocks: for each seed the keys of its prompts, and its columns by name.
    """
    names = list(blocks[0][1])
    seeds_NC = [torch.stack([columns[name] for name in names], 1) for _, columns in blocks]
    if all(keys == blocks[0][0] for keys, _ in blocks):
        return Table(torch.stack(seeds_NC).nanmean(0), names, list(blocks[0][0]), None)
    every = [key for keys, _ in blocks for key in keys]
    return Table(torch.cat(seeds_NC), names, every, [len(rows_NC) for rows_NC in seeds_NC])


def estimate(table: Table, resampling: Resampling) -> dict[Hashable, Interval]:
    """Returns column name → mean and bootstrap interval, over the rows with a number in the column."""
    known_NC = ~table.rows_NC.isnan()
    some = None if bool(known_NC.all()) else known_NC
    rows_NC = table.rows_NC.nan_to_num(0.0) if some is not None else table.rows_NC
    found = bootstrap(rows_NC, **resampling._asdict(), strata=table.strata, known_NM=some)
    return {name: found.column(index) for index, name in enumerate(table.names)}
