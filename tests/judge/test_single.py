"""Judges of single answers: scores, loading by name, errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.errors import ConfigError, DataError
from srpo.judge.single import (
    JUDGES,
    edit_similarity,
    exact_match,
    load_judge,
    numeric,
    per_character,
    rouge_l,
    score_answer,
)

DIGITS = st.text("0123456789", max_size=8)


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "share"),
    [
        ("081", "081", 1, 1),
        ("091", "081", 0, 2 / 3),
        ("81", "081", 0, 0),  # positions are counted from the left, as they were written
        ("0811", "081", 0, 3 / 4),
        ("", "081", 0, 0),
        ("", "", 1, 1),
        (" 42\n", "42", 1, 1),
        ("42", 42, 1, 1),
    ],
)
def test_scores_worked_by_hand(answer: str, gold: str | int, exact: float, share: float) -> None:
    assert exact_match("p", answer, gold) == exact
    assert per_character("p", answer, gold) == share


@given(DIGITS, DIGITS)
def test_per_character_is_one_loop_over_positions(answer: str, gold: str) -> None:
    right = 0
    for position in range(max(len(answer), len(gold))):
        if answer[position : position + 1] == gold[position : position + 1]:
            right += 1
    assert per_character("p", answer, gold) == (right / max(len(answer), len(gold)) if answer or gold else 1)
    assert (per_character("p", answer, gold) == 1) == (exact_match("p", answer, gold) == 1)


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("The answer is 42.", "42", 1),
        ("42 is the answer, not 41", "42", 0),  # the last number counts
        ("1,240", 1240, 1),
        ("1,2", "2", 1),  # a list, not a number with groups
        ("12,34", "34", 1),
        ("3.50", "3.5", 1),
        ("1e3", 1000, 1),
        ("-7", "7", 0),
        ("−7", "-7", 1),
        ("3-4", "4", 1),  # what stands there is a difference
        ("$5", 5.0, 1),
        (".5", "0.5", 1),
        ("0.1", 0.1, 1),  # as written, not as a binary fraction
        ("no number", "1", 0),
        ("", "1", 0),
        ("9" * 5000, "9", 0),
        ("1e999999999", "9", 0),  # an exponent of more than three digits is none: nobody waits for the power
        ("10", "#### 10", 1),
    ],
)
def test_numbers_compare_by_value(answer: str, gold: object, score: int) -> None:
    assert numeric("p", answer, gold) == score


@pytest.mark.parametrize("gold", ["none", None, True, float("nan"), [1]])
def test_a_gold_answer_without_a_number_is_an_error(gold: object) -> None:
    with pytest.raises(DataError, match="gold answer"):
        numeric("p", "1", gold)


def levenshtein(a: str, b: str) -> int:
    """The textbook's recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


@given(st.text("ab ", max_size=8), st.text("ab ", max_size=8))
def test_edit_similarity_is_the_distance_over_the_longer(answer: str, gold: str) -> None:
    a, b = answer.strip(), gold.strip()
    longer = max(len(a), len(b))
    assert edit_similarity("p", answer, gold) == pytest.approx(1 - levenshtein(a, b) / longer if longer else 1)


def test_rouge_l_by_hand() -> None:
    # "the cat sat" in order: 3 of 3 words of the answer, 3 of 4 of the gold one; F1 = 2·1·¾ / 1¾. Stems count.
    assert rouge_l("p", "The cat sat", "the cats sat down") == pytest.approx(6 / 7)
    # The order matters, which a bag of words would not see.
    assert rouge_l("p", "sat cat the", "the cat sat down") == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert rouge_l("p", "", "the cat") == 0.0


@pytest.mark.parametrize("gold", [None, True, 4.0, ["4"]])
def test_a_gold_answer_that_is_not_text_is_an_error(gold: object) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: the gold answer is"):
        score_answer(exact_match, "p", "4", gold, where="a.jsonl:3")


def test_judges_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, judge in JUDGES.items():
        assert load_judge(name) is judge
    (tmp_path / "my_own_judge.py").write_text("def shorter(prompt, answer, gold):\n    return len(answer) < 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    judge = load_judge("my_own_judge:shorter")
    assert [score_answer(judge, "p", answer, None) for answer in ("a", "abc")] == [1.0, 0.0]
    assert sys.path[0] != ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exact_mach", "did you mean 'exact_match'"),
        ("", "unknown judge ''"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("math:no_such", "no_such"),
        ("math:", "unknown judge"),
        (":f", "unknown judge"),
        ("math:pi", "expected a function"),
        ("not a module:f", "cannot be loaded"),
    ],
)
def test_an_unknown_judge_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_judge(name)


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan"), None, "1"])
def test_a_score_outside_0_to_1_is_refused(score: object) -> None:
    with pytest.raises(ConfigError, match="expected a number between 0 and 1"):
        score_answer(lambda prompt, answer, gold: score, "p", "a", "a")  # type: ignore[arg-type, return-value]
