"""Results: sentences that follow the numbers, and files that read back as written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from srpo.disk import writable_folder, write_file
from srpo.errors import DataError, InputError, OutputError
from srpo.score.results import POOL, Difference, Side, SystemComparison, percent, points
from srpo.score.results_file import as_csv, as_json, read_results
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
