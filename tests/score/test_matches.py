"""Win rates by pair judges of known preference, against plain loops."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from srpo.errors import ConfigError, DataError
from srpo.revise.trail import Answer, Trail
from srpo.score.matches import tallies
from srpo.score.pooling import grouped
from srpo.score.scores import TrailsKey, score
from srpo.score.summary import summarise, usual_questions
from tests.evaluate import samples
from tests.evaluate.samples import JUDGES
from tests.judge.pair_judges import Scripted, first_shown, honest, longest, mute, often_mute

VERSUS = ("draft", "everyone")


def wins(ours: str, theirs: str, gold: str) -> float:
    right = [sum(a == b for a, b in zip(text, gold, strict=True)) for text in (ours, theirs)]
    return 1.0 if right[0] > right[1] else 0.0 if right[0] < right[1] else 0.5


def test_win_rates_are_plain_averages() -> None:
    cells = samples.cells(prompts=40, seeds=2)
    results = summarise(grouped(score(cells, {"pairs": Scripted(honest)}, versus=VERSUS)), resampling=samples.QUICK)
    seen = set()
    for row in results.wins:
        at, k = (row["split"], row["temperature"]), row["revision"]
        values, longer = [], []
        for seed in (0, 1):
            rivals = cells[seed, row["opponent"], *at] if row["opponent"] in samples.SYSTEMS else None
            for place, trail in enumerate(cells[seed, row["system"], *at]):
                theirs = {"gold": trail.meta["gold"], "draft": trail.after(0).text}.get(row["opponent"])
                theirs = rivals[place].after(k).text if rivals else theirs
                values.append(wins(trail.after(k).text, theirs, trail.meta["gold"]))
                longer.append(len(trail.after(k).text) - len(theirs))
        assert row["win"] == pytest.approx(fmean(values))
        assert row["longer"] == pytest.approx(fmean(longer))
        assert (row["n"], row["unscored"]) == (80, 0)
        assert row["low"] <= row["win"] <= row["high"]
        seen.add((row["system"], row["opponent"]))
    assert len(seen) == 3 * 4  # gold, draft and two others each
    # The score of such a judge is the win rate against gold.
    for system in samples.SYSTEMS:
        rates = [row["win"] for row in results.rate(system, "gold", "in", 0.0)]
        assert [row["mean"] for row in results.curve(system, "in", 0.0)] == pytest.approx(rates)


def test_a_judge_of_single_answers_gives_the_same_win_rates() -> None:
    cells = samples.cells(prompts=40, seeds=1)
    by_pairs = summarise(grouped(score(cells, {"pairs": Scripted(honest)}, versus=VERSUS)), resampling=samples.QUICK)
    judges = {"per_character": JUDGES["per_character"]}
    by_scores = summarise(grouped(score(cells, judges, versus=VERSUS)), resampling=samples.QUICK)
    assert {row["opponent"] for row in by_scores.wins} == {"draft", *samples.SYSTEMS}
    for row in by_scores.wins:
        (twin,) = (
            other
            for other in by_pairs.wins
            if all(other[key] == row[key] for key in ("system", "opponent", "split", "revision"))  # type: ignore[literal-required]
        )
        assert row["win"] == pytest.approx(twin["win"])
        assert row["low"] == pytest.approx(twin["low"])


def test_a_position_biased_judge_ties_everything_and_flips() -> None:
    judges = {"biased": Scripted(first_shown)}
    scored = score(samples.cells(prompts=30, seeds=1), judges, versus=VERSUS)
    for cell in scored.values():
        for duel in cell.matches.values():
            assert duel.wins_NR.eq(0.5).all()
            assert duel.flipped_NR[~duel.same_NR].eq(1).all()
    for tally in tallies(scored, judges):
        assert tally.flips == 1.0
        assert tally.comparisons - tally.identical > 0
    # Control: an honest judge.
    judges = {"honest": Scripted(honest)}
    assert {tally.flips for tally in tallies(score(samples.cells(prompts=30, seeds=1), judges), judges)} == {0.0}


def test_unscored_prompts_are_counted_and_left_out() -> None:
    cells = samples.cells(prompts=60, seeds=2)
    results = summarise(grouped(score(cells, {"pairs": Scripted(often_mute)})), resampling=samples.QUICK)
    for row in results.rows:
        seeds = (0, 1) if row["seed"] == "pool" else (row["seed"],)
        trails = [trail for seed in seeds for trail in cells[int(seed), row["system"], row["split"], 0.0]]
        k = row["revision"]
        read = [
            t for t in trails if t.prompt[-2] not in "02468" or t.after(k).text == t.meta["gold"]
        ]  # identical texts tie unasked
        assert row["unscored"] == len(trails) - len(read) > 0
        assert row["n"] == len(read)
        assert row["mean"] == pytest.approx(fmean(wins(t.after(k).text, t.meta["gold"], t.meta["gold"]) for t in read))


def test_a_judge_without_readable_verdicts_is_an_error() -> None:
    with pytest.raises(DataError, match=r"scripted: not one of \d+ verdicts could be read: mute"):
        score(samples.cells(seeds=1, prompts=20), {"mute": Scripted(mute)})
    rows = [Trail("7+1=", (Answer("8", 1), Answer("9", 1)), meta={"gold": "8"}) for _ in range(3)]
    other = [Trail("4+4=", (Answer("8", 1), Answer("9", 1)), meta={"gold": "8"})]
    judge = Scripted(lambda each, shown, _: None if each.prompt == "7+1=" else 0.0)
    with pytest.raises(DataError, match=r"split b, against gold: not one of 3 verdicts after 1 revisions"):
        score({(0, "a", "a", None): other, (0, "a", "b", None): rows}, {"pairs": judge})


def test_each_different_question_is_asked_once() -> None:
    judge = Scripted(honest)
    rows = [Trail("1+1=", (Answer("3", 1), Answer("2", 1), Answer("2", 1)), meta={"gold": "4"})] * 3
    score({(0, "a", "all", None): rows, (0, "b", "all", None): rows}, {"pairs": judge}, versus=VERSUS)
    assert judge.asked == 3  # 3 and 2 against 4, and 2 against its draft 3; a against b is identical


def test_without_gold_the_draft_is_the_opponent() -> None:
    rows = [Trail(str(i), (Answer("long", 1), Answer("longer", 1))) for i in range(50)]
    scored = score({(0, "a", "all", None): rows}, {"longest": Scripted(longest)}, against="draft")
    assert scored[TrailsKey(0, "a", "all", None)].primary_NR.mean(0).tolist() == [0.5, 1.0]
    with pytest.raises(DataError, match="no 'gold' beside the prompt"):
        score({(0, "a", "all", None): rows}, {"longest": Scripted(longest)})


def test_length_control_removes_a_length_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (400, 2), generator=generator).tolist()
    rows = [
        Trail(str(i), (Answer("x " * a, 1), Answer("x " * (b + 12), 1)), meta={"gold": "y"})
        for i, (a, b) in enumerate(lengths)
    ]
    scored = score({(0, "a", "all", None): rows}, {"longest": Scripted(longest)}, against="draft")
    row = summarise(grouped(scored), usual_questions(grouped(scored), "a"), resampling=samples.QUICK).wins[-1]
    assert row["win"] > 0.65
    assert abs(row["controlled"] - 0.5) < 0.1
    assert row["longer"] == pytest.approx(12, abs=3)


def test_agreement_of_two_judges() -> None:
    judges = {"honest": Scripted(honest), "again": Scripted(honest), "biased": Scripted(first_shown)}
    scored = score(samples.cells(prompts=30, seeds=1), judges)
    by_name = {tally.judge: tally for tally in tallies(scored, judges) if tally.against == "gold"}
    assert by_name["again"].agreement == 1.0
    assert by_name["biased"].agreement < 0.2
    assert by_name["honest"].agreement is None


@pytest.mark.parametrize(
    ("words", "said"),
    [({"against": "golden"}, "did you mean 'gold'"), ({"versus": ["rival"]}, "did you mean 'rivals'")],
)
def test_unknown_opponents_are_refused(words: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        score(samples.cells(prompts=2, seeds=1), JUDGES, **words)  # type: ignore[arg-type]
