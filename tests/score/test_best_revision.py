"""The best number of revisions on held-out halves, and p-values adjusted for several revisions."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
import torch

from srpo.revise.trail import Answer, Trail
from srpo.score.best_revision import halves
from srpo.score.pooling import grouped
from srpo.score.scores import score
from srpo.score.summary import summarise
from srpo.statistics.significance import holm, sign_flip_p
from tests.evaluate import samples
from tests.evaluate.samples import JUDGES


def test_halves_depend_on_the_text_and_share_no_prompt() -> None:
    keys = [f"prompt {i // 2}" for i in range(101)]
    chooses, reports = halves(keys, seed=3)
    assert sorted(chooses + reports) == list(range(101))
    assert not {keys[row] for row in chooses} & {keys[row] for row in reports}
    assert abs(len(chooses) - len(reports)) <= 3
    order = random.Random(0).sample(range(101), 101)
    again, _ = halves([keys[row] for row in order], seed=3)
    assert {keys[order[row]] for row in again} == {keys[row] for row in chooses}
    assert {keys[row] for row in halves(keys, seed=4)[0]} != {keys[row] for row in chooses}


def guesses(prompts: int, revisions: int, seed: int) -> list[Trail]:
    """Answers that are right by a fair coin at every revision."""
    chance = random.Random(seed)
    return [
        Trail(str(i), tuple(Answer(chance.choice("01"), 1) for _ in range(revisions + 1)), meta={"gold": "1"})
        for i in range(prompts)
    ]


def test_the_reported_mean_of_pure_chance_is_one_half() -> None:
    reported, flattered = [], []
    for seed in range(60):
        scored = score({(0, "a", "all", None): guesses(100, 8, seed)}, {"exact_match": JUDGES["exact_match"]})
        results = summarise(grouped(scored), resampling=samples.QUICK)
        (choice,) = results.choices
        reported.append(choice.mean)
        flattered.append(max(row["mean"] for row in results.curve("a", "all", None)))
    # The mean of 60 halves of 50 fair coins is within four standard errors, 3.7 points, of one half.
    assert fmean(reported) == pytest.approx(0.5, abs=0.037)
    assert fmean(flattered) > 0.55  # control: the best of nine on all prompts


def test_the_best_revision_is_reported_on_the_other_half() -> None:
    rows = samples.trails(samples.sums(300, 0), wrong=0.2, mends=0.3, breaks=0.02)
    scored = score({(0, "srpo", "all", None): rows}, {"exact_match": JUDGES["exact_match"]})
    (choice,) = summarise(grouped(scored), resampling=samples.QUICK).choices
    (cell,) = scored.values()
    first, second = halves(list(cell.keys), seed=0)
    means = [float(cell.primary_NR[first, k].mean()) for k in range(4)]
    assert choice.revision == means.index(max(means))
    assert choice.mean == pytest.approx(float(cell.primary_NR[second, choice.revision].mean()))
    assert (choice.chosen_on, choice.n) == (150, 150)
    said = choice.sentence("SRPO", 0.95)
    assert said.startswith(f"SRPO does best after {choice.revision} revisions (chosen on 150 prompts, measured on the")


def test_no_choice_for_few_prompts_or_unchanged_answers() -> None:
    for rows in (guesses(30, 3, 0), [Trail(str(i), (Answer("1", 1),), meta={"gold": "1"}) for i in range(100)]):
        assert not summarise(grouped(score({(0, "a", "all", None): rows}, JUDGES)), resampling=samples.QUICK).choices


def test_p_values_are_adjusted_for_all_revisions() -> None:
    rows = samples.trails(samples.sums(80, 0), wrong=0.2, mends=0.1)
    scored = score({(0, "a", "all", None): rows}, JUDGES)
    curve = summarise(grouped(scored), resampling=samples.QUICK).curve("a", "all", None)
    right_NR = next(iter(scored.values())).primary_NR
    plain = sign_flip_p(right_NR[:, 1:] - right_NR[:, :1], draws=samples.QUICK.draws)
    assert [row["p"] for row in curve] == [None, *holm(plain)]
    assert torch.tensor(plain).lt(torch.tensor(holm(plain))).any()
