"""Results: sentences that follow the numbers, and files that read back as written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from srpo.disk import writable_folder, write_file
from srpo.errors import DataError, InputError, OutputError
from srpo.judge.single import JUDGES
from srpo.revise.trail import Answer, Trail
from srpo.score.pooling import grouped
from srpo.score.results import POOL, Difference, Side, SystemComparison, percent, points
from srpo.score.results_file import as_csv, as_json, read_results
from srpo.score.scores import score
from srpo.score.summary import summarise, usual_questions
from tests.evaluate import samples

LABELS = {"srpo": "SRPO", "dpo": "DPO"}


def comparison(low: float, difference: float, high: float, *, a: Side, b: Side, seeds: int = 1) -> SystemComparison:
    pool = Difference(POOL, 1000 * seeds, 0.4 + difference, 0.4, difference, low, high)
    single = tuple(Difference(s, 1000, 0.4, 0.4, difference + s / 100, low, high) for s in range(seeds))
    return SystemComparison(a, b, "in", 0.0, pool, single)


@pytest.mark.parametrize(
    ("low", "difference", "high", "own", "against"),
    [
        (0.01, 0.05, 0.09, "Revision helps SRPO:", "At k = 2, SRPO does better than DPO:"),
        (-0.09, -0.05, -0.01, "Revision hurts SRPO:", "At k = 2, SRPO does worse than DPO:"),
        (
            -0.01,
            0.05,
            0.11,
            "SRPO after 2 revisions and its drafts cannot be told apart:",
            "At k = 2, SRPO and DPO cannot be told apart:",
        ),
        (0.0, 0.0, 0.0, "SRPO after 2 revisions and its drafts cannot", "At k = 2, SRPO and DPO cannot be told apart:"),
        (0.0, 0.01, 0.02, "SRPO after 2 revisions and its drafts cannot", "At k = 2, SRPO and DPO cannot be told"),
    ],
)
def test_the_finding_follows_the_interval(low: float, difference: float, high: float, own: str, against: str) -> None:
    pairs = ((Side("srpo", 0), own), (Side("dpo", 2), against))
    for b, opening in pairs:
        text = comparison(low, difference, high, a=Side("srpo", 2), b=b).sentence(LABELS, 0.95)
        assert text.startswith(opening)
        assert f"{points(difference)} points (95 % interval {points(low)} to {points(high)}; n = 1,000)." in text
        assert percent(0.4 + difference) in text
        assert percent(0.4) in text


def test_sentences_name_both_sides() -> None:
    better = comparison(0.01, 0.05, 0.09, a=Side("srpo", 1), b=Side("srpo", 0), seeds=3)
    assert better.sentence(LABELS, 0.9) == (
        "Revision helps SRPO: 45.0 % after 1 revision against 40.0 % for its drafts, +5.0 points "
        "(90 % interval +1.0 to +9.0; n = 3,000; 3 seeds from +5.0 to +7.0)."
    )
    later = comparison(0.01, 0.05, 0.09, a=Side("srpo", 5), b=Side("srpo", 2))
    assert "after 5 revisions against 40.0 % for its answers after 2 revisions" in later.sentence(LABELS, 0.95)
    uneven = comparison(0.01, 0.05, 0.09, a=Side("srpo", 5), b=Side("other", 0))
    assert uneven.sentence(LABELS, 0.95).startswith("SRPO at k = 5 does better than other at k = 0: 45.0 % against")


def with_counts(
    difference: float, low: float, high: float, *, n: int, higher: int, lower: int, changed: int, b: Side
) -> SystemComparison:
    pool = Difference(POOL, n, 0.4 + difference, 0.4, difference, low, high, 0.002, higher, lower, changed)
    return SystemComparison(Side("srpo", 2), b, "in", 0.0, pool, (pool,))


def test_few_changed_answers_show_nothing() -> None:
    few = with_counts(0.125, 0.01, 0.375, n=8, higher=1, lower=0, changed=1, b=Side("srpo", 0))
    assert few.finding == "level"
    assert few.sentence(LABELS, 0.95).endswith(
        "n = 8; 1 corrected, 0 broken; 1 of 8 answers differ: too few changed answers to tell)."
    )
    same_scores = with_counts(0.0, 0.0, 0.0, n=800, higher=0, lower=0, changed=640, b=Side("dpo", 2))
    assert "0 of 800 scores differ: too few to tell" in same_scores.sentence(LABELS, 0.95)
    # Control: six changed answers, all of them better, can show a difference.
    enough = with_counts(0.1, 0.01, 0.2, n=60, higher=6, lower=0, changed=6, b=Side("srpo", 0))
    assert enough.finding == "better"
    assert "too few" not in enough.sentence(LABELS, 0.95)
    level = with_counts(0.01, -0.1, 0.2, n=60, higher=12, lower=11, changed=30, b=Side("dpo", 2))
    assert "12 higher, 11 lower; enough to show 0.2 points)" in level.sentence(LABELS, 0.95)


def test_the_strongest_opponent_comes_first_and_bounds_are_none() -> None:
    cells = samples.cells(prompts=60, seeds=1)
    scored = grouped(score(cells, {"exact_match": JUDGES["exact_match"]}))
    for bounds in ((), ("DPO",)):
        results = summarise(scored, usual_questions(scored, "SRPO"), resampling=samples.QUICK, bounds=bounds)
        for split in ("in", "out"):
            means = {name: results.curve(name, split, 0.0)[3]["mean"] for name in ("DPO", "base") if name not in bounds}
            means["SRPO"] = results.curve("SRPO", split, 0.0)[0]["mean"]  # its own drafts
            strongest = results.strongest(split, 0.0)
            assert strongest is not None
            assert strongest.pool.b == pytest.approx(max(means.values()))
            assert strongest.b.system not in bounds
        first = [sentence for sentence in results.verdict if "The strongest opponent is " in sentence]
        assert len(first) == 2
        assert "The strongest opponent is " in results.verdict[0]
    results = summarise(scored, usual_questions(scored, "SRPO")[:1], resampling=samples.QUICK)
    assert "strongest" not in results.verdict[0]  # control: one opponent needs no name


def test_counts_of_a_comparison_equal_a_plain_loop() -> None:
    cells = samples.cells(prompts=60, seeds=2)
    scored = grouped(score(cells, {"exact_match": JUDGES["exact_match"]}))
    results = summarise(scored, usual_questions(scored, "SRPO"), resampling=samples.QUICK)
    for each in results.comparisons:
        texts = []
        for seed in (0, 1):
            sides = (cells[seed, side.system, each.split, 0.0] for side in (each.a, each.b))
            texts += [
                (a.after(each.a.revision).text, b.after(each.b.revision).text, a.meta["gold"])
                for a, b in zip(*sides, strict=True)
            ]
        assert each.pool.changed == sum(a != b for a, b, _ in texts)
        assert each.pool.higher == sum(a == gold != b for a, b, gold in texts)
        assert each.pool.lower == sum(b == gold != a for a, b, gold in texts)


@pytest.mark.parametrize(("text", "fact"), [("0", "gave no answer a point"), ("1", "gave every answer a full point")])
def test_constant_scores_are_a_caution(text: str, fact: str) -> None:
    rows = [Trail(str(i), (Answer(text, 1), Answer(text, 1)), meta={"gold": "1"}) for i in range(20)]
    scored = grouped(score({(0, "a", "all", None): rows}, {"exact_match": JUDGES["exact_match"]}))
    (sentence,) = summarise(scored, resampling=samples.QUICK).cautions
    assert sentence.startswith(f"exact_match {fact}: its scores cannot compare these systems.")
    mixed = [*rows[:-1], Trail("x", (Answer("1", 1), Answer("0", 1)), meta={"gold": "1"})]
    scored = grouped(score({(0, "a", "all", None): mixed}, {"exact_match": JUDGES["exact_match"]}))
    assert not summarise(scored, resampling=samples.QUICK).cautions


def test_the_verdict_names_split_and_temperature() -> None:
    results = samples.results(prompts=30, temperatures=(0.0, 0.7))
    assert len(results.verdict) == len(results.comparisons)
    assert results.verdict[0].startswith("In distribution, temperature 0. ")
    assert any(sentence.startswith("Out of distribution, temperature 0.7. ") for sentence in results.verdict)


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "+50.0"), (-0.031, "−3.1"), (0.0004, "0.0"), (-0.0004, "0.0"), (0, "0.0")]
)
def test_points(share: float, text: str) -> None:
    assert points(share) == text


def test_json_round_trip(tmp_path: Path) -> None:
    results = samples.results(prompts=20, temperatures=(0.0, None))
    write_file(tmp_path / "results.json", as_json(results).encode())
    assert read_results(tmp_path / "results.json") == results
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["verdict"] == results.verdict
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_csv_has_every_row_and_number() -> None:
    results = samples.results(prompts=20, temperatures=(0.0, None))
    read = list(csv.DictReader(io.StringIO(as_csv(results.rows))))
    assert len(read) == len(results.rows)
    for line, row in zip(read, results.rows, strict=True):
        mean, low, high = row["secondary"]["per_character"]
        flat = {
            **{key: value for key, value in row.items() if key != "secondary"},
            "per_character_mean": mean,
            "per_character_low": low,
            "per_character_high": high,
        }
        assert line == {key: "" if value is None else str(value) for key, value in flat.items()}
    assert as_csv([]).strip() == ""


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"rows": [], "comparisons": [{}]}', "\xff"])
def test_other_files_are_not_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"results\.json: not results"):
        read_results(tmp_path / "results.json")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        writable_folder(tmp_path / "file" / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / "file" / "x", b"")
