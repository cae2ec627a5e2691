"""Types of settings: whether a value read from a file has the type that its setting is declared with."""

from __future__ import annotations

import os
import types
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

_PLAIN = (type(None), bool, int, float, str, list, tuple, dict, os.PathLike, Real)


def fits(value: object, hint: object) -> bool:
    """True if a value has the type `hint`, such as `int | None`; objects that no settings file can hold always fit."""
    if not isinstance(value, _PLAIN):
        return True
    if isinstance(value, str) and (words := words_of(hint)):
        return value in words
    return any(_is(value, kind) for kind in kinds(hint))


def _is(value: object, kind: object) -> bool:
    origin = get_origin(kind) or kind
    if origin is Any:
        return True
    if origin is Literal:
        return any(value is word or (isinstance(value, str) and value == word) for word in get_args(kind))
    if not isinstance(origin, type):
        return True
    if issubclass(origin, Enum):
        return isinstance(value, origin) or value in [each.value for each in origin]
    if isinstance(value, bool) or origin is bool:
        return isinstance(value, bool) and origin is bool
    if origin is int:
        return isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if origin is float:
        return isinstance(value, Real)
    if origin is str:
        return isinstance(value, str | os.PathLike)
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(each, one) for one in get_args(kind) for each in value)
    return isinstance(value, origin)


def kinds(hint: object) -> tuple[Any, ...]:
    """Returns the member types of a union, such as (int, NoneType) for `int | None`; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def words_of(hint: object) -> list[str]:
    """Returns the allowed words of a type that is or contains an enumeration; [] for any other type."""
    enums = [kind for kind in kinds(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
    return [str(each.value) for enum in enums for each in enum]


def in_words(hint: object) -> str:
    """Returns a type in plain words for error messages, such as "a whole number" for int."""
    if words := words_of(hint):
        return "one of " + ", ".join(words)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    found = []
    for kind in kinds(hint):
        origin = get_origin(kind) or kind
        if origin is list:
            found.append("a list, each " + " or ".join(in_words(one) for one in get_args(kind)))
        elif origin in names:
            found.append(names[origin])
    return " or ".join(found)
