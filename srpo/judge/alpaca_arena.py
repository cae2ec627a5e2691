"""Reads and writes the files of AlpacaEval and Arena-Hard: model outputs, questions and verdicts.

The forms of a file, each with the keys of one row:

trails              output of `srpo revise`: {prompt, answers, stopped, meta}
alpaca              model outputs: [{instruction, output, generator}]
arena               model_answer/NAME.jsonl: {uid, ans_id, model, messages}, the answer as {answer: text}
arena questions     question.jsonl: {uid, prompt, category, …}, or the older {question_id, turns, …}
annotations         verdicts: [{instruction, output_1, generator_1, output_2, …, preference}], preference 1 to 2
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srpo.data.files import json_rows
from srpo.data.pictures import refuse_pictures
from srpo.data.values import Prompt, Unusable, prompt_text
from srpo.errors import ConfigError, DataError, did_you_mean
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.revise.trail import Answer, Trail

Row = Mapping[str, Any]
FORMS = ("alpaca", "arena", "trails", "prompts")


class Annotation(NamedTuple):
    """One verdict of AlpacaEval; `preference` runs from 1 (first output better) to 2 (second), None if unscored."""

    instruction: str
    output_1: str
    output_2: str
    preference: float | None


def read_answers(path: str | Path) -> list[Trail]:
    """Reads a file of answers, recognised by its keys: trails, AlpacaEval outputs, Arena-Hard answers or questions.

    Returns one trail (a prompt with its draft and revisions) per row.

    Answers of other tools become trails with a draft only; questions become trails without an answer.

    Raises:
        InputError: the file cannot be read.
        DataError: a row has a form other than these four, or there are no rows.
    """
    trails = [_trail(row, where) for where, row in _rows(path)]
    if not trails:
        raise DataError("no rows", where=str(path), expected="trails, AlpacaEval outputs or Arena-Hard answers")
    return trails


def read_annotations(path: str | Path) -> list[Annotation]:
    """Reads a file of AlpacaEval's annotations: verdicts on two outputs for one instruction, as one record per row.

    Raises:
        InputError: the file cannot be read.
        DataError: a row is not an annotation, or there are no rows.
    """
    found = [_annotation(row, where) for where, row in _rows(path)]
    if not found:
        raise DataError("no annotations", where=str(path))
    return found


def alpaca_outputs(trails: Iterable[Trail], *, generator: str, revisions: int) -> str:
    """Returns the text of a file of AlpacaEval's model outputs: the answer to each prompt after some revisions.

    Args:
        trails: prompts with their drafts and revisions.
        generator: the system's name.
        revisions: number of revisions after which the answer is taken; a rejected revision leaves the answer before it.

    Example:
        >>> print(alpaca_outputs([Trail("2+2=", (Answer("5", 2), Answer("4", 2)))], generator="ours", revisions=1))
        [
          {
            "instruction": "2+2=",
            "output": "4",
            "generator": "ours"
          }
        ]
    """
    rows = [
        {"instruction": _text_of(trail.prompt), "output": trail.after(revisions).text, "generator": generator}
        for trail in trails
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def _text_of(prompt: Prompt) -> str:
    refuse_pictures(prompt, "AlpacaEval")
    return prompt_text(prompt)


def arena_answers(trails: Iterable[Trail], *, model: str, revisions: int) -> str:
    """Returns the text of an Arena-Hard model_answer file: the answer to each prompt after some revisions.

    `token_len` counts tokens of the model that answered. Arena-Hard's own script adds the Markdown counts for style.

    Args:
        trails: prompts with their drafts and revisions.
        model: the system's name.
        revisions: number of revisions after which the answer is taken.

    Raises:
        DataError: a trail's `meta` has no question uid.
    """
    rows = []
    for number, trail in enumerate(trails, 1):
        uid = trail.meta.get("uid", trail.meta.get("question_id"))
        if uid is None:
            expected = "trails made from Arena-Hard's question.jsonl, which keep the uid"
            raise DataError("no uid", where=f"trail {number}", expected=expected)
        answer = trail.after(revisions)
        refuse_pictures(trail.prompt, "Arena-Hard")
        turns = [{"role": "user", "content": trail.prompt}] if isinstance(trail.prompt, str) else trail.prompt
        rows.append(
            {
                "uid": uid,
                "ans_id": hashlib.sha256(json.dumps([uid, model, answer.text]).encode()).hexdigest()[:22],
                "model": model,
                "messages": [*turns, {"role": "assistant", "content": {"answer": answer.text}}],
                "metadata": {"token_len": answer.tokens} if answer.tokens else {},
            }
        )
    return _jsonl(rows)


def alpaca_annotations(
    comparisons: Sequence[AnswerPair], verdicts: Sequence[Verdict], names: tuple[str, str], judge: str
) -> str:
    """Returns the text of a file of AlpacaEval's annotations for judged pairs; an unscored pair has a null preference.

    Args:
        comparisons, verdicts: the judged pairs of answers, and one verdict per pair.
        names: names of the systems that wrote the first and the second answers.
        judge: the judge's identity, AlpacaEval's "annotator".
    """
    rows = [
        {
            "instruction": _text_of(pair.prompt),
            "output_1": pair.first,
            "generator_1": names[0],
            "output_2": pair.second,
            "generator_2": names[1],
            "annotator": judge,
            "preference": None if verdict.score is None else 2 - verdict.score,
        }
        for pair, verdict in zip(comparisons, verdicts, strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def written_as(form: str, trails: Sequence[Trail], *, name: str, revisions: int) -> str:
    """Returns the text of a file of answers in one of the formats "alpaca", "arena", "trails" and "prompts".

    Args:
        form: the format; "prompts" is the input of `srpo revise`, with the columns kept in `meta`.
        name: the system's name in AlpacaEval's and Arena-Hard's files; other forms need no name.
        revisions: number of revisions after which AlpacaEval and Arena-Hard get the answer.

    Raises:
        ConfigError: the form does not exist, or `name` is empty for AlpacaEval or Arena-Hard.
        DataError: trails without an answer, except for "prompts", or without Arena-Hard's uid for "arena".
    """
    if form not in FORMS:
        raise ConfigError(
            f"{form!r}", where="form", expected="one of " + ", ".join(FORMS), fix=did_you_mean(form, FORMS)
        )
    if form in ("alpaca", "arena") and not name:
        raise ConfigError("no name", where=f"form {form}", expected="the system's name in that file")
    if form == "prompts":
        return _jsonl({**trail.meta, "prompt": trail.prompt} for trail in trails)
    if missing := sum(not trail.answers for trail in trails):
        fix = "questions become prompts; `srpo revise` answers them"
        raise DataError(f"{missing} of {len(trails)} rows have no answer", where=f"form {form}", fix=fix)
    if form == "trails":
        return "".join(trail.to_json() + "\n" for trail in trails)
    if form == "alpaca":
        return alpaca_outputs(trails, generator=name, revisions=revisions)
    return arena_answers(trails, model=name, revisions=revisions)


def _jsonl(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    for where, row in json_rows(Path(path)):
        if isinstance(row, Unusable):
            raise DataError(str(row), where=where + row.column)
        if not isinstance(row, Mapping):
            raise DataError(f"a {type(row).__name__}", where=where, expected="an object")
        yield where, row


def _annotation(row: Row, where: str) -> Annotation:
    texts = [row.get(key) for key in ("instruction", "output_1", "output_2")]
    preference = row.get("preference")
    if isinstance(preference, float | int) and not (1 <= preference <= 2):
        # AlpacaEval writes nan or -1 for a pair without a verdict.
        preference = None if preference != preference or preference == -1 else "out of range"
    complete = all(isinstance(text, str) for text in texts) and "preference" in row
    if not complete or not isinstance(preference, float | int | None):
        expected = "instruction, output_1, output_2 and a preference from 1 to 2"
        raise DataError("no annotation", where=where, expected=expected)
    instruction, one, two = map(str, texts)
    return Annotation(instruction, one, two, None if preference is None else float(preference))


def _trail(row: Row, where: str) -> Trail:
    if "answers" in row:
        return Trail.from_json(json.dumps(row), where=where)
    if "instruction" in row and isinstance(row.get("output"), str):
        return _draft(row, row["instruction"], row["output"], ("instruction", "output"), where)
    if "messages" in row:
        *before, last = row["messages"] or [None]
        answer = last.get("content") if isinstance(last, Mapping) and last.get("role") == "assistant" else None
        text = answer.get("answer") if isinstance(answer, Mapping) else answer
        prompt = before[0]["content"] if len(before) == 1 and before[0].get("role") == "user" else before
        return _draft(row, prompt, text, ("messages",), where)
    if "turns" in row:
        turns = [turn["content"] for turn in row["turns"]]
        if len(turns) != 1:
            raise DataError(f"{len(turns)} turns", where=where, expected="questions of one turn")
        return Trail(turns[0], (), meta=_without(row, "turns"))
    if "uid" in row and isinstance(row.get("prompt"), str):
        return Trail(row["prompt"], (), meta=_without(row, "prompt"))
    has = ", ".join(map(repr, row)) or "nothing"
    raise DataError(f"an object with {has}", where=where, expected="a trail, an AlpacaEval output or an Arena-Hard row")


def _draft(row: Row, prompt: object, text: object, taken: tuple[str, ...], where: str) -> Trail:
    if not isinstance(prompt, str | list) or not isinstance(text, str):
        raise DataError("no prompt and answer as text", where=where)
    return Trail(prompt, (Answer(text, 0),), meta=_without(row, *taken))


def _without(row: Row, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}
