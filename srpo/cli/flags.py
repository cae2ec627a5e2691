"""Flags from dataclasses of settings: parsers, help pages and suggestions.

`parse` serves the verbs whose settings are ours alone. `parse_training` serves train, precompute and rounds, whose
flags are those of transformers' HfArgumentParser, as TRL's are, with YAML settings and presets below them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from srpo.errors import ConfigError, UsageError, did_you_mean
from srpo.settings import Option, build, expect_kinds, options

T = TypeVar("T")


class FlagParser(argparse.ArgumentParser):
    """An argument parser whose errors are a `UsageError`, with a suggestion for an unknown flag."""

    def flags(self) -> list[str]:
        """Every long flag of this parser."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = self._suggestion(unknown[1]) if unknown else ""
        raise UsageError(message, where=self.prog, fix=near or f"`{self.prog} --help` lists the options")

    def _suggestion(self, flag: str) -> str:
        """The remedy for an unknown flag; "" where no known flag is near."""
        if flag == "--device" and "--use_cpu" in self.flags():  # the nearest spelling means something else
            return "a GPU is used where there is one; `--use_cpu` or CUDA_VISIBLE_DEVICES choose otherwise"
        return did_you_mean(flag, self.flags())

    def add_options(self, found: Iterable[Option]) -> None:
        """Adds a flag for each setting, under the heading of its group; a flag not given leaves no value."""
        headings: dict[str | None, Any] = {group.title: group for group in self._action_groups}
        for option in found:
            title = option.rule.group
            if title and title not in headings:
                headings[title] = self.add_argument_group(title)
            target = headings[title] if title else self
            target.add_argument(f"--{option.name}", **_argument(option))


def _argument(option: Option) -> dict[str, Any]:
    """Keyword arguments of `add_argument` for one setting."""
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


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def parser_of(verb: str, description: str, kind: Any) -> FlagParser:
    """The parser of a verb, without abbreviations of flags."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = FlagParser(prog=f"srpo {verb}", description=description, allow_abbrev=False, formatter_class=formatter)
    parser.add_options(options(kind))
    return parser


def parse(verb: str, description: str, kind: type[T], argv: Sequence[str]) -> T:
    """The settings of a verb from its command line.

    Args:
        kind: dataclass of the settings.

    Raises:
        UsageError: an unknown flag, a missing one, or a value of the wrong kind.
        ConfigError: a value out of range or not among the choices.
    """
    return build(kind, vars(parser_of(verb, description, kind).parse_args(argv)))


# ---------------------------------------------------------------------- training


def parse_training(
    verb: str, description: str, argv: Sequence[str], *more: Any
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The settings of a training by name, and a dataclass for each further group.

    Flags win over the settings file, and the file wins over a preset.

    Args:
        more: dataclasses of settings that file and flags may hold as well.

    Raises:
        UsageError, ConfigError, InputError: as `parse` and `read_settings` do.
    """
    from srpo.train.arguments import GROUPS, read_settings
    from srpo.train.config import settings_of_preset

    file = _value_of("--config", argv, verb)
    extra = [option for kind in more for option in options(kind)]
    settings = read_settings(file, more) if file is not None else {}
    parser = _training_parser(verb, description, extra)
    parser.set_defaults(**settings_of_preset(_value_of("--preset", argv, verb) or settings.get("preset")))
    settings = _converted(parser, settings, where=str(file))
    expect_kinds(settings, GROUPS, file=str(file))
    parser.set_defaults(**settings)
    found = vars(parser.parse_args(argv))
    del found["config"]
    groups = []
    for kind in more:
        names = [option.name for option in options(kind)]
        groups.append(build(kind, {name: found.pop(name) for name in names if name in found}))
    return found, tuple(groups)


def training_groups(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """The four dataclasses of a training from its settings by name."""
    from transformers import HfArgumentParser

    from srpo.train.arguments import GROUPS

    return HfArgumentParser(GROUPS).parse_dict(dict(found))


def _training_parser(verb: str, description: str, extra: Iterable[Option]) -> FlagParser:
    from transformers import HfArgumentParser

    from srpo.train.arguments import GROUPS

    class TrainingParser(FlagParser, HfArgumentParser):
        """HfArgumentParser with our errors."""

    parser = TrainingParser(GROUPS, prog=f"srpo {verb}", description=description, allow_abbrev=False)
    parser.add_argument("--config", help="Flat YAML file of settings; its keys are the names of the flags.")
    parser.add_options(extra)
    return parser


def _converted(parser: argparse.ArgumentParser, settings: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Settings of a file as the flags of their names would have them; YAML reads 2e-6 as text.

    Raises:
        ConfigError: a value that its flag would refuse.
    """
    found = dict(settings)
    for action in parser._actions:
        value = settings.get(action.dest)
        if value is False and "no" in (action.choices or ()):
            value = found[action.dest] = "no"  # YAML reads no as false
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                made = parser._get_value(action, str(value))
            except argparse.ArgumentError as problem:
                raise ConfigError(f"{action.dest}: {problem.message}", where=where) from None
            found[action.dest] = [made] if action.nargs == "+" else made  # as the flag with one word
    return found


def _value_of(flag: str, argv: Sequence[str], verb: str) -> str | None:
    """The value of a flag that decides the defaults of the parser, read before the parser exists.

    Raises:
        UsageError: the flag has no value, or is repeated.
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
        raise UsageError(f"{flag} is repeated", where=f"srpo {verb}", expected="one of them")
    return found[0] if found else None
