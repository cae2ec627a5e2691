"""Parses strict JSON from outside: the value, or the reason why a text is not JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from srpo.data.values import Unusable


def parse_json(raw: bytes) -> Any:
    """Returns the JSON value in a line of bytes; for other bytes returns, not raises, an `Unusable` with the reason."""
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():  # checked in all columns, since all are written to files later
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}", f":{error.start + 1}")
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at").removesuffix(" starting")  # the message is printed after the column
        return Unusable(f"not JSON: {problem}", f":{error.colno}")
    except RecursionError:
        return Unusable("not usable: nested too deeply")
    except UnicodeEncodeError as error:
        return half_a_pair(error)
    except ValueError:  # any other ValueError: Python refuses to convert so long an integer
        return Unusable("not usable: a number of thousands of digits")
    except Unusable as problem:
        return problem


def half_a_pair(error: UnicodeEncodeError) -> Unusable:
    """Returns an `Unusable` for a text with an unpaired surrogate, which UTF-8 cannot encode.

    Args:
        error: the error that encoding the text raised.
    """
    return Unusable(f"holds half of a surrogate pair, {error.object[error.start]!r}")


def _no_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(items)
    if len(row) < len(items):
        [(twice, _)] = Counter(key for key, _ in items).most_common(1)
        raise Unusable(f"key {twice!r} occurs twice")
    return row


def _no_constant(word: str) -> Any:
    raise Unusable(f"not JSON: {word} is not a JSON number")


STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
