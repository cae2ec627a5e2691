"""Scores of trails: the answer in hand, judged once, in an order of its own; and refused input."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from srpo.errors import ConfigError, DataError
from srpo.judge.single import exact_match
from srpo.revise.trail import Answer, Trail
from srpo.score.scores import TrailsKey, score
from tests.evaluate import samples
from tests.evaluate.samples import JUDGES

KEY = (0, "srpo", "in", 0.0)


def trail(prompt: str, gold: Any, *texts: str, kept: tuple[int, ...] = (1, 2, 3)) -> Trail:
    answers = tuple(Answer(text, 1, kept=place == 0 or place in kept) for place, text in enumerate(texts))
    return Trail(prompt, answers, meta={"gold": gold})


def test_scores_by_hand() -> None:
    rows = [
        trail("a", "12", "99", "19", "12"),
        trail("b", "34", "34", "33", "34", kept=(2,)),  # the first revision was not kept
        trail("c", "56", "55"),  # stopped after its draft
    ]
    found = score({KEY: rows}, JUDGES)[TrailsKey(*KEY)]
    assert found.primary_NR.tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert found.scores["per_character"].tolist() == [[0, 0.5, 1], [1, 1, 1], [0.5, 0.5, 0.5]]
    assert found.changed_NR.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert [each.prompt for each in found.trails] == ["a", "b", "c"]
    assert found.golds == ("12", "34", "56")
    further = score({KEY: rows}, JUDGES, revisions=4)[TrailsKey(*KEY)]
    assert further.primary_NR.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]


def test_scores_equal_a_plain_loop() -> None:
    for cell, rows in samples.cells(prompts=30).items():
        found = score({cell: rows}, JUDGES)[TrailsKey(*cell)]
        ordered = sorted(rows, key=lambda each: each.prompt)
        for name, judge in JUDGES.items():
            plain = [[judge(t.prompt, t.after(k).text, t.meta["gold"]) for k in range(4)] for t in ordered]
            assert found.scores[name].tolist() == plain


def test_the_order_of_a_file_has_no_effect() -> None:
    rows = samples.trails(samples.sums(40, 0), wrong=0.2, mends=0.3)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert shuffled != rows
    one, other = (score({KEY: each}, JUDGES)[TrailsKey(*KEY)] for each in (rows, shuffled))
    assert one.keys == other.keys
    assert torch.equal(one.primary_NR, other.primary_NR)


def test_messages_are_prompts_too() -> None:
    chat = [{"role": "user", "content": "2+2="}]
    assert (
        score({KEY: [Trail(chat, (Answer("4", 1),), meta={"gold": "4"})]}, JUDGES)[TrailsKey(*KEY)].primary_NR.item()
        == 1
    )


def test_each_text_is_judged_once() -> None:
    asked = []

    def judge(prompt: Any, answer: str, gold: Any) -> float:
        asked.append(answer)
        return exact_match(prompt, answer, gold)

    score({KEY: [trail("a", "2", "1", "2", "1", "2")]}, {"mine": judge})
    assert sorted(asked) == ["1", "2"]


def test_token_counts_come_from_the_answers() -> None:
    rows = [
        Trail("a", (Answer("1", 1, forward_tokens=10), Answer("2", 1, forward_tokens=20)), meta={"gold": "1"}),
        Trail("b", (Answer("1", 1, forward_tokens=30),), meta={"gold": "1"}),
    ]
    assert score({KEY: rows}, JUDGES)[TrailsKey(*KEY)].tokens == (20.0, 30.0)
    assert score({KEY: [trail("a", "1", "1")]}, JUDGES)[TrailsKey(*KEY)].tokens is None
    assert score({KEY: rows}, JUDGES, tokens={KEY: [1, 2]})[TrailsKey(*KEY)].tokens == (1.0, 2.0)
    with pytest.raises(ConfigError, match="3 token counts; expected 2"):
        score({KEY: rows}, JUDGES, tokens={KEY: [1, 2, 3]})


@pytest.mark.parametrize(
    ("trails", "said"),
    [
        ({}, "no trails to score"),
        ({KEY: []}, "srpo, seed 0, split in, temperature 0: no trails"),
        (
            {KEY: [trail("a", "1", "1"), Trail("b", (Answer("1", 1),), meta={"answer": 1})]},
            "row 2: no 'gold'.*'answer'",
        ),
        ({KEY: [trail("a", None, "1")]}, "row 1: the gold answer is NoneType"),
    ],
)
def test_trails_without_gold_or_prompts_are_refused(trails: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        score(trails, JUDGES)


@pytest.mark.parametrize("other", [("a", "2"), ("b", "1")], ids=["another gold answer", "another prompt"])
def test_systems_must_have_the_same_prompts(other: tuple[str, str]) -> None:
    ours, theirs = [trail("a", "1", "1")], [trail(*other, "1")]
    with pytest.raises(DataError, match=r"dpo, seed 0.*not the prompts of srpo: 1 against 1, 1 missing, 1 new"):
        score({KEY: ours, (0, "dpo", "in", 0.0): theirs}, JUDGES)
    # Other seeds, splits and temperatures may have their own.
    apart = [(1, "dpo", "in", 0.0), (0, "dpo", "out", 0.0), (0, "dpo", "in", 1.0)]
    assert len(score({KEY: ours, **dict.fromkeys(apart, theirs)}, JUDGES)) == 4


def test_another_gold_key() -> None:
    row = Trail("a", (Answer("1", 1),), meta={"label": "1"})
    assert score({KEY: [row]}, JUDGES, gold_key="label")[TrailsKey(*KEY)].primary_NR.item() == 1
