"""Files of AlpacaEval and Arena-Hard: written as these tools read them, read as they write them, errors named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.data.read import read_prompts
from srpo.errors import ConfigError, DataError, InputError
from srpo.judge.alpaca_arena import alpaca_annotations, read_annotations, read_answers, written_as
from srpo.judge.compare import agree, compare, pair_up
from srpo.judge.load import load_pair_judge
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.revise.trail import Answer, Trail

TRAILS = [
    Trail("2+2=", (Answer("5", 2), Answer("4", 3)), meta={"uid": "a", "gold": "4"}),
    Trail("3+3=", (Answer("6 \u2028\n", 2), Answer("7", 2, kept=False)), meta={"uid": "b", "gold": "6"}),
]


def write(path: Path, rows: Any, *, lines: bool = False) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("form", ["alpaca", "arena", "trails"])
def test_written_files_are_read_back(form: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(written_as(form, TRAILS, name="ours", revisions=1), "utf-8")
    back = read_answers(tmp_path / "f")
    assert [trail.prompt for trail in back] == ["2+2=", "3+3="]
    assert [trail.after(1).text for trail in back] == ["4", "6 \u2028\n"]
    assert written_as(form, back, name="ours", revisions=1).count("2+2=") == 1


def test_alpaca_outputs_by_hand() -> None:
    assert json.loads(written_as("alpaca", TRAILS, name="ours", revisions=0)) == [
        {"instruction": "2+2=", "output": "5", "generator": "ours"},
        {"instruction": "3+3=", "output": "6 \u2028\n", "generator": "ours"},
    ]


def test_arena_answers_by_hand() -> None:
    text = written_as("arena", TRAILS, name="ours", revisions=9)
    first = json.loads(text.split("\n")[0])
    assert (first.pop("ans_id"), first) == (
        json.loads(written_as("arena", TRAILS, name="ours", revisions=1).split("\n")[0])["ans_id"],
        {
            "uid": "a",
            "model": "ours",
            "messages": [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": {"answer": "4"}}],
            "metadata": {"token_len": 3},
        },
    )
    others = [json.loads(written_as("arena", TRAILS, name=name, revisions=0).split("\n")[0]) for name in ("a", "b")]
    assert len({other["ans_id"] for other in others}) == 2


def test_arena_questions_become_prompts_and_keep_their_uid(tmp_path: Path) -> None:
    new = {"uid": "q1", "category": "hard_prompt", "subcategory": "coding", "prompt": "Write a loop."}
    old = {"question_id": "q2", "category": "x", "cluster": "y", "turns": [{"content": "Write two."}]}
    path = write(tmp_path / "question.jsonl", [new, old], lines=True)
    out = tmp_path / "prompts.jsonl"
    assert run(["exchange", "--input", str(path), "--output", str(out), "--form", "prompts"]) == 0
    rows = read_prompts(str(out))
    assert [row.prompt for row in rows] == ["Write a loop.", "Write two."]
    trails = [Trail(row.prompt, (Answer("ok", 1),), meta=row.meta) for row in rows]
    written = [json.loads(line) for line in written_as("arena", trails, name="m", revisions=0).splitlines()]
    assert [row["uid"] for row in written] == ["q1", "q2"]
    with pytest.raises(DataError, match="2 of 2 rows have no answer"):
        written_as("arena", read_answers(path), name="m", revisions=0)


def test_annotations_are_written_and_read_back(tmp_path: Path) -> None:
    scores = [1.0, 0.5, 0.0, None]
    items = [AnswerPair(f"q{n}", "a", "b") for n in range(4)]
    text = alpaca_annotations(items, [Verdict(score) for score in scores], ("one", "two"), "judge")
    assert [row["preference"] for row in json.loads(text)] == [1.0, 1.5, 2.0, None]
    assert json.loads(text)[0]["generator_2"] == "two"
    (tmp_path / "a.json").write_text(text)
    assert [each.preference for each in read_annotations(tmp_path / "a.json")] == [1.0, 1.5, 2.0, None]
    graded = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.73}
    missing = {**graded, "preference": -1}  # as AlpacaEval's own cache has it
    read = read_annotations(write(tmp_path / "b.json", [graded, missing]))
    assert [each.preference for each in read] == [1.73, None]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p"}, "an object with 'prompt'"),
        ({}, "an object with nothing"),
        ([], "expected an object"),
        ({"instruction": "p", "output": None}, "an object with 'instruction', 'output'"),
        ({"uid": "a", "messages": []}, "no prompt and answer as text"),
        ({"uid": "a", "messages": [{"role": "user", "content": "p"}]}, "no prompt and answer as text"),
        ({"question_id": "a", "turns": [{"content": "p"}, {"content": "q"}]}, "2 turns"),
        ({"answers": [{"text": 1}]}, ""),
    ],
)
def test_invalid_rows_are_errors_with_their_place(row: Any, said: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [TRAILS[0].__dict__ | {"answers": [{"text": "a", "tokens": 1}]}, row], lines=True
    )
    with pytest.raises(DataError, match=said) as caught:
        read_answers(path)
    assert "rows.jsonl:2" in str(caught.value)


@pytest.mark.parametrize("row", [{"instruction": "q"}, {"instruction": "q", "output_1": "a", "output_2": "b"}, []])
def test_invalid_annotations_are_errors_with_their_place(row: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        read_annotations(write(tmp_path / "a.json", [row]))
    whole = {"instruction": "q", "output_1": "a", "output_2": "b"}
    for preference in (3, 0, "1"):
        with pytest.raises(DataError, match="no annotation"):
            read_annotations(write(tmp_path / "a.json", [{**whole, "preference": preference}]))


def test_invalid_settings_are_errors_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        written_as("alpacca", TRAILS, name="n", revisions=0)
    with pytest.raises(ConfigError, match="no name"):
        written_as("alpaca", TRAILS, name="", revisions=0)
    with pytest.raises(DataError, match="no uid"):
        written_as("arena", [Trail("p", (Answer("a", 1),))], name="n", revisions=0)
    with pytest.raises(InputError):
        read_answers(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_answers(tmp_path / "empty.json")


# ---------------------------------------------------------------------- comparing and agreeing


def test_systems_are_compared_on_common_prompts() -> None:
    others = [Trail("3+3=", (Answer("8", 1),)), Trail("2+2=", (Answer("5", 1),))]
    items = pair_up(TRAILS, others, revisions=1)
    assert items == [AnswerPair("2+2=", "4", "5", "4"), AnswerPair("3+3=", "6 \u2028\n", "8", "6")]
    found = compare(load_pair_judge("numeric"), items)
    assert (found.wins.value, found.wins.of, found.flips.of) == (0.0, 2, 0)
    for wrong, said in (
        (others[:1], "1 prompts only in the first, 0 only in the second"),
        ([*others, others[0]], "1 prompts twice"),
        ([others[0], Trail("2+2=", ())], "1 prompts without an answer"),
    ):
        with pytest.raises(DataError, match=said):
            pair_up(TRAILS, wrong, revisions=1)


def test_agreement_counts_common_pairs_in_either_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(n: int, preference: float | None, turned: bool = False) -> dict[str, Any]:
        a, b = ("b", "a") if turned else ("a", "b")
        return {"instruction": f"q{n}", "output_1": a, "output_2": b, "preference": preference}

    one = write(tmp_path / "1.json", [row(0, 1.0), row(1, 2.0), row(2, 1.5), row(3, 1.0), row(4, None), row(9, 1.0)])
    two = write(tmp_path / "2.json", [row(0, 1.2), row(1, 1.0, True), row(2, 1.5), row(3, 1.9), row(4, 1.0)])
    found = agree(read_annotations(one), read_annotations(two))
    assert (found.pairs, found.same.value, found.same.of) == (5, 0.75, 4)
    # By hand: agreement 3/4; chance: A ½·¼ + tie ¼·¼ + B ¼·½ = 5/16.
    assert found.kappa.value == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    assert run(["judge", "agree", "--first", str(one), "--second", str(two)]) == 0
    out = capsys.readouterr().out
    assert "5 pairs in both files" in out
    assert "the same verdict  75.0" in out
    with pytest.raises(DataError, match="no pair occurs in both"):
        agree(read_annotations(one)[:1], read_annotations(two)[1:])


def test_commands_turn_trails_into_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trails = tmp_path / "ours.jsonl"
    trails.write_text(written_as("trails", TRAILS, name="", revisions=0))
    outputs = tmp_path / "draft.json"
    words = [
        "--input",
        str(trails),
        "--output",
        str(outputs),
        "--form",
        "alpaca",
        "--name",
        "draft",
        "--revisions",
        "0",
    ]
    assert run(["exchange", *words]) == 0
    verdicts = tmp_path / "annotations.json"
    words = ["--first", str(outputs), "--second", str(trails), "--judge", "numeric", "--output", str(verdicts)]
    assert run(["judge", "compare", *words]) == 0
    assert [each.preference for each in read_annotations(verdicts)] == [2.0, 1.5]
    out = capsys.readouterr().out
    assert "ours against draft, by numeric" in out
    assert "wins      75.0" in out
