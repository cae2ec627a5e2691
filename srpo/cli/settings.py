"""Settings of a training run from a file and flags, for every verb that begins as a run would."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from srpo.cli.parser import Mistakes, show_progress
from srpo.errors import UsageError
from srpo.settings import expect_kinds


def settings_of(verb: str, description: str, argv: list[str]) -> tuple[Any, ...]:
    """The groups of settings in their order; flags win over the settings file, the file over a preset."""
    parser, found = _found(verb, description, argv, ())
    return parser.parse_dict(found)


def settings_beside(
    verb: str, description: str, argv: list[str], more: tuple[Any, ...]
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The settings of a training by name, and further groups that the file and the flags may hold beside them."""
    from transformers import HfArgumentParser

    _, found = _found(verb, description, argv, more)
    names = {each.name for group in more for each in fields(group)}
    apart = HfArgumentParser(more).parse_dict({name: found.pop(name) for name in names})
    return found, apart


def _found(verb: str, description: str, argv: list[str], more: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """A parser of all groups, and what was given or is default."""
    from transformers import HfArgumentParser
    from transformers.utils import logging as hf_logging

    from srpo.train.arguments import GROUPS, read_settings
    from srpo.train.config import settings_of_preset

    class Parser(Mistakes, HfArgumentParser):
        """transformers' argument parser with our errors."""

    hf_logging.set_verbosity_error()
    show_progress()
    parser = Parser((*GROUPS, *more), prog=f"srpo {verb}", description=description, allow_abbrev=False)
    parser.add_argument("--config", help="A flat YAML file of settings; its keys are the flags below.")
    file = _value_of("--config", argv, verb)
    settings = read_settings(file, more) if file is not None else {}
    parser.set_defaults(**settings_of_preset(_value_of("--preset", argv, verb) or settings.get("preset")))
    settings = parser.converted(settings, where=str(file))
    expect_kinds(settings, (*GROUPS, *more), file=str(file))
    parser.set_defaults(**settings)
    found = vars(parser.parse_args(argv))
    found.pop("config")
    return parser, found


def _value_of(flag: str, argv: list[str], verb: str) -> str | None:
    """A flag's value before the parser runs: it decides the parser's own defaults.

    Raises:
        UsageError: it has none, or stands there twice.
    """
    found = []
    for i, word in enumerate(argv):
        if word == flag:
            found.append(argv[i + 1] if i + 1 < len(argv) else "")
        elif word.startswith(flag + "="):
            found.append(word.removeprefix(flag + "="))
    if "" in found:
        raise UsageError(f"{flag} needs a value", where=f"srpo {verb}")
    if len(found) > 1:
        raise UsageError(f"{flag} stands there twice", where=f"srpo {verb}", expected="one of them")
    return found[0] if found else None
