"""Judges: a prompt, an answer and the gold answer in, a score between 0 and 1 out.

A judge is any callable with those three arguments. Two are shipped; `module:function` names one of your own.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from srpo.errors import ConfigError, DataError, did_you_mean

Judge = Callable[[Any, str, Any], float]


def exact_match(prompt: Any, answer: str, gold: Any) -> float:
    """1 when the answer is the gold answer, 0 otherwise; space around either does not count.

    Raises:
        DataError: the gold answer is neither text nor an integer.

    Example:
        >>> exact_match("2+2=", "4\\n", "4"), exact_match("2+2=", "04", "4")
        (1.0, 0.0)
    """
    return float(answer.strip() == _text(gold))


def per_character(prompt: Any, answer: str, gold: Any) -> float:
    """Share of positions with the gold character; a position missing or left over is wrong.

    Raises:
        DataError: the gold answer is neither text nor an integer.

    Example:
        >>> per_character("30+51=", "091", "081"), per_character("30+51=", "08", "081")
        (0.6666666666666666, 0.6666666666666666)
    """
    ours, wanted = answer.strip(), _text(gold)
    if not ours and not wanted:
        return 1.0
    return sum(a == b for a, b in zip(ours, wanted, strict=False)) / max(len(ours), len(wanted))


JUDGES: Mapping[str, Judge] = {"exact_match": exact_match, "per_character": per_character}


def load_judge(name: str) -> Judge:
    """The judge of that name.

    Args:
        name: a key of `JUDGES`, or `module:function`; modules are looked for where Python looks and, last, in the
            working folder.

    Raises:
        ConfigError: no such judge, module or function, or it cannot be called.

    Example:
        >>> load_judge("exact_match")("2+2=", "5", "4")
        0.0
        >>> load_judge("math:hypot")
        <built-in function hypot>
    """
    if name in JUDGES:
        return JUDGES[name]
    expected = ", ".join(JUDGES) + " or module:function"
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"unknown judge {name!r}", expected=expected, fix=did_you_mean(name, JUDGES))
    # A console script has its own folder first on the path, not the user's; last, so that it shadows nothing.
    if "" not in sys.path:
        sys.path.append("")
    try:
        judge = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"judge {name!r} cannot be loaded: {error}", expected=expected) from None
    if not callable(judge):
        raise ConfigError(f"judge {name!r} is {type(judge).__name__}", expected="a function (prompt, answer, gold)")
    found: Judge = judge
    return found


def judged(judge: Judge, prompt: Any, answer: str, gold: Any, *, where: str = "") -> float:
    """The judge's score, checked.

    Raises:
        DataError: the gold answer is not of the judge's kind; `where` names the row.
        ConfigError: what came back is not a number between 0 and 1.
    """
    try:
        score = judge(prompt, answer, gold)
    except DataError as error:
        raise DataError(error.what, where=where, expected=error.expected, fix=error.fix) from None
    if not isinstance(score, bool | int | float) or not 0 <= score <= 1:  # nan fails the comparison too
        name = getattr(judge, "__name__", "judge")
        raise ConfigError(f"{name} returned {score!r}", where=where, expected="a number between 0 and 1")
    return float(score)


def _text(gold: Any) -> str:
    # A boolean is an int to Python, and "True" is no answer anyone wrote.
    if isinstance(gold, str) or (isinstance(gold, int) and not isinstance(gold, bool)):
        return str(gold).strip()
    raise DataError(f"the gold answer is {type(gold).__name__}", expected="text or an integer for this judge")
