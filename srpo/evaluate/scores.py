"""Trails in, scores out: the answer in hand after each revision, judged, for systems over the same prompts.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from srpo.errors import ConfigError, DataError
from srpo.evaluate.judges import Judge, judged
from srpo.revise.trail import Trail

Key = tuple[int, str, str, float | None]


class Cell(NamedTuple):
    """What one list of trails is of; a plain tuple of the four serves as well."""

    seed: int
    system: str
    split: str
    temperature: float | None

    def __str__(self) -> str:
        parts = [self.system, f"seed {self.seed}", f"split {self.split}"]
        return ", ".join(parts if self.temperature is None else [*parts, f"temperature {self.temperature:g}"])


@dataclass(frozen=True)
class Scored:
    """The trails of one cell, judged, in an order that depends on the prompts alone.

    Attributes:
        keys: one text per prompt, equal for equal prompts with equal gold answers.
        trails: the trails in the order of `keys`.
        golds: their gold answers.
        scores: judge → [N, R] score of the answer in hand, in [0, 1]; the first judge is the primary one.
        changed_NR: [N, R] 1 where that answer differs from the one before; 0 for the draft.
        tokens: R mean forward tokens per prompt, cumulative, or None where they were not counted.
    """

    keys: tuple[str, ...]
    trails: tuple[Trail, ...]
    golds: tuple[object, ...]
    scores: dict[str, Tensor]
    changed_NR: Tensor
    tokens: tuple[float, ...] | None

    @property
    def primary_NR(self) -> Tensor:
        """[N, R] scores by the first judge."""
        return next(iter(self.scores.values()))


def score(
    trails: Mapping[Key, Sequence[Trail]],
    judges: Mapping[str, Judge],
    *,
    gold_key: str = "gold",
    revisions: int | None = None,
    tokens: Mapping[Key, Sequence[float]] | None = None,
) -> dict[Cell, Scored]:
    """Judges every answer in hand.

    Args:
        trails: trails by (seed, system, split, temperature), each with its gold answer in `meta`.
        judges: judges by name, the primary one first.
        gold_key: where in `meta` the gold answer stands.
        revisions: how far to go; without it, as far as the longest trail.
        tokens: mean forward tokens per prompt up to each revision, cumulative, for cells whose answers do not say.

    Raises:
        DataError: no trails, a gold answer is missing or not of the judge's kind, or systems differ in their prompts.
        ConfigError: a judge returned no score, or token counts are not one per revision and the draft.

    Example:
        >>> from srpo.evaluate.judges import JUDGES
        >>> from srpo.revise.trail import Answer, Trail
        >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2)), meta={"gold": "4"})
        >>> score({(0, "srpo", "all", None): [trail]}, JUDGES)[0, "srpo", "all", None].primary_NR
        tensor([[0., 1.]], dtype=torch.float64)
    """
    cells = {Cell(*key): rows for key, rows in trails.items()}
    for cell, rows in cells.items():
        if not rows:
            raise DataError("no trails", where=str(cell), expected="at least one prompt")
    if not cells:
        raise DataError("no trails to score")
    if revisions is None:
        revisions = max(len(trail.answers) - 1 for rows in cells.values() for trail in rows)
    counts = {Cell(*key): tuple(map(float, counted)) for key, counted in (tokens or {}).items()}
    for cell, counted in counts.items():
        if len(counted) != revisions + 1:
            expected = f"{revisions + 1}, the draft's first"
            raise ConfigError(f"{len(counted)} token counts", where=str(cell), expected=expected)
    scored = {
        cell: _score(cell, rows, judges, gold_key, counts.get(cell) or _tokens(rows, revisions), revisions)
        for cell, rows in cells.items()
    }
    _check_prompts(scored)
    return scored


def _score(
    cell: Cell,
    rows: Sequence[Trail],
    judges: Mapping[str, Judge],
    gold_key: str,
    tokens: tuple[float, ...] | None,
    revisions: int,
) -> Scored:
    places = [f"{cell}, row {number}" for number in range(1, len(rows) + 1)]
    golds = [_gold(trail, gold_key, where) for trail, where in zip(rows, places, strict=True)]
    keys = [json.dumps([t.prompt, gold], sort_keys=True, default=str) for t, gold in zip(rows, golds, strict=True)]
    # Sorted, so that neither pairing nor interval depends on the order of a file; equal prompts keep theirs.
    order = sorted(range(len(rows)), key=keys.__getitem__)
    scores: dict[str, list[list[float]]] = {name: [] for name in judges}
    changed = []
    for row in order:
        texts = [rows[row].after(k).text for k in range(revisions + 1)]
        changed.append([0.0, *(float(new != old) for old, new in pairwise(texts))])
        for name, judge in judges.items():
            # Each text once: a judge may be slow, and most revisions repeat an answer.
            known = {text: judged(judge, rows[row].prompt, text, golds[row], where=places[row]) for text in {*texts}}
            scores[name].append([known[text] for text in texts])
    return Scored(
        keys=tuple(keys[row] for row in order),
        trails=tuple(rows[row] for row in order),
        golds=tuple(golds[row] for row in order),
        scores={name: torch.tensor(each, dtype=torch.float64) for name, each in scores.items()},
        changed_NR=torch.tensor(changed, dtype=torch.float64),
        tokens=tokens,
    )


def _tokens(rows: Sequence[Trail], revisions: int) -> tuple[float, ...] | None:
    """What the answers say they cost; a trail that stopped costs nothing more."""
    if not all(trail.answers[0].forward_tokens for trail in rows):
        return None
    spent = [sum(a.forward_tokens for trail in rows for a in trail.answers[: k + 1]) for k in range(revisions + 1)]
    return tuple(total / len(rows) for total in spent)


def _gold(trail: Trail, gold_key: str, where: str) -> object:
    if gold_key not in trail.meta:
        has = ", ".join(map(repr, trail.meta)) or "nothing"
        raise DataError(f"no {gold_key!r} beside the prompt, only {has}", where=where, fix="name the key by --gold_key")
    return trail.meta[gold_key]


def _check_prompts(scored: Mapping[Cell, Scored]) -> None:
    """Within a seed, split and temperature every system must have answered the same prompts."""
    first: dict[tuple[int, str, float | None], Cell] = {}
    for cell in scored:
        other = first.setdefault((cell.seed, cell.split, cell.temperature), cell)
        ours, theirs = scored[cell].keys, scored[other].keys
        if ours != theirs:
            missing, added = len({*theirs} - {*ours}), len({*ours} - {*theirs})
            raise DataError(
                f"not the prompts of {other.system}: {len(ours)} against {len(theirs)}, {missing} missing, {added} new",
                where=str(cell),
                expected="the same prompts and gold answers for every system",
                fix="revise the same file of prompts with each system",
            )
