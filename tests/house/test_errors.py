"""The tree drawn in errors.py is the tree of classes, and its codes are the codes a command ends with."""

from __future__ import annotations

import inspect
import re

import pytest

from srpo import errors

# The codes a script may rely on; 0 is "done".
CODES = {64, 65, 66, 70, 73, 74, 75, 78}


def drawn(text: str) -> dict[str, tuple[str, int]]:
    """Name → (parent, exit code), read from a drawing with four columns per level."""
    found: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    for line in text.splitlines():
        if row := re.match(r"    ([│├└─ ]*)([A-Z]\w+) +(\d\d)  \S", line):
            level = len(row[1]) // 4
            above = [*above[:level], row[2]]
            found[row[2]] = (above[level - 1] if level else "Exception", int(row[3]))
    return found


def classes() -> dict[str, tuple[str, int]]:
    return {
        name: (thing.__mro__[1].__name__, thing.exit_code)
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, errors.SRPOError)
    }


def test_the_drawing_is_the_tree() -> None:
    assert drawn(errors.__doc__ or "") == classes()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (r"(LockedError +)73", r"\g<1>74"),  # another code
        (r"│   └── LengthError", "├── LengthError    "),  # another parent
        (r".*OutputError.*\n", ""),  # one missing
        (r"├── InputError(.*\n)", r"├── InputError\1    ├── OtherError\1"),  # one too many
    ],
)
def test_a_wrong_drawing_is_caught(right: str, wrong: str) -> None:
    text, count = re.subn(right, wrong, errors.__doc__ or "")
    assert count == 1
    assert drawn(text) != classes()


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code for _, code in classes().values()} == CODES


@pytest.mark.parametrize("name", classes())
def test_an_error_has_place_finding_expected_value_and_fix(name: str) -> None:
    kind = getattr(errors, name)
    assert kind.__doc__
    error = kind("found this", where="pairs.jsonl:17", expected="that", fix="do so")
    assert str(error) == "pairs.jsonl:17: found this; expected that; do so"
    assert str(kind("found this")) == "found this"


def test_a_suggestion_is_near_or_absent() -> None:
    assert errors.did_you_mean("beat", ["beta", "alpha"]) == "did you mean 'beta'?"
    assert errors.did_you_mean("zzzz", ["beta", "alpha"]) == ""
