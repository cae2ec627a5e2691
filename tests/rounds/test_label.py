"""Trails and a judge become preference pairs that every reader takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from srpo import read_pairs
from srpo.errors import DataError, InputError, OutputError
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.revise.trail import Answer, Trail
from srpo.rounds.label import LabelCounts, LabelSettings, label, label_file, read_counts


class Digits:
    """Prefers the larger number, calls multiples of ten equal, and has no word for what is no number."""

    identity = "digits"

    def __init__(self) -> None:
        self.asked: list[AnswerPair] = []

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        for each in comparisons:
            self.asked.append(each)
            if not (each.first.isdigit() and each.second.isdigit()):
                yield Verdict(None, reason="no number")
            else:
                one, other = int(each.first), int(each.second)
                yield Verdict(0.5 if one % 10 == other % 10 == 0 else float(one > other))


def trail(*texts: str, prompt: object = "p", **meta: object) -> Trail:
    return Trail(prompt, tuple(Answer(text, 1) for text in texts), meta=dict(meta))


TRAILS = [
    trail("1", "2", "3", gold="9"),
    trail("5", "4", prompt="q", source="here"),
    trail("10", "20", prompt="r"),
    trail("1", "one", prompt="s"),
    trail("7", "7", prompt="t"),
]


def test_preferences_become_rows_and_the_rest_is_counted() -> None:
    rows, account = label(TRAILS, Digits(), LabelSettings())
    pairs = {(row["prompt"], row["chosen"], row["rejected"], row["made_by"]["kind"]) for row in rows}
    assert pairs == {
        ("p", "2", "1", "draft-revision"),
        ("p", "3", "2", "revision-revision"),
        ("q", "5", "4", "draft-revision"),
    }
    assert account == LabelCounts(
        found={"draft-revision": 4, "revision-revision": 1},
        identical={"draft-revision": 1},
        asked={"draft-revision": 4, "revision-revision": 1},
        ties=1,
        unscored={"no number": 1},
        pairs={"draft-revision": 2, "revision-revision": 1},
        later_better={"draft-revision": 1, "revision-revision": 1},
    )
    assert (account.labels, account.informative) == (5, 3 / 5)


def test_answers_of_the_prompts_own_row_are_not_taken_for_the_judged_ones() -> None:
    """Prompts may come from a file of pairs, as those of `srpo rounds` do without `--sample_prompts`."""
    [row], _ = label([trail("1", "2", prompt="p", chosen="a", rejected="b", gold="a")], Digits(), LabelSettings())
    assert (row["chosen"], row["rejected"], row["gold"]) == ("2", "1", "a")
    [pair] = read_pairs([row])
    assert (pair.chosen, pair.rejected) == ("2", "1")


def test_the_number_of_labels_is_limited() -> None:
    judge = Digits()
    _, account = label(TRAILS, judge, LabelSettings(labels=2))
    assert len(judge.asked) == account.labels == 2


def test_rows_keep_columns_and_origin() -> None:
    rows, _ = label(TRAILS, Digits(), LabelSettings())
    row = next(row for row in rows if row["prompt"] == "q")
    assert row["source"] == "here"
    assert row["made_by"] == {"kind": "draft-revision", "judge": "digits", "later_better": False}


def test_every_reader_of_pairs_reads_the_file(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    source, target = tmp_path / "trails.jsonl", tmp_path / "pairs.jsonl"
    source.write_text("".join(each.to_json() + "\n" for each in TRAILS), "utf-8")
    account = label_file(str(source), str(target), Digits(), LabelSettings())
    assert read_counts(target) == account
    assert len(read_pairs(target)) == sum(account.pairs.values()) == 3
    source.write_text(trail("1", "2", prompt=messages, tools=tools).to_json() + "\n", "utf-8")
    label_file(str(source), str(target), Digits(), LabelSettings())
    (chat,) = read_pairs(target)
    assert (chat.prompt, chat.chosen, chat.tools) == (messages, "2", tools)
    assert chat.meta["made_by"]["kind"] == "draft-revision"


def test_equal_trails_give_an_equal_file(tmp_path: Path) -> None:
    made = []
    for name, order in (("one", TRAILS), ("other", TRAILS[::-1])):
        source, target = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.pairs.jsonl"
        source.write_text("".join(each.to_json() + "\n" for each in order), "utf-8")
        label_file(str(source), str(target), Digits(), LabelSettings(labels=4, seed=3))
        made.append(target.read_bytes())
    assert made[0] == made[1]


def test_no_preference_is_an_error_with_counts(tmp_path: Path) -> None:
    source = tmp_path / "trails.jsonl"
    source.write_text(trail("7", "7").to_json() + "\n", "utf-8")
    with pytest.raises(DataError, match="1 identical"):
        label_file(str(source), str(tmp_path / "pairs.jsonl"), Digits(), LabelSettings())
    assert not (tmp_path / "pairs.jsonl").exists()
    with pytest.raises(InputError, match="no such file"):
        label_file(str(tmp_path / "none.jsonl"), str(tmp_path / "pairs.jsonl"), Digits(), LabelSettings())
    source.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"trails\.jsonl:1: not a trail"):
        label_file(str(source), str(tmp_path / "pairs.jsonl"), Digits(), LabelSettings())


def test_an_unwritable_target_fails_before_judging(tmp_path: Path) -> None:
    trails = tmp_path / "trails.jsonl"
    trails.write_text("".join(each.to_json() + "\n" for each in TRAILS), "utf-8")
    judge = Digits()
    for target in (tmp_path, tmp_path / "nodir" / "pairs.jsonl"):
        with pytest.raises(OutputError, match="cannot be written"):
            label_file(str(trails), str(target), judge, LabelSettings())
    assert judge.asked == []


@pytest.mark.parametrize("content", [None, "{", "[]", '{"votes": 3}'])
def test_missing_or_damaged_counts_are_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "pairs.jsonl.labels.json").write_text(content, "utf-8")
    said = r"pairs\.jsonl\.labels\.json: label counts cannot be read: .*; delete .*pairs.jsonl"
    with pytest.raises(InputError, match=said):
        read_counts(tmp_path / "pairs.jsonl")
