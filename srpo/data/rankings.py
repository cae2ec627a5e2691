"""Makes pairs from a list of ranked or scored completions.

The completions are strings with a list of `ranks` or `scores` in another column, or objects that hold a text under one
of `TEXT_KEYS` and a number under one of `NUMBER_KEYS`. The best rank is the smallest, the best score the greatest.
"""

from __future__ import annotations

from collections.abc import Iterable

from srpo.data.values import NoPreference, Row, Unusable, kind, number, shape, text

CHOICES = ("all", "best-worst")
TEXT_KEYS = ("text", "content", "completion", "response", "answer", "output")
# Column or key → the factor after which greater numbers are better.
COLUMNS = {"ranks": -1.0, "scores": 1.0}
NUMBER_KEYS = {"rank": -1.0, "score": 1.0, "overall_score": 1.0}


def ranked_pairs(row: Row, which: str) -> list[tuple[str, str, str]]:
    """Returns pairs of ranked completions as (better, worse, text that names both for messages).

    Completions that tie make no pair.

    Args:
        which: "all" pairs every two completions, "best-worst" makes one pair of the best and the worst.

    Raises:
        Unusable: a text or number is missing or ambiguous, or no completion is better than another.

    Example:
        >>> row = {"completions": ["5", "4", "four"], "scores": [0, 2, 1]}
        >>> [(better, worse) for better, worse, _ in ranked_pairs(row, "all")]
        [('4', 'four'), ('4', '5'), ('four', '5')]
        >>> ranked_pairs(row, "best-worst")
        [('4', '5', 'completion 2 over 1')]
    """
    texts, worth = _completions(row)
    order = sorted(range(len(texts)), key=lambda i: -worth[i])
    pairs = [(i, j) for at, i in enumerate(order) for j in order[at + 1 :] if worth[i] > worth[j]]
    if not pairs:
        raise NoPreference("no completion is ranked above another")
    if which == "best-worst":
        pairs = [(order[0], order[-1])]
    return [(texts[i], texts[j], f"completion {i + 1} over {j + 1}") for i, j in pairs]


def _completions(row: Row) -> tuple[list[str], list[float]]:
    """The texts of the row's completions and the worth of each: its score, or minus its rank, so greater is better.

    Raises:
        Unusable: a text or number is missing or ambiguous.
    """
    items = row["completions"]
    known = {name: sign for name, sign in COLUMNS.items() if row.get(name) is not None}
    if shape(items) == "texts":
        texts = [text(item, "completions") for item in items]
    else:
        key = _only([key for key in TEXT_KEYS if isinstance(items[0].get(key), str)], TEXT_KEYS)
        texts = [text(item.get(key), f"completions.{key}") for item in items]
        known |= {key: sign for key, sign in NUMBER_KEYS.items() if items[0].get(key) is not None}
    name = _only([*known], (*COLUMNS, *NUMBER_KEYS))
    given = row[name] if name in COLUMNS else [item.get(name) for item in items]
    if not isinstance(given, list) or len(given) != len(texts):
        many = f" of {len(given)}" if isinstance(given, list) else ""
        raise Unusable(f"{name!r} is {kind(given)}{many}; want a list of {len(texts)} numbers, one per completion")
    return texts, [known[name] * number(value, f"{name} of completion {i}") for i, value in enumerate(given, 1)]


def _only(found: list[str], known: Iterable[str]) -> str:
    if len(found) != 1:
        raise Unusable(f"completions have {' and '.join(found) or 'none'} of {', '.join(known)}; want exactly one")
    return found[0]
