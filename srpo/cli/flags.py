"""Command-line flags made from dataclasses of settings: parsers, help pages, and suggestions for mistyped flags.

The flags of train, precompute and rounds are in training_flags.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from srpo.cli.output import QUIET
from srpo.errors import UsageError
from srpo.renamed_settings import remedies
from srpo.settings import Dataclass, Option, build, options

T = TypeVar("T", bound=Dataclass)


ONLY_PARSER = ["--help"]  # this list itself, as a command line, asks a verb for its parser


class ParserMade(Exception):
    """Raised instead of parsing if `argv` is `ONLY_PARSER`: carries the parser of a verb, such as train, to the caller.

    Attributes:
        parser: the parser of the verb.
    """

    def __init__(self, parser: FlagParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


class FlagParser(argparse.ArgumentParser):
    """An argument parser whose errors are a `UsageError`, with a suggestion for an unknown flag."""

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **{"epilog": f"{QUIET} hides the progress of any verb.", **words})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, where=self.prog, fix=f"`{self.prog} --help` lists the options")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses command-line words as argparse does, but reports a mistyped flag before a missing one.

        Raises:
            ParserMade: the caller asked for the parser alone, by the arguments `ONLY_PARSER`.
        """
        if args is ONLY_PARSER:
            raise ParserMade(self)
        known = [flag[2:] for action in self._actions for flag in action.option_strings]
        expect_flags(self.prog, args or (), known)
        return super().parse_args(args, namespace)

    def heading(self, title: str) -> Any:
        """Returns the argparse group with the heading `title`, made if absent; for "" the parser itself."""
        known = {group.title: group for group in self._action_groups}
        return (known.get(title) or self.add_argument_group(title)) if title else self

    def add_options(self, found: Iterable[Option]) -> None:
        """Adds a flag for each setting, below the heading of its group in the help page.

        A setting that is True by default, or undecided, gets a second flag, `--no_NAME`, which switches it off.
        """
        for option in found:
            name, words = f"--{option.name}", _argument(option)
            if option.rule.positional:
                name, words = option.name, {key: words[key] for key in ("help", "default")} | {"nargs": "?"}
            group = self.heading(option.rule.group)
            group.add_argument(name, **words)
            if option.default is True or option.hint == bool | None:
                words |= {"action": "store_false", "dest": option.name, "help": f"Switches {name} off."}
                group.add_argument(f"--no_{option.name}", **words)


def expect_flags(command: str, words: Iterable[str], known: Iterable[str]) -> None:
    """Checks that every flag on a command line is known.

    Args:
        command: the command, such as "srpo train", for the error.
        words: the words of the command line.
        known: names of the allowed flags, without dashes.

    Raises:
        UsageError: unknown flags; the message suggests a correction for each.
    """
    known = [*known, "help"]
    flags = dict.fromkeys(word.partition("=")[0] for word in words if re.match(r"--\w", word))
    if unknown := [flag for flag in flags if flag[2:] not in known]:
        names = [name for name in known if "-" not in name and not name.startswith("no_")]
        fix = remedies((flag[2:] for flag in unknown), names, "--") or f"`{command} --help` lists the options"
        raise UsageError(f"unrecognized arguments: {', '.join(unknown)}", where=command, fix=fix)


def _argument(option: Option) -> dict[str, Any]:
    """Keyword arguments of argparse's `add_argument` that make the flag of one setting."""
    kind = next(kind for kind in (*get_args(option.hint), option.hint) if kind is not type(None))
    if get_origin(option.hint) in (list, dict):
        kind = option.hint
    origin = get_origin(kind) or kind
    required = option.default is MISSING
    shown = "" if required or option.default in (None, "", False, [], {}) else f" [{_in_words(option.default)}]"
    found: dict[str, Any] = {"help": option.help.replace("%", "%%") + shown, "default": argparse.SUPPRESS}
    if origin is bool:
        return {**found, "action": "store_true"}
    found |= {"required": required, "metavar": option.rule.metavar or None}
    if origin is list or (origin is dict and option.rule.metavar):
        return {**found, "nargs": "+", "type": get_args(kind)[0]}
    return {**found, "type": origin if origin in (int, float) else str}


def _in_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def parser_of(verb: str, description: str, kind: type[Dataclass]) -> FlagParser:
    """Returns the argument parser of `srpo VERB`, with a flag for each setting of the dataclass `kind`.

    Flags cannot be abbreviated. `description` is the text of the help page.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = FlagParser(prog=f"srpo {verb}", description=description, allow_abbrev=False, formatter_class=formatter)
    parser.add_options(options(kind))
    return parser


def parse(verb: str, description: str, kind: type[T], argv: Sequence[str]) -> T:
    """Parses the command line of `srpo VERB`, such as `srpo train`, into an instance of its dataclass of settings.

    Args:
        verb: first word after `srpo`.
        description: text of the help page.
        kind: the dataclass of settings.
        argv: command-line words after the verb.

    Raises:
        UsageError: an unknown flag, a missing one, or a value of the wrong kind.
        ConfigError: a value out of range or not among the choices.
    """
    return build(kind, vars(parser_of(verb, description, kind).parse_args(argv)))
