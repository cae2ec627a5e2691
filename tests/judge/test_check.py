"""`srpo judge check`: each bias of a judge changes the measure for that bias and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.data.read import Pair, read_pairs
from srpo.errors import ConfigError, DataError, SRPOError, UsageError
from srpo.judge.check import check_judge, sample
from tests.judge import judge_server as js
from tests.judge.judge_server import judge_server, llm_judge

# The better is the longer in a third, the shorter in a third, as long in a third.
PAIRS = [
    Pair(f"question {n}", chosen="good" + " and more" * (n % 3 == 0), rejected="evil" + " and more" * (n % 3 == 1))
    for n in range(24)
]


def measured(judge: js.Judge, runs: int = 1, **options: Any) -> dict[str, float]:
    with judge_server(judge) as server:
        checked = check_judge(lambda run: llm_judge(server, run=run, **options), PAIRS, runs=runs)
    return {name: round(measure.value, 4) for name, measure in checked.measures.items()}


FAIR = {"ties": 0, "unscored": 0, "flips": 0, "first_shown": 0.5}
ALL_RIGHT = {"accuracy": 1, "longer": 0.5, "accuracy_longer": 1, "accuracy_shorter": 1, "length_bias": 0}


def test_an_honest_judge_has_full_accuracy_and_no_bias() -> None:
    assert measured(js.honest, runs=2) == {**FAIR, **ALL_RIGHT, "disagreement": 0}


def test_a_verbose_judge_is_read_correctly() -> None:
    assert measured(js.verbose) == {**FAIR, **ALL_RIGHT}


def test_position_bias_gives_accuracy_50_and_flips_100() -> None:
    found = measured(js.position_biased)
    assert found == {
        **{name: 0.5 for name in ("accuracy", "longer", "accuracy_longer", "accuracy_shorter")},
        **{"ties": 1, "unscored": 0, "flips": 1, "first_shown": 1, "length_bias": 0},
    }
    # In one order it seems to have an opinion; the coin keeps it from being always right or always wrong.
    one = measured(js.position_biased, orders="one")
    assert "flips" not in one
    assert one["ties"] == 0
    assert 0.2 < one["accuracy"] < 0.8


def test_length_bias_shows_only_in_the_length_measures() -> None:
    assert measured(js.length_biased) == {
        **FAIR,
        **{"ties": 0.3333, "accuracy": 0.5, "longer": 1, "accuracy_longer": 1, "accuracy_shorter": 0, "length_bias": 1},
    }


def test_a_judge_that_refuses_everything_has_only_the_unscored_measure() -> None:
    with judge_server(js.refusing) as server:
        checked = check_judge(lambda run: llm_judge(server), PAIRS)
    assert checked.measures["unscored"].value == 1
    assert checked.reasons == {"no verdict": 24}
    assert checked.measures["accuracy"].of == checked.measures["length_bias"].of == 0
    assert json.loads(checked.to_json())["measures"]["accuracy"] == {"value": None, "low": None, "high": None, "of": 0}
    assert "NaN" not in checked.to_json()


def test_disagreement_between_two_runs_is_measured() -> None:
    turns: dict[str, int] = {}

    def fickle(seen: js.Seen) -> str:
        turns[seen.prompt] = turns.get(seen.prompt, -1) + 1  # 0, 1: the orders of run 0; 2, 3: of run 1
        return seen.verdict("tie") if seen.prompt == "question 0" and turns[seen.prompt] > 1 else js.honest(seen)

    assert measured(fickle, runs=2)["disagreement"] == round(1 / 24, 4)


def test_the_order_shown_does_not_depend_on_the_label() -> None:
    ahead = check_judge(lambda run: js_scores(), PAIRS).better_first
    turned = [Pair(pair.prompt, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
    assert [not first for first in check_judge(lambda run: js_scores(), turned).better_first] == list(ahead)
    assert {*ahead} == {True, False}


def js_scores() -> Any:
    from srpo.judge.load import ScoreJudge

    return ScoreJudge("goodness", lambda prompt, answer, gold: min(1.0, answer.count("good")))


def test_a_sample_keeps_the_order_of_the_pairs() -> None:
    drawn = sample(PAIRS, 5)
    assert len(drawn) == 5
    assert drawn == sorted(drawn, key=PAIRS.index) == sample(PAIRS, 5)
    assert sample(PAIRS, 5, seed=1) != drawn
    assert sample(PAIRS, None) == sample(PAIRS, 99) == PAIRS
    with pytest.raises(DataError, match="no pairs"):
        check_judge(lambda run: js_scores(), [])


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in PAIRS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_prints_what_it_found(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with judge_server(js.position_biased) as server:
        words = ["judge", "check", "--judge", "llm", "--judge_base_url", server.url, "--judge_model", "m"]
        words += [
            "--pairs",
            str(pairs_file),
            "--price_in",
            "1",
            "--price_out",
            "2",
            "--max_cost",
            "1",
            "--output",
            "found.json",
        ]
        assert run([*words, "--limit", "20"]) == 0
        asked = len(server.bodies)
        assert run([*words, "--limit", "20"]) == 0
        assert len(server.bodies) == asked == 40
    out = capsys.readouterr().out
    assert "accuracy          50.0 [50.0, 50.0] n=20" in out
    assert "flips             100.0 [83.2, 100.0] n=20" in out
    assert "40 calls, 4,000 tokens read, 400 written, cost 0.0048" in out
    assert json.loads((tmp_path / "found.json").read_text())["record"]["model"] == "m"
    assert (tmp_path / "verdicts.jsonl").read_text().count("\n") == 40


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--judge", "llm"], ConfigError, "no default, since any might cost money"),
        (["--judge", "numeric", "--judge_model", "m"], ConfigError, "numeric asks no server"),
        (["--judge", "numerik"], ConfigError, "did you mean 'numeric'"),
        (["--judge", "exact_match"], DataError, "exact_match, row 1: the gold answer is NoneType"),
        (
            ["--judge", "llm", "--judge_base_url", "http://localhost:1", "--judge_model", "m", "--judge_body", "[]"],
            ConfigError,
            "expected a mapping",
        ),
        ([], UsageError, "no judge"),
    ],
)
def test_invalid_settings_are_errors_with_a_fix(
    pairs_file: Path, words: list[str], kind: type[SRPOError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        run(["judge", "check", "--pairs", str(pairs_file), *words])


def test_an_unknown_act_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'check'"):
        run(["judge", "chekc"])
    assert run(["judge", "--help"]) == 0


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["llmbar.jsonl", "pandalm_test.jsonl"])
def test_real_pairs_show_length_bias(name: str) -> None:
    """A judge that always names the longer answer, on real pairs: right where that is right, wrong where it is not."""
    if not os.environ.get("SRPO_REAL_DATA"):
        pytest.skip("SRPO_REAL_DATA names no folder")
    pairs = read_pairs(Path(os.environ["SRPO_REAL_DATA"]) / name, rejects=[])
    with judge_server(js.length_biased) as server:
        checked = check_judge(lambda run: llm_judge(server, concurrency=8), pairs)
    found = {name: measure.value for name, measure in checked.measures.items()}
    print({name: round(100 * value, 1) for name, value in found.items()})
    assert (found["unscored"], found["flips"], found["first_shown"]) == (0, 0, 0.5)
    assert (found["longer"], found["accuracy_longer"], found["accuracy_shorter"]) == (1, 1, 0)
    shorter = sum(len(pair.chosen) < len(pair.rejected) for pair in pairs)
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    assert found["accuracy"] == pytest.approx((longer + 0.5 * (len(pairs) - longer - shorter)) / len(pairs))
