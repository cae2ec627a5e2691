"""Answers and verdicts as other tools write and read them: AlpacaEval's files, and Arena-Hard's.

trails              what `srpo revise` writes: {prompt, answers, stopped, meta}
alpaca              model outputs: [{instruction, output, generator}]
arena               model_answer/NAME.jsonl: {uid, ans_id, model, messages}, the answer as {answer: text}
arena questions     question.jsonl: {uid, prompt, category, …}, or the older {question_id, turns, …}
annotations         verdicts: [{instruction, output_1, generator_1, output_2, …, preference}], 1 to 2, 1.5 a tie
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srpo.data.files import json_rows
from srpo.data.values import Unusable, prompt_text
from srpo.errors import ConfigError, DataError, did_you_mean
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.revise.trail import Answer, Trail

Row = Mapping[str, Any]


class Annotation(NamedTuple):
    """One verdict from outside: 1 to 2, above 1½ where the second output is better; None where there is none."""

    instruction: str
    output_1: str
    output_2: str
    preference: float | None


def read_answers(path: str | Path) -> list[Trail]:
    """Trails, model outputs of AlpacaEval, answers or questions of Arena-Hard; which they are, their keys say.

    Answers from elsewhere become trails of a draft alone; questions become trails without an answer.

    Raises:
        InputError: the file cannot be read.
        DataError: a row is none of these, or there is none.
    """
    trails = [_trail(row, where) for where, row in _rows(path)]
    if not trails:
        raise DataError("no rows", where=str(path), expected="trails, AlpacaEval outputs or Arena-Hard answers")
    return trails


def read_annotations(path: str | Path) -> list[Annotation]:
    """Verdicts as AlpacaEval keeps them.

    Raises:
        InputError: the file cannot be read.
        DataError: a row is no annotation, or there is none.
    """
    found = []
    for where, row in _rows(path):
        texts = [row.get(key) for key in ("instruction", "output_1", "output_2")]
        preference = row.get("preference")
        if isinstance(preference, float | int) and not (1 <= preference <= 2):
            preference = None if preference != preference or preference == -1 else "out of range"
        whole = all(isinstance(text, str) for text in texts) and "preference" in row
        if not whole or not isinstance(preference, float | int | None):
            expected = "instruction, output_1, output_2 and a preference from 1 to 2"
            raise DataError("no annotation", where=where, expected=expected)
        instruction, one, two = map(str, texts)
        found.append(Annotation(instruction, one, two, None if preference is None else float(preference)))
    if not found:
        raise DataError("no annotations", where=str(path))
    return found


def alpaca_outputs(trails: Iterable[Trail], *, generator: str, revisions: int) -> str:
    """The answers after so many revisions as AlpacaEval's model outputs.

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
        {"instruction": prompt_text(trail.prompt), "output": trail.after(revisions).text, "generator": generator}
        for trail in trails
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def arena_answers(trails: Iterable[Trail], *, model: str, revisions: int) -> str:
    """The answers after so many revisions as a file of Arena-Hard's model_answer folder.

    `token_len` is what our tokenizer counts where it did; counts of Markdown for its style control are Arena-Hard's to
    add.

    Raises:
        DataError: a trail's `meta` has no uid of a question.
    """
    lines = []
    for number, trail in enumerate(trails, 1):
        uid = trail.meta.get("uid", trail.meta.get("question_id"))
        if uid is None:
            expected = "trails of Arena-Hard's question.jsonl, which carry it along"
            raise DataError("no uid", where=f"trail {number}", expected=expected)
        answer = trail.after(revisions)
        turns = [{"role": "user", "content": trail.prompt}] if isinstance(trail.prompt, str) else trail.prompt
        row = {
            "uid": uid,
            "ans_id": hashlib.sha256(json.dumps([uid, model, answer.text]).encode()).hexdigest()[:22],
            "model": model,
            "messages": [*turns, {"role": "assistant", "content": {"answer": answer.text}}],
            "metadata": {"token_len": answer.tokens} if answer.tokens else {},
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def alpaca_annotations(
    comparisons: Sequence[AnswerPair], verdicts: Sequence[Verdict], names: tuple[str, str], judge: str
) -> str:
    """Verdicts as AlpacaEval's annotations; an unscored one has no preference.

    Args:
        names: of the systems whose answers are the first and the second.
        judge: its identity, AlpacaEval's "annotator".
    """
    rows = [
        {
            "instruction": prompt_text(comparison.prompt),
            "output_1": comparison.first,
            "generator_1": names[0],
            "output_2": comparison.second,
            "generator_2": names[1],
            "annotator": judge,
            "preference": None if verdict.score is None else 2 - verdict.score,
        }
        for comparison, verdict in zip(comparisons, verdicts, strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def prompts(trails: Iterable[Trail]) -> str:
    """The prompts alone, with all that stood beside them: what `srpo revise` takes."""
    rows = [{**trail.meta, "prompt": trail.prompt} for trail in trails]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written_as(form: str, trails: Sequence[Trail], *, name: str, revisions: int) -> str:
    """The trails in one of the forms `alpaca`, `arena`, `trails` and `prompts`.

    Raises:
        ConfigError: no such form, or a form with names and no name.
        DataError: there are no answers to write, or no uid where one is needed.
    """
    forms: dict[str, Callable[[], str]] = {
        "alpaca": lambda: alpaca_outputs(trails, generator=name, revisions=revisions),
        "arena": lambda: arena_answers(trails, model=name, revisions=revisions),
        "trails": lambda: "".join(trail.to_json() + "\n" for trail in trails),
        "prompts": lambda: prompts(trails),
    }
    if form not in forms:
        raise ConfigError(
            f"{form!r}", where="form", expected="one of " + ", ".join(forms), fix=did_you_mean(form, forms)
        )
    if form in ("alpaca", "arena") and not name:
        raise ConfigError("no name", where=f"form {form}", expected="what the system is to be called there")
    missing = sum(not trail.answers for trail in trails)
    if missing and form != "prompts":
        fix = "questions become prompts; `srpo revise` answers them"
        raise DataError(f"{missing} of {len(trails)} rows have no answer", where=f"form {form}", fix=fix)
    return forms[form]()


def _rows(path: str | Path) -> Iterable[tuple[str, Row]]:
    for where, row in json_rows(Path(path)):
        if isinstance(row, Unusable):
            raise DataError(str(row), where=where + row.column)
        if not isinstance(row, Mapping):
            raise DataError(f"a {type(row).__name__}", where=where, expected="an object")
        yield where, row


def _trail(row: Row, where: str) -> Trail:
    if "answers" in row:
        return Trail.from_json(json.dumps(row), where=where)
    if "instruction" in row and isinstance(row.get("output"), str):
        return _draft(row, row["instruction"], row["output"], ("instruction", "output"), where)
    if "messages" in row:
        *asked, last = row["messages"] or [None]
        answer = last.get("content") if isinstance(last, Mapping) and last.get("role") == "assistant" else None
        text = answer.get("answer") if isinstance(answer, Mapping) else answer
        asked_ = asked[0]["content"] if len(asked) == 1 and asked[0].get("role") == "user" else asked
        return _draft(row, asked_, text, ("messages",), where)
    if "turns" in row:
        asked_ = [turn["content"] for turn in row["turns"]]
        if len(asked_) != 1:
            raise DataError(f"{len(asked_)} turns", where=where, expected="questions of one turn")
        return Trail(asked_[0], (), meta={key: value for key, value in row.items() if key != "turns"})
    if "uid" in row and isinstance(row.get("prompt"), str):
        return Trail(row["prompt"], (), meta={key: value for key, value in row.items() if key != "prompt"})
    has = ", ".join(map(repr, row)) or "nothing"
    raise DataError(f"an object with {has}", where=where, expected="a trail, an AlpacaEval output or an Arena-Hard row")


def _draft(row: Row, prompt: Any, text: Any, taken: tuple[str, ...], where: str) -> Trail:
    if not isinstance(prompt, str | list) or not isinstance(text, str):
        raise DataError("no prompt and answer as text", where=where)
    return Trail(prompt, (Answer(text, 0),), meta={key: value for key, value in row.items() if key not in taken})
