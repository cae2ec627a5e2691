"""Win rates of systems against gold, their own drafts and each other, with ties as half and with length taken out.

Axes: N prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from srpo.score.pooling import Block, Pooled, Resampling, estimate, pooled, seeds_of
from srpo.score.results import WinRow
from srpo.score.scores import Cell, Scored
from srpo.statistics.length_control import REFITS, length_controlled

WINS, LONGER = "wins", "longer"


def win_rates(
    scored: Mapping[Cell, Scored], split: str, temperature: float | None, resampling: Resampling
) -> list[WinRow]:
    """One row per system, opponent and revision there, the seeds that both have together."""
    rows: list[WinRow] = []
    for system, seeds in seeds_of(scored, split, temperature).items():
        parts = [scored[Cell(seed, system, split, temperature)] for seed in seeds]
        for opponent in dict.fromkeys(name for part in parts for name in part.duels):
            met = [part for part in parts if opponent in part.duels]
            rows += _rows(met, system, opponent, split, temperature, resampling)
    return rows


def _rows(
    parts: list[Scored], system: str, opponent: str, split: str, temperature: float | None, resampling: Resampling
) -> list[WinRow]:
    duels = [part.duels[opponent] for part in parts]
    revisions = range(duels[0].wins_NR.shape[1])
    table = pooled(
        [
            Block(
                part.keys,
                {
                    **{(WINS, k): duel.wins_NR[:, k] for k in revisions},
                    **{(LONGER, k): duel.longer_NR[:, k] for k in revisions},
                },
            )
            for part, duel in zip(parts, duels, strict=True)
        ]
    )
    found = estimate(table, resampling)
    rows: list[WinRow] = []
    for k in revisions:
        unscored = sum(duel.unscored_R[k] for duel in duels)
        different = any(not bool(duel.same_NR[:, k].all()) for duel in duels)
        controlled = _controlled(table, k, resampling) if different else (None, None, None)
        rows.append(
            {
                "system": system,
                "opponent": opponent,
                "split": split,
                "temperature": temperature,
                "revision": k,
                "n": sum(len(duel.wins_NR) for duel in duels) - unscored,
                "unscored": unscored,
                "win": found[WINS, k].mean,
                "low": found[WINS, k].low,
                "high": found[WINS, k].high,
                "controlled": controlled[0],
                "controlled_low": controlled[1],
                "controlled_high": controlled[2],
                "longer": found[LONGER, k].mean,
            }
        )
    return rows


def _controlled(table: Pooled, k: int, resampling: Resampling) -> tuple[float, float, float]:
    """Strata weigh as much as their prompts either way; a refit draws over all of them."""
    wins_N, longer_N = table.column((WINS, k)), table.column((LONGER, k))
    known_N = ~torch.isnan(wins_N)
    draws = min(resampling.draws, REFITS)
    return length_controlled(
        wins_N[known_N], longer_N[known_N], draws=draws, seed=resampling.seed, level=resampling.level
    )
