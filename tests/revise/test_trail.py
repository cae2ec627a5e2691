"""A trail: the answer in hand after each revision, and the round trip through one line of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo import Trail
from srpo.errors import DataError
from srpo.revise.trail import Answer

TRAIL = Trail("2+2=", (Answer("5", 2), Answer("4", 2), Answer("7", 2, kept=False), Answer("6", 2)), meta={"gold": "4"})

answers = st.builds(
    Answer,
    text=st.text(),
    tokens=st.integers(0, 9),
    finished=st.booleans(),
    preferred=st.none() | st.floats(-9, 9),
    kept=st.booleans(),
    seconds=st.floats(0, 9),
    forward_tokens=st.integers(0, 99),
)
prompts = st.text() | st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), min_size=1)
trails = st.builds(
    Trail,
    prompts,
    st.lists(answers, min_size=1).map(tuple),
    st.sampled_from(["revisions", "fixed point"]),
    st.dictionaries(st.text(), st.none() | st.integers() | st.text()),
)


@pytest.mark.parametrize(("revisions", "text"), [(0, "5"), (1, "4"), (2, "4"), (3, "6"), (4, "6"), (99, "6")])
def test_the_answer_in_hand_after_each_revision(revisions: int, text: str) -> None:
    assert TRAIL.after(revisions).text == text


def test_the_answer_in_hand_without_kept_revisions() -> None:
    assert Trail("p", (Answer("a", 1),)).after(5).text == "a"
    refused = Trail("p", (Answer("a", 1), Answer("b", 1, kept=False), Answer("c", 1, kept=False)))
    assert [refused.after(k).text for k in range(4)] == ["a"] * 4


@given(trails)
def test_json_round_trip_on_one_line(trail: Trail) -> None:
    line = trail.to_json()
    assert "\n" not in line
    assert "\r" not in line
    assert Trail.from_json(line) == trail


def test_the_line_is_plain_json() -> None:
    row = json.loads(TRAIL.to_json())
    assert list(row) == ["prompt", "answers", "stopped", "meta"]
    assert (row["prompt"], row["stopped"], row["meta"]) == ("2+2=", "revisions", {"gold": "4"})
    assert row["answers"][2] == {
        "text": "7",
        "tokens": 2,
        "finished": True,
        "preferred": None,
        "kept": False,
        "seconds": 0.0,
        "forward_tokens": 0,
    }
    assert "é" in Trail("é", (Answer("è", 1),)).to_json()


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(TRAIL.to_json()), **changes})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"prompt": "p"}',
        changed(answers=None),
        changed(answers=["a"]),
        changed(answers=[{"text": "a"}]),
        changed(answers=[{"text": "a", "tokens": 1, "colour": "red"}]),
        changed(answers=[]),
        changed(answers=[{"text": None, "tokens": 1}]),
        changed(stopped=7),
        changed(meta=None),
        changed(meta=["gold"]),
        "[" * 100_000,
    ],
)
def test_other_lines_are_data_errors_with_their_place(line: str) -> None:
    with pytest.raises(DataError) as caught:
        Trail.from_json(line, where="trails.jsonl:7")
    assert str(caught.value).startswith("trails.jsonl:7: ")
    assert "a line written by `srpo revise`" in str(caught.value)


def test_older_rows_without_meta_are_read() -> None:
    row = {key: value for key, value in json.loads(TRAIL.to_json()).items() if key != "meta"}
    assert Trail.from_json(json.dumps(row)).meta == {}
