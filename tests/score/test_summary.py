"""Results of scores: averages, pools and comparisons, against plain loops and built-in differences."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from srpo.errors import ConfigError
from srpo.revise.trail import Trail
from srpo.score.pooling import APART, ONE, SHARED, grouped
from srpo.score.results import POOL, Side
from srpo.score.scores import TrailsKey, score
from srpo.score.summary import Question, summarise, usual_questions
from srpo.statistics.bootstrap import bootstrap
from tests.evaluate import samples
from tests.evaluate.samples import JUDGES

QUICK = samples.QUICK


def one_system(*seeds: list[Trail], system: str = "srpo") -> dict[tuple[int, str, str, float | None], list[Trail]]:
    return {(seed, system, "all", None): rows for seed, rows in enumerate(seeds)}


def test_rows_are_plain_averages() -> None:
    cells = samples.cells(prompts=40, temperatures=(0.0, 1.0))
    results = summarise(grouped(score(cells, JUDGES)), resampling=QUICK)
    assert len(results.rows) == len(cells) * 4 * 3 // 2  # four k; a pooled row for every two seeds
    for row in results.rows:
        at = (row["system"], row["split"], row["temperature"])
        seeds = (0, 1) if row["seed"] == POOL else (row["seed"],)
        rows = [trail for seed in seeds for trail in cells[int(seed), *at]]
        k, draft = row["revision"], [float(t.after(0).text == t.meta["gold"]) for t in rows]
        now = [float(t.after(k).text == t.meta["gold"]) for t in rows]
        assert row["n"] == len(rows)
        assert row["mean"] == pytest.approx(fmean(now))
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["gain"] == pytest.approx(fmean(now) - fmean(draft))
        assert row["mended"] == pytest.approx(fmean(a > b for a, b in zip(now, draft, strict=True)))
        assert row["broken"] == pytest.approx(fmean(a < b for a, b in zip(now, draft, strict=True)))
        assert row["gain"] == pytest.approx(row["mended"] - row["broken"])
        changed = fmean(t.after(k).text != t.after(max(k - 1, 0)).text for t in rows)
        assert row["changed"] == (pytest.approx(changed) if k else None)
        digits = fmean(JUDGES["per_character"](t.prompt, t.after(k).text, t.meta["gold"]) for t in rows)
        assert row["secondary"]["per_character"][0] == pytest.approx(digits)


def test_intervals_are_those_of_the_bootstrap() -> None:
    scored = samples.scored(prompts=50, seeds=1)
    results = summarise(grouped(scored), resampling=QUICK)
    for system in ("SRPO", "DPO"):
        right_NR = scored[TrailsKey(0, system, "out", 0.0)].primary_NR
        alone = bootstrap(right_NR, draws=QUICK.draws)
        for k, row in enumerate(results.curve(system, "out", 0.0)):
            assert (row["low"], row["high"]) == pytest.approx(alone.column(k)[1:])
            gain = bootstrap(right_NR[:, [k]] - right_NR[:, [0]], draws=QUICK.draws).column(0)
            assert (row["gain"], row["gain_low"], row["gain_high"]) == pytest.approx(gain)
        # Pairing matters here: revision after revision keeps most of its draft.
        low, high = (row := results.curve(system, "out", 0.0)[1])["gain_low"], row["gain_high"]
        assert high - low < row["high"] - row["low"]


def test_seeds_with_their_own_prompts_are_pooled_as_strata() -> None:
    seeds = [samples.trails(samples.sums(n, n), wrong=wrong, mends=0.3) for n, wrong in ((60, 0.05), (90, 0.4))]
    scored = score(one_system(*seeds), JUDGES)
    results = summarise(grouped(scored), resampling=QUICK)
    assert results.settings["pooling"] == APART
    rows_NR = torch.cat([scored[TrailsKey(seed, "srpo", "all", None)].primary_NR for seed in (0, 1)])
    within, across = (bootstrap(rows_NR, draws=QUICK.draws, strata=strata).column(0) for strata in ([60, 90], None))
    row = results.curve("srpo", "all", None)[0]
    assert row["n"] == 150
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(within)
    assert across.high - across.low > within.high - within.low  # the seeds differ by far


def test_prompts_shared_by_seeds_are_not_new_prompts() -> None:
    # The extreme case: a second seed that answers every prompt exactly as the first adds nothing to know.
    rows = samples.trails(samples.sums(200, 0), wrong=0.2, mends=0.3)
    results = summarise(grouped(score(one_system(rows, rows), JUDGES)), resampling=QUICK)
    assert results.settings["pooling"] == SHARED
    for alone, pooled in zip(results.curve("srpo", "all", None, 0), results.curve("srpo", "all", None), strict=True):
        assert (pooled["low"], pooled["high"]) == pytest.approx((alone["low"], alone["high"]))
        assert pooled["n"] == 2 * alone["n"]
    # Control: as many answers to other prompts do narrow the interval.
    others = samples.trails(samples.sums(200, 1), wrong=0.2, mends=0.3)
    apart = summarise(grouped(score(one_system(rows, others), JUDGES)), resampling=QUICK).curve("srpo", "all", None)[0]
    alone = results.curve("srpo", "all", None, 0)[0]
    assert apart["high"] - apart["low"] < 0.85 * (alone["high"] - alone["low"])


def test_one_seed_is_its_own_pool() -> None:
    results = samples.results(prompts=30, seeds=1)
    assert results.settings["pooling"] == ONE
    for system in results.values("system"):
        alone, pooled = (results.curve(system, "in", 0.0, seed) for seed in (0, POOL))
        assert [{**row, "seed": POOL} for row in alone] == pooled


def test_built_in_differences_are_found() -> None:
    results = samples.results(prompts=200)
    found = {(each.a, each.b): each.finding for each in results.comparisons if each.split == "in"}
    assert found == {
        (Side("SRPO", 3), Side("SRPO", 0)): "better",
        (Side("SRPO", 3), Side("DPO", 3)): "better",
        (Side("SRPO", 3), Side("base", 3)): "better",
    }
    cells = samples.cells(prompts=200)
    asked = [
        Question(Side("DPO", 0), Side("SRPO", 3), "in", 0.0),
        Question(Side("base", 3), Side("base", 0), "in", 0.0),  # never revises
        Question(Side("SRPO", 0), Side("SRPO", 3), "in", 0.0),
    ]
    results = summarise(grouped(score(cells, JUDGES)), asked, resampling=QUICK)
    assert [each.finding for each in results.comparisons] == ["worse", "level", "worse"]


def test_a_comparison_is_the_paired_difference_of_common_seeds() -> None:
    cells = samples.cells(prompts=50, seeds=3)
    for split in ("in", "out"):
        del cells[1, "DPO", split, 0.0]
    scored = score(cells, JUDGES)
    asked = [
        Question(Side("SRPO", 2), Side("DPO", 1), "out", 0.0),
        Question(Side("SRPO", 1), Side("SRPO", 0), "out", 0.0),
    ]
    against, own = summarise(grouped(scored), asked, resampling=QUICK).comparisons
    assert [seed.seed for seed in against.seeds] == [0, 2]
    assert [seed.seed for seed in own.seeds] == [0, 1, 2]
    sides = [
        torch.cat([scored[TrailsKey(seed, system, "out", 0.0)].primary_NR[:, k] for seed in (0, 2)])
        for system, k in (("SRPO", 2), ("DPO", 1))
    ]
    plain = bootstrap((sides[0] - sides[1])[:, None], draws=QUICK.draws, strata=[50, 50]).column(0)
    assert against.pool[4:7] == pytest.approx(plain)
    assert (against.pool.a, against.pool.b) == pytest.approx([float(side.mean()) for side in sides])
    assert (against.pool.n, against.seeds[0].n) == (100, 50)


def test_pooled_tokens_are_the_seeds_mean() -> None:
    cells = samples.cells(prompts=10)
    tokens = {key: [10.0 * (key[0] + 1) * (k + 1) for k in range(4)] for key in cells if key[1] == "SRPO"}
    results = summarise(grouped(score(cells, JUDGES, tokens=tokens)), resampling=QUICK)
    assert [row["tokens"] for row in results.curve("SRPO", "in", 0.0, 1)] == [20, 40, 60, 80]
    assert [row["tokens"] for row in results.curve("SRPO", "in", 0.0)] == [15, 30, 45, 60]
    assert [row["tokens"] for row in results.curve("DPO", "in", 0.0)] == [None] * 4


def test_usual_questions_skip_systems_that_were_not_run() -> None:
    cells = samples.cells(prompts=10)
    for seed in (0, 1):
        del cells[seed, "DPO", "out", 0.0]
    asked = usual_questions(grouped(score(cells, JUDGES)), "SRPO")
    assert [(question.split, question.b) for question in asked] == [
        ("in", Side("SRPO", 0)),
        ("in", Side("DPO", 3)),
        ("in", Side("base", 3)),
        ("out", Side("SRPO", 0)),
        ("out", Side("base", 3)),
    ]
    assert usual_questions(grouped(score(samples.cells(prompts=10, revisions=0), JUDGES)), "base")[0].b == Side(
        "SRPO", 0
    )


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question(Side("SRP", 1), Side("DPO", 1), "in", 0.0), "no system 'SRP' there.*did you mean 'SRPO'"),
        (Question(Side("SRPO", 1), Side("DPO", 4), "in", 0.0), "DPO: 4 revisions; expected 0 to 3"),
        (Question(Side("SRPO", -1), Side("DPO", 1), "in", 0.0), "expected 0 to 3"),
        (Question(Side("SRPO", 1), Side("DPO", 1), "elsewhere", 0.0), "a split and temperature that were run"),
    ],
)
def test_questions_about_missing_systems_are_refused(question: Question, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        samples.results([question], prompts=10)


def test_systems_without_a_common_seed_cannot_be_compared() -> None:
    cells = samples.cells(prompts=10)
    del cells[0, "SRPO", "in", 0.0], cells[1, "DPO", "in", 0.0]
    asked = [Question(Side("SRPO", 1), Side("DPO", 1), "in", 0.0)]
    with pytest.raises(ConfigError, match="SRPO and DPO share no seed"):
        summarise(grouped(score(cells, JUDGES)), asked, resampling=QUICK)


def test_an_unknown_highlight_is_refused() -> None:
    scored = samples.scored(prompts=10)
    assert summarise(grouped(scored), resampling=QUICK).highlight == "SRPO"
    with pytest.raises(ConfigError, match="did you mean 'base'"):
        summarise(grouped(scored), highlight="bases", resampling=QUICK)
