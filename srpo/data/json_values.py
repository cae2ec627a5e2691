"""Strict JSON: values from outside, or the reason why a text is not one."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from srpo.data.values import Unusable


def parse_json(raw: bytes) -> Any:
    """The JSON value in a line, or an `Unusable` with the reason."""
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():  # in any column, since all columns are written again
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}", f":{error.start + 1}")
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at").removesuffix(" starting")  # the column is in front of the message
        return Unusable(f"not JSON: {problem}", f":{error.colno}")
    except RecursionError:
        return Unusable("not usable: nested too deeply")
    except UnicodeEncodeError as error:
        return half_a_pair(error)
    except ValueError:  # the only one left: Python refuses to convert an integer this long
        return Unusable("not usable: a number of thousands of digits")
    except Unusable as problem:
        return problem


def half_a_pair(error: UnicodeEncodeError) -> Unusable:
    """The reason for a text with half of a surrogate pair."""
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
