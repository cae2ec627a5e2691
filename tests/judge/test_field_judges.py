"""JSON schemas, mathematics and GLEU as judges: worked examples and hostile answers."""

from __future__ import annotations

import logging
import threading

import pytest

from srpo.errors import DataError
from srpo.judge import single
from srpo.judge.single import gleu, json_schema, load_judge, math, score_answer

ORDER = {
    "type": "object",
    "required": ["item", "count"],
    "properties": {"item": {"type": "string"}, "count": {"type": "integer", "minimum": 1}},
    "additionalProperties": False,
}
WHOLE = '{"item": "bolt", "count": 3}'


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (WHOLE, 1),
        (f"Here it is:\n```json\n{WHOLE}\n```\nAnything else?", 1),
        (f"```\r\n{WHOLE}\r\n```", 1),
        ('{"item": "bolt", "count": 0}', 0),
        ('{"item": "bolt", "count": "3"}', 0),
        ('{"item": "bolt", "count": true}', 0),
        ('{"item": "bolt"}', 0),
        ('{"item": "bolt", "count": 3, "price": 1}', 0),
        (f"{WHOLE} or so", 0),
        (f"```json\n{WHOLE}\n```\n```json\n{WHOLE}\n```", 0),  # two answers are none
        ('{"item": "bolt", "count": 0, "count": 3}', 0),  # parsers disagree about repeated keys
        ('{"item": "bolt", "count": NaN}', 0),
        ('{"item": "bolt", "count": Infinity}', 0),
        ("{'item': 'bolt', 'count': 3}", 0),
        ("", 0),
        ("[" * 10**5, 0),
        ("[" * 10**5 + "]" * 10**5, 0),
        ('{"item": "bolt", "count": ' + "9" * 10**5 + "}", 0),
        ("\ufeff" + WHOLE, 0),
        ('{"item": "\ud800", "count": 1e400}', 0),
    ],
)
def test_json_schema_worked_examples(answer: str, score: float) -> None:
    assert json_schema("?", answer, ORDER) == score


def test_schemas_may_be_text_and_formats_are_checked() -> None:
    judge = load_judge("json_schema")
    schema = '{"type": "string", "format": "ipv4"}'
    assert [judge("?", answer, schema) for answer in ('"127.0.0.1"', '"localhost"')] == [1.0, 0.0]
    recursive = {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}}
    assert [judge("?", answer, recursive) for answer in ("[[], [[]]]", "[1]")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (None, "not a JSON schema"),
        ("type: object", "not a JSON schema"),
        ({"type": "objekt"}, "not a JSON schema"),
        (3, "not a JSON schema"),
        ({"$ref": "http://localhost:9/schema.json"}, "cannot be resolved"),  # never fetched
        ({"$ref": "#/missing"}, "cannot be resolved"),
    ],
)
def test_an_invalid_schema_is_an_error(schema: object, reason: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{reason}"):
        score_answer(json_schema, "?", WHOLE, schema, where="a.jsonl:1")


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("0.5", "1/2", 1),
        (r"So the answer is $\frac{2}{4}$.", "0.5", 1),
        (r"First $x = 7$. Hence \boxed{\dfrac{1}{2}}.", r"\frac12", 1),
        ("1,240", "#### 1240", 1),
        ("3.0", 3, 1),
        ("0.25", 0.25, 1),
        (r"$(x+1)^2$", r"x^2+2x+1", 1),
        (r"$\{2, 1\}$", r"\{1, 2\}", 1),
        (r"$(x-1)^2$", r"x^2+2x+1", 0),
        (r"\boxed{1} or \boxed{2}", "1", 0),  # a list of guesses is not an answer
        (r"It is $1$ or $2$ or $3$", "2", 0),
        ("no number", "2", 0),
        ("", "2", 0),
        (r"\boxed{}", "2", 0),
        ("__import__('os').system('false')", "2", 0),
    ],
)
def test_math_worked_examples(answer: str, gold: object, score: float) -> None:
    assert math("?", answer, gold) == score


@pytest.mark.parametrize("answer", ["$9^{9^{9^{9}}}$", "$" + "(" * 3000 + "1" + ")" * 3000 + "$", "\\boxed{" * 3000])
def test_hostile_mathematics_ends_in_time_and_scores_0(
    answer: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "MATH_SECONDS", 1)
    caplog.set_level(logging.DEBUG)
    assert math("?", answer, "3") == 0
    assert answer not in caplog.text


@pytest.mark.parametrize("gold", [None, [3], ""])
def test_a_gold_answer_that_is_not_mathematics_is_an_error(gold: object) -> None:
    with pytest.raises(DataError):
        math("?", "3", gold)


def test_math_works_outside_the_main_thread() -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(math("?", "$3$", "3")))
    thread.start()
    thread.join()
    assert found == [1.0]


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("the cat sat", "the cat sat", 1),
        ("the cat", "the cat sat", 3 / 6),  # 3 of the gold answer's 6 n-grams
        ("the cat sat", "the cat", 3 / 6),
        ("a b", "c d", 0),
        ("", "the cat", 0),
    ],
)
def test_gleu_worked_examples(answer: str, gold: str, score: float) -> None:
    assert gleu("?", answer, gold) == pytest.approx(score)
