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
    """A record of arguments for `bootstrap`: number of draws, seed, coverage, and prompts per draw."""

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
    """A record of all systems' scores on one split at one temperature.

    Attributes:
        split, temperature: the split of the prompts and the sampling temperature.
        systems: system → seed → scored trails, in the order in which the trails were given.
    """

    split: str
    temperature: float | None
    systems: Mapping[str, Mapping[int, ScoredTrails]]

    @property
    def last(self) -> int:
        """The largest number of revisions of any system in the group."""
        return next(iter(next(iter(self.systems.values())).values())).primary_NR.shape[1] - 1

    @property
    def scopes(self) -> list[Scope]:
        """The sets of systems to average: one per seed, then one pool for the systems that have the same seeds."""
        seeds = {name: tuple(each) for name, each in self.systems.items()}
        every = dict.fromkeys(seed for each in seeds.values() for seed in each)
        single = [Scope(seed, (seed,), tuple(name for name in seeds if seed in seeds[name])) for seed in every]
        pools = dict.fromkeys(seeds.values())
        return single + [Scope(POOL, pool, tuple(name for name in seeds if seeds[name] == pool)) for pool in pools]

    @property
    def pooling(self) -> str:
        """Text for the report: whether the seeds share their prompts, and so how they are pooled."""
        pools = [scope for scope in self.scopes if len(scope.seeds) > 1]
        keys = [{self.systems[pool.systems[0]][seed].keys for seed in pool.seeds} for pool in pools]
        return "; ".join(sorted({SHARED if len(each) == 1 else APART for each in keys})) or ONE

    def table(
        self, systems: Iterable[str], seeds: Iterable[int], columns: Callable[[str, ScoredTrails], Columns]
    ) -> Table:
        """Returns the columns of several systems as one table, pooled over the seeds.

        Args:
            columns: function from a system's name and scored trails to [N] columns by name; names must differ between
            systems.
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
    """A record of systems averaged together and the seeds they share; `name` is one seed or `POOL`."""

    name: int | str
    seeds: tuple[int, ...]
    systems: tuple[str, ...]


def grouped(scored: Mapping[TrailsKey, ScoredTrails]) -> list[Group]:
    """Groups the scores of drafts and revisions by split and temperature, in the order in which these first occur."""
    found: dict[tuple[str, float | None], dict[str, dict[int, ScoredTrails]]] = {}
    for key, each in scored.items():
        found.setdefault((key.split, key.temperature), {}).setdefault(key.system, {})[key.seed] = each
    return [Group(*place, systems) for place, systems in found.items()]


class Table(NamedTuple):
    """A record of columns to average: `rows_NC` with nan for missing scores, a name per column, a key per row.

    `strata` has the lengths of the blocks of rows that are resampled apart; None if all rows are one block.
    """

    rows_NC: Tensor
    names: list[Hashable]
    keys: list[str]
    strata: list[int] | None

    def column(self, name: Hashable) -> Tensor:
        """Returns the [N] column of that name, nan for missing scores."""
        return self.rows_NC[:, self.names.index(name)]

    def only(self, rows: list[int]) -> Table:
        """Returns the table of the rows with these ascending numbers; strata that lose all rows are removed."""
        strata, start = None, 0
        if self.strata is not None:
            strata = []
            for length in self.strata:
                strata.append(sum(start <= row < start + length for row in rows))
                start += length
            strata = [length for length in strata if length]
        return Table(self.rows_NC[rows], self.names, [self.keys[row] for row in rows], strata)


def pooled(blocks: list[Block]) -> Table:
    """Pools the columns of several seeds, each with its prompts' keys, into one table.

    Seeds with equal keys are averaged by prompt; otherwise each seed's prompts become a block of rows.
    """
    names = list(blocks[0][1])
    seeds_NC = [torch.stack([columns[name] for name in names], 1) for _, columns in blocks]
    if all(keys == blocks[0][0] for keys, _ in blocks):
        return Table(torch.stack(seeds_NC).nanmean(0), names, list(blocks[0][0]), None)
    every = [key for keys, _ in blocks for key in keys]
    return Table(torch.cat(seeds_NC), names, every, [len(rows_NC) for rows_NC in seeds_NC])


def estimate(table: Table, resampling: Resampling) -> dict[Hashable, Interval]:
    """Returns column name → mean and bootstrap interval over the prompts with a score in the column."""
    known_NC = ~table.rows_NC.isnan()
    some = None if bool(known_NC.all()) else known_NC
    rows_NC = table.rows_NC.nan_to_num(0.0) if some is not None else table.rows_NC
    found = bootstrap(rows_NC, **resampling._asdict(), strata=table.strata, known_NM=some)
    return {name: found.column(index) for index, name in enumerate(table.names)}
