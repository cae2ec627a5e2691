"""Judges of single answers: a score in [0, 1] from a prompt, an answer and the gold answer.

`JUDGES` maps names to the shipped judges; a new judge needs a function and an entry in `JUDGES`. The name
`module:function` loads a user's own judge, `reward:PATH` a reward model.
"""

from __future__ import annotations

import functools
import json
import logging
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn, Protocol

from srpo.data.values import Prompt
from srpo.errors import ConfigError, DataError, did_you_mean
from srpo.judge.unit_tests import unit_tests
from srpo.statistics.edit_distance import edit_distance

MATH_SECONDS = 5  # time limit of each step of the judge `math`


class Judge(Protocol):
    """Protocol of a judge of single answers: a function (prompt, answer, gold answer) → score in [0, 1]."""

    def __call__(self, prompt: Prompt, answer: str, gold: object, /) -> float: ...


def exact_match(prompt: Prompt, answer: str, gold: object) -> float:
    r"""Returns 1 if the answer equals the gold answer, else 0; white space at both ends is ignored.

    Raises:
        DataError: the gold answer is neither text nor an integer.

    Example:
        >>> exact_match("2+2=", "4\n", "4"), exact_match("2+2=", "04", "4")
        (1.0, 0.0)
    """
    return float(answer.strip() == _text(gold))


def per_character(prompt: Prompt, answer: str, gold: object) -> float:
    """Returns the share of positions where the answer has the gold answer's character.

    Missing and surplus characters count as wrong.

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


def numeric(prompt: Prompt, answer: str, gold: object) -> float:
    """Returns 1 if the last number in the answer equals the last number in the gold answer, else 0.

    Commas between groups of three digits, trailing zeros, exponents and a typographic minus make no difference.

    Raises:
        DataError: the gold answer holds no number.

    Example:
        >>> numeric("?", "20 boxes of 62 make 1,240.0.", "#### 1240"), numeric("?", "1240 of 3", 1240)
        (1.0, 0.0)
    """
    is_number = isinstance(gold, int | float) and not isinstance(gold, bool)
    wanted = _last_number(repr(gold) if is_number else _text(gold))
    if wanted is None:
        raise DataError(f"no number in the gold answer {gold!r}", expected="a number for this judge")
    return float(_last_number(answer) == wanted)


def edit_similarity(prompt: Prompt, answer: str, gold: object) -> float:
    """Returns 1 − d / L, where d is the edit distance to the gold answer in characters, L the longer text's length.

    Raises:
        DataError: the gold answer is neither text nor an integer.

    Example:
        >>> edit_similarity("?", "sitting", "kitten")
        0.5714285714285714
    """
    ours, wanted = answer.strip(), _text(gold)
    longer = max(len(ours), len(wanted))
    return 1 - edit_distance(ours, wanted) / longer if longer else 1.0


def rouge_l(prompt: Prompt, answer: str, gold: object) -> float:
    """Returns the ROUGE-L F1 of the answer against the gold answer, words stemmed, by the `rouge-score` library.

    Raises:
        ConfigError: the library is not installed.
        DataError: the gold answer is neither text nor an integer.

    Example:
        >>> round(rouge_l("?", "the cats sat", "the cat sat down"), 3)
        0.857
    """
    return float(_rouge().score(_text(gold), answer)["rougeL"].fmeasure)


def gleu(prompt: Prompt, answer: str, gold: object) -> float:
    """Returns the GLEU score of Wu et al. (arXiv 1609.08144), by the `nltk` library.

    That is the lower of precision and recall of 1- to 4-grams of words.

    Raises:
        ConfigError: the library is not installed.
        DataError: the gold answer is neither text nor an integer.

    Example:
        >>> round(gleu("?", "the cat sat down", "the cat sat up"), 3)
        0.6
    """
    return float(_sentence_gleu()([_text(gold).split()], answer.split()))


def json_schema(prompt: Prompt, answer: str, gold: object) -> float:
    """Returns 1 if the answer is JSON that the gold answer, a JSON schema, accepts; else 0. Uses `jsonschema`.

    The answer is JSON alone or text with one fenced block. NaN, Infinity and repeated keys are not JSON here. Formats
    such as `date` are checked, and references to other addresses are not fetched.

    Raises:
        ConfigError: the library is not installed.
        DataError: the gold answer is not a valid JSON schema, as an object or as text.

    Example:
        >>> schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
        >>> json_schema("?", '{"n": 3}', schema), json_schema("?", '{"n": "3"}', schema)
        (1.0, 0.0)
    """
    validator = _validator(gold if isinstance(gold, str) else json.dumps(gold, default=str))
    blocks = re.findall(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", answer.replace("\r\n", "\n"), re.MULTILINE | re.DOTALL)
    try:
        value = json.loads(
            blocks[0] if len(blocks) == 1 else answer,
            parse_constant=_not_json,
            object_pairs_hook=_object_without_repeats,
        )
        return float(validator.is_valid(value))
    except validator.unresolvable as error:
        raise DataError(f"the schema's reference cannot be resolved: {error}", expected="a schema on its own") from None
    except (ValueError, RecursionError):
        return 0.0


def math(prompt: Prompt, answer: str, gold: object) -> float:
    r"""Returns 1 if the answer's final expression equals the gold answer mathematically, else 0.

    The `math-verify` library compares them.

    Each step may take 5 seconds; outside the main thread the library has no time limit. The library takes the first
    of several plain values ("3 or 4" counts as 3).

    Raises:
        ConfigError: the library is not installed.
        DataError: the gold answer is not a number, LaTeX or another expression.

    Example:
        >>> math("?", "So it is $\\frac{2}{4}$.", "0.5"), math("?", "Either 1 or $2$.", "1/2")
        (1.0, 0.0)
    """
    parse, verify = _math_verify()
    seconds = MATH_SECONDS if threading.current_thread() is threading.main_thread() else None
    text = repr(gold) if isinstance(gold, float) else _text(gold)
    wanted = parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=seconds)
    if not wanted:
        raise DataError(f"no expression in the gold answer {text!r}", expected="a number or LaTeX for this judge")
    return float(verify(wanted, parse(answer, parsing_timeout=seconds), timeout_seconds=seconds))


JUDGES: Mapping[str, Judge] = {
    "exact_match": exact_match,
    "per_character": per_character,
    "numeric": numeric,
    "edit_similarity": edit_similarity,
    "rouge_l": rouge_l,
    "gleu": gleu,
    "unit_tests": unit_tests,
    "json_schema": json_schema,
    "math": math,
}
REWARD = "reward:"


def load_judge(name: str) -> Judge:
    """Loads a judge of single answers by name.

    Args:
        name: a key of `JUDGES`, `reward:` with the path or hub name of a reward model, or `module:function`.

    Raises:
        ConfigError: the judge, module or function does not exist or is not callable.

    Example:
        >>> load_judge("exact_match")("2+2=", "5", "4")
        0.0
        >>> load_judge("math:hypot")
        <built-in function hypot>
    """
    if name in JUDGES:
        return JUDGES[name]
    if name.startswith(REWARD):
        from srpo.judge.reward_model import RewardModel

        return RewardModel(name.removeprefix(REWARD))
    judge: Judge = import_judge(name)
    if not callable(judge):
        raise ConfigError(f"judge {name!r} is {type(judge).__name__}", expected="a function (prompt, answer, gold)")
    return judge


def import_judge(name: str, others: Sequence[str] = ()) -> Any:
    """Imports and returns the object named by `module:name`, from Python's path or the working folder.

    Args:
        others: names of judges that the error message lists in addition to `JUDGES`.

    Raises:
        ConfigError: the module or the name does not exist.
    """
    expected = ", ".join([*JUDGES, REWARD + "PATH", *others]) + " or module:function"
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"unknown judge {name!r}", expected=expected, fix=did_you_mean(name, [*JUDGES, *others]))
    # A console script does not search the working folder. Appended last, that folder hides no installed module.
    if "" not in sys.path:
        sys.path.append("")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"judge {name!r} cannot be loaded: {error}", expected=expected) from None


def score_answer(judge: Judge, prompt: Prompt, answer: str, gold: object, *, where: str = "") -> float:
    """Calls a judge of single answers, and returns its score after a check that it lies in [0, 1].

    Args:
        where: place of the answer, such as its row in a file, for the error message.

    Raises:
        DataError: the judge cannot use the gold answer.
        ConfigError: the score is not a number in [0, 1].
    """
    try:
        score = judge(prompt, answer, gold)
    except DataError as error:
        raise DataError(error.what, where=where, expected=error.expected, fix=error.fix) from None
    if not isinstance(score, bool | int | float) or not 0 <= score <= 1:  # a score of nan fails this comparison too
        name = getattr(judge, "__name__", "judge")
        raise ConfigError(f"{name} returned {score!r}", where=where, expected="a number between 0 and 1")
    return float(score)


def _text(gold: object) -> str:
    # A boolean is an int to Python, but nobody writes "True" as an answer.
    if isinstance(gold, str) or (isinstance(gold, int) and not isinstance(gold, bool)):
        return str(gold).strip()
    raise DataError(f"the gold answer is {type(gold).__name__}", expected="text or an integer for this judge")


# A sign counts unless a digit precedes it: 3-4 contains 4, not −4.
_NUMBER = re.compile(r"(?<![\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?|[-+]?\.\d+")


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text.replace("−", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def _missing(library: str, judge: str, extra: str) -> ConfigError:
    return ConfigError(f"{library} is not installed", where=f"judge {judge}", fix=f"pip install 'srpo[{extra}]'")


@functools.cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("rouge-score", "rouge_l", "rouge") from None
    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.cache
def _sentence_gleu() -> Any:
    try:
        from nltk.translate.gleu_score import sentence_gleu
    except ImportError:
        raise _missing("nltk", "gleu", "judges") from None
    return sentence_gleu


@functools.cache
def _math_verify() -> tuple[Any, Any]:
    try:
        from math_verify import parse, verify
    except ImportError:
        raise _missing("math-verify", "math", "judges") from None
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # math_verify logs the whole answer after a timeout
    parts = (parse(text, parsing_timeout=None) for text in ("$(x+1)^2$", "$x^2+2x+1$"))
    verify(*parts, timeout_seconds=None)  # the first use loads tables, which must not count as an answer's time
    return parse, verify


class _Validator(NamedTuple):
    is_valid: Callable[[object], bool]
    unresolvable: type[Exception]


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> _Validator:
    try:
        import jsonschema
        import referencing
        from referencing.exceptions import Unresolvable
    except ImportError:
        raise _missing("jsonschema", "json_schema", "judges") from None
    try:
        wanted = json.loads(schema)
        if not isinstance(wanted, dict | bool):
            raise DataError("the gold answer is not a JSON schema", expected="an object")
        kind = jsonschema.validators.validator_for(wanted, default=jsonschema.Draft202012Validator)
        kind.check_schema(wanted)
    except (ValueError, RecursionError, jsonschema.SchemaError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the gold answer is not a JSON schema: {reason}", expected="an object") from None
    # An empty registry fetches no schema from the network; it knows only the standard's own schemas.
    validator = kind(wanted, registry=referencing.Registry(), format_checker=kind.FORMAT_CHECKER)
    return _Validator(validator.is_valid, Unresolvable)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
