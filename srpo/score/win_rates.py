"""Win rates of systems against gold answers, their own drafts and each other: ties as half, and at equal length.

Axes: N prompts.
"""

from __future__ import annotations

import torch

from srpo.score.pooling import Columns, Group, Resampling, estimate
from srpo.score.results import WinRow
from srpo.score.scores import ScoredTrails
from srpo.statistics.length_control import REFITS, length_controlled

WINS, LONGER = "wins", "longer"


def win_rates(group: Group, resampling: Resampling) -> list[WinRow]:
    """Returns a win rate for each system, opponent and number of revisions, pooled over the seeds in which they met.

    Args:
        group: scores of all systems on one split at one temperature.
        resampling: settings of the bootstrap intervals.
    """
    rows: list[WinRow] = []
    for system, seeds in group.systems.items():
        for opponent in dict.fromkeys(name for each in seeds.values() for name in each.matches):
            rows += _rows(group, system, opponent, resampling)
    return rows


def _rows(group: Group, system: str, opponent: str, resampling: Resampling) -> list[WinRow]:
    met = {seed: each.matches[opponent] for seed, each in group.systems[system].items() if opponent in each.matches}

    def columns(system: str, scored: ScoredTrails) -> Columns:
        wins, longer = scored.matches[opponent].wins_NR.unbind(1), scored.matches[opponent].longer_NR.unbind(1)
        found: Columns = {(WINS, k): wins_N for k, wins_N in enumerate(wins)}
        return found | {(LONGER, k): longer_N for k, longer_N in enumerate(longer)}

    table = group.table([system], met, columns)
    found = estimate(table, resampling)
    rows: list[WinRow] = []
    draws, seed, level = min(resampling.draws, REFITS), resampling.seed, resampling.level
    for k in range(group.last + 1):
        unscored = sum(each.unscored_R[k] for each in met.values())
        controlled: tuple[float | None, ...] = (None, None, None)
        if any(not bool(each.same_NR[:, k].all()) for each in met.values()):
            # The refits draw prompts of all seeds together: a seed weighs as much as its number of prompts.
            wins_N, longer_N = table.column((WINS, k)), table.column((LONGER, k))
            known_N = ~torch.isnan(wins_N)
            controlled = length_controlled(wins_N[known_N], longer_N[known_N], draws=draws, seed=seed, level=level)
        rows.append(
            {
                "system": system,
                "opponent": opponent,
                "split": group.split,
                "temperature": group.temperature,
                "revision": k,
                "n": sum(len(each.wins_NR) for each in met.values()) - unscored,
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
