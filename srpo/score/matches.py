"""Answers beside an opponent's, prompt by prompt: who wins, as a judge of two answers says or as two scores say.

Opponents are `gold`, the text that stands beside the prompt; `draft`, the system's own; and any other system by name,
after as many revisions. A verdict that cannot be read is nan in every tensor: neither a tie nor a loss.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo.errors import DataError
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict

GOLD, DRAFT = "gold", "draft"
NAN = float("nan")


class Round(NamedTuple):
    """One list of answers and what stands against it, [N][R] texts each.

    `name` tells it from the others that a judge is asked about in the same go; `where` is for messages.
    """

    name: tuple[Any, str]
    prompts: Sequence[Any]
    golds: Sequence[Any]
    ours: Sequence[Sequence[str]]
    theirs: Sequence[Sequence[str]]
    where: str = ""


@dataclass(frozen=True)
class Duel:
    """What became of one round.

    Attributes:
        wins_NR: [N, R] 1, ½ or 0; nan where unscored.
        longer_NR: [N, R] length of ours minus theirs.
        flipped_NR: [N, R] 1 where the two orders disagree, 0 where they agree; nan where they were not both read.
        contradicted_NR: [N, R] share of the pairs of runs whose verdicts differ; nan where fewer than two were read.
        same_NR: [N, R] true where the texts are identical, so that nobody was asked.
    """

    wins_NR: Tensor
    longer_NR: Tensor
    flipped_NR: Tensor
    contradicted_NR: Tensor
    same_NR: Tensor

    @property
    def unscored_R(self) -> list[int]:
        """How many prompts have no verdict, by revision."""
        return [int(count) for count in self.wins_NR.isnan().sum(0)]


def fight(judge: PairJudge, rounds: Sequence[Round]) -> dict[tuple[Any, str], list[list[Verdict]]]:
    """[N][R] verdicts of each round; one pass over the judge, and each different question once.

    Raises:
        DataError: not one verdict could be read, of all or of one revision.
    """
    questions: dict[str, AnswerPair] = {}
    slots: list[tuple[tuple[Any, str], list[list[str]]]] = []
    for each in rounds:
        keys: list[list[str]] = []
        for prompt, gold, ours, theirs in zip(each.prompts, each.golds, each.ours, each.theirs, strict=True):
            keys.append([])
            for first, second in zip(ours, theirs, strict=True):
                key = json.dumps([prompt, gold, first, second], sort_keys=True, default=str)
                questions.setdefault(key, AnswerPair(prompt, first, second, gold))
                keys[-1].append(key)
        slots.append((each.name, keys))
    answers = dict(zip(questions, judge.compare(list(questions.values())), strict=True))
    asked = [verdict for key, verdict in answers.items() if not questions[key].identical]
    if asked and all(verdict.score is None for verdict in asked):
        raise DataError(
            f"not one of {len(asked)} verdicts could be read: {asked[0].reason}",
            where=judge.identity,
            expected="a judge that says which answer is better",
        )
    found = {name: [[answers[key] for key in row] for row in keys] for name, keys in slots}
    for each in rounds:
        _expect_some(each, found[each.name])
    return found


def duel(verdicts: Sequence[Sequence[Verdict]], same_NR: Tensor, longer_NR: Tensor) -> Duel:
    """The verdicts of one round as tensors."""
    wins_NR, flipped_NR, contradicted_NR = (
        _table([[getattr(verdict, part) for verdict in row] for row in verdicts])
        for part in ("score", "flipped", "contradicted")
    )
    return Duel(wins_NR, longer_NR, flipped_NR, contradicted_NR, same_NR)


def scored_duel(ours_NR: Tensor, theirs_NR: Tensor, same_NR: Tensor, longer_NR: Tensor) -> Duel:
    """The same from the scores of a judge of single answers: the higher score wins; nan where either has none."""
    wins_NR = 0.5 + 0.5 * torch.sign(ours_NR - theirs_NR)
    never_NR = torch.full_like(wins_NR, NAN)
    return Duel(wins_NR, longer_NR, never_NR, never_NR, same_NR)


def texts_of(golds: Iterable[Any], where: str) -> list[str]:
    """Gold answers as texts to stand against others.

    Raises:
        DataError: one is neither text nor a whole number.
    """
    found = []
    for row, gold in enumerate(golds, 1):
        if not isinstance(gold, str | int) or isinstance(gold, bool):
            expected = "text, for a judge that compares answers with it"
            raise DataError(f"the gold answer is {type(gold).__name__}", where=f"{where}, row {row}", expected=expected)
        found.append(str(gold))
    return found


def same(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> Tensor:
    """[N, R] whether the texts are identical."""
    rows = zip(ours, theirs, strict=True)
    return torch.tensor([[a == b for a, b in zip(*row, strict=True)] for row in rows])


class Tally(NamedTuple):
    """What a judge was asked and how well it could be read; shares of what they are shares of.

    Attributes:
        judge: its name.
        against: the opponent.
        comparisons: how many there were, identical texts included.
        identical: how many of them had identical texts and were not put to it.
        unscored: how many of the others got no verdict that could be read.
        ties: share of ties among the verdicts that were read.
        flips: share of comparisons asked both ways round whose orders disagree; None where none was.
        disagreement: of comparisons asked several times, the mean share of pairs of runs whose verdicts differ; None
            where none was.
        agreement: share of the same comparisons on which the first judge says the same, for the other judges; those
            with identical texts left out.
    """

    judge: str
    against: str
    comparisons: int
    identical: int
    unscored: int
    ties: float | None
    flips: float | None
    disagreement: float | None
    agreement: float | None


def tally(judge: str, against: str, duels: Sequence[Duel], first: Sequence[Duel] | None = None) -> Tally:
    """Counts over all cells.

    Args:
        first: the same rounds as the first judge saw them.
    """
    asked = torch.cat([(~each.same_NR).flatten() for each in duels])
    wins, flips, contradicted = (
        torch.cat([getattr(each, part).flatten() for each in duels])[asked]
        for part in ("wins_NR", "flipped_NR", "contradicted_NR")
    )
    read = ~wins.isnan()
    agreement = None
    if first is not None:
        theirs = torch.cat([each.wins_NR.flatten() for each in first])[asked]
        agreement = _share(wins == theirs, read & ~theirs.isnan())
    return Tally(
        judge,
        against,
        comparisons=len(asked),
        identical=int((~asked).sum()),
        unscored=int((~read).sum()),
        ties=_share(wins == 0.5, read),
        flips=_share(flips, ~flips.isnan()),
        disagreement=_share(contradicted, ~contradicted.isnan()),
        agreement=agreement,
    )


def _share(of: Tensor, among: Tensor) -> float | None:
    return float(of[among].double().mean()) if bool(among.any()) else None


def _table(rows: list[list[float | None]]) -> Tensor:
    return torch.tensor([[NAN if each is None else float(each) for each in row] for row in rows], dtype=torch.float64)


def _expect_some(each: Round, verdicts: list[list[Verdict]]) -> None:
    for k in range(len(verdicts[0])):
        column = [row[k] for row in verdicts]
        if all(verdict.score is None for verdict in column):
            raise DataError(
                f"not one of {len(column)} verdicts after {k} revisions could be read: {column[0].reason}",
                where=each.where,
                expected="a judge that says which answer is better",
            )


def opponents(
    cells: Mapping[Any, Any], judges_compare: bool, against: str, versus: Sequence[str], highlight: str
) -> dict[Any, list[str]]:
    """Cell → against whom; what a pair judge's score is against comes first, where there is one.

    Args:
        versus: "draft", and "rivals" for the highlighted system against each other one, or "everyone".
    """
    found: dict[Any, list[str]] = {}
    for cell in cells:
        names = [against] if judges_compare else []
        names += [DRAFT] if DRAFT in versus else []
        if "everyone" in versus or ("rivals" in versus and cell.system == highlight):
            there = [o.system for o in cells if o._replace(system="") == cell._replace(system="")]
            names += [system for system in there if system != cell.system]
        found[cell] = list(dict.fromkeys(names))
    return found
