"""Flags of train, precompute and rounds: those of transformers' HfArgumentParser, as TRL's are.

Flags win over the YAML file of `--config`, and the file wins over a preset.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, get_origin, get_type_hints

from srpo.cli.flags import FlagParser, expect_flags
from srpo.cli.training_names import training_names
from srpo.errors import ConfigError, UsageError
from srpo.settings import Dataclass, Option, Rule, as_mapping, build, expect_kinds, options
from srpo.settings_file import read_settings as read_settings_file

FROM_TRANSFORMERS = "from transformers"
HEADINGS = ("method", "optimisation", "data", "model and adapter", "reference", "logging and evaluation", "run")
# Settings of transformers that most runs need, with their heading and text on srpo's help page.
COMMON = {
    "output_dir": ("run", "Folder of checkpoints, metrics and the trained model."),
    "num_train_epochs": ("optimisation", "Number of passes over the pairs."),
    "max_steps": ("optimisation", "Number of optimiser steps; -1: num_train_epochs decides."),
    "per_device_train_batch_size": ("optimisation", "Number of pairs in each forward pass, per device."),
    "gradient_accumulation_steps": ("optimisation", "Number of forward passes in each optimiser step."),
    "optim": ("optimisation", "Optimiser: a name of transformers."),
    "lr_scheduler_type": ("optimisation", "Schedule of the learning rate."),
    "warmup_steps": ("optimisation", "Number of warm-up steps of the schedule; below 1: a share of all steps."),
    "weight_decay": ("optimisation", "Weight decay of the optimiser."),
    "max_grad_norm": ("optimisation", "Gradient norm above which gradients are scaled down; 0: never."),
    "seed": ("optimisation", "Seed of the order of pairs, of dropout and of new weights."),
    "use_cpu": ("model and adapter", "Train on the processor even if there is a GPU."),
    "fp16": ("model and adapter", "Mixed precision in float16."),
    "eval_strategy": ("logging and evaluation", "When to evaluate: no, steps or epoch."),
    "eval_steps": ("logging and evaluation", "Number of optimiser steps between two evaluations."),
    "per_device_eval_batch_size": ("logging and evaluation", "Number of evaluation pairs in each forward pass."),
    "report_to": ("logging and evaluation", "Loggers: none, all, or names such as tensorboard and wandb."),
    "save_strategy": ("run", "When to write a checkpoint: no, steps, epoch or best."),
    "save_steps": ("run", "Number of optimiser steps between two checkpoints."),
    "save_total_limit": ("run", "Number of checkpoints to keep; unset: all."),
}


def parse_training(
    verb: str, description: str, argv: Sequence[str], *more: type[Dataclass]
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Parses the command line of train, precompute or rounds into (setting → value, one instance per class in `more`).

    Flags win over the settings file, and the file wins over a preset.

    Args:
        verb: "train", "precompute" or "rounds".
        description: text of the help page.
        argv: command-line words after the verb.
        more: dataclasses of further settings that the file and the flags may hold.

    Raises:
        UsageError, ConfigError, InputError: as `parse` and `read_settings` do.
    """
    file = _value_of("--config", argv, verb)
    _expect_names(verb, argv, file, more)

    from srpo.train.arguments import GROUPS, read_settings
    from srpo.train.config import settings_of_preset

    extra = [option for kind in more for option in options(kind)]
    settings = read_settings(file, more) if file is not None else {}
    parser = _training_parser(verb, description, extra)
    parser.set_defaults(**settings_of_preset(_value_of("--preset", argv, verb) or settings.get("preset")))
    settings = _converted(parser, settings, where=str(file))
    expect_kinds(settings, GROUPS, file=str(file))
    parser.set_defaults(**settings)
    found = vars(parser.parse_args(argv))
    del found["config"]
    if verb != "train" and found["launch"]:
        raise ConfigError(f"`srpo {verb}` runs in one process", where="launch", fix="leave it out")
    if found["processes"] and not found["launch"]:
        raise ConfigError("given without launch, which starts them", where="processes", fix="add `--launch ddp`")
    groups = []
    for kind in more:
        names = [option.name for option in options(kind)]
        groups.append(build(kind, {name: found.pop(name) for name in names if name in found}))
    return found, tuple(groups)


def _expect_names(verb: str, argv: Sequence[str], file: str | None, more: Iterable[type[Dataclass]]) -> None:
    """Checks, before torch is imported, that all flags and keys of the settings file are known.

    Raises:
        UsageError: an unknown flag, or neither a settings file nor a flag names the model and the data.
        ConfigError: an unknown key in the settings file.
    """
    if names := training_names():
        names += [option.name for kind in more for option in options(kind)]
        known = [*names, *(f"no_{name}" for name in names), "config"]
        expect_flags(f"srpo {verb}", argv, [*known, *(name.replace("_", "-") for name in known)])
        if file is not None:
            read_settings_file(file, [*names, "evaluate"], verb=verb)
    given = {word.partition("=")[0].replace("-", "_") for word in argv}
    for name in ("model_name_or_path", "dataset_name"):
        if not given & {"__config", f"__{name}", "__help", "_h"}:
            raise UsageError(f"no {name}", fix=f"add `--{name} …` or put it in the settings file")


def training_groups(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """Makes the four dataclass instances of a training run, config, model, data and run, from setting → value."""
    from transformers import HfArgumentParser

    from srpo.train.arguments import GROUPS

    return HfArgumentParser(GROUPS).parse_dict(dict(found))


def _training_parser(verb: str, description: str, extra: Iterable[Option]) -> FlagParser:
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    from srpo.train.arguments import GROUPS

    class TrainingParser(FlagParser, HfArgumentParser):
        """The HfArgumentParser of transformers with srpo's errors and headings."""

        def _add_dataclass_arguments(self, kind: type[Dataclass]) -> None:
            hints = get_type_hints(kind)
            for each in fields(kind):
                help = each.metadata.get("help", "")
                title = getattr(help, "rule", Rule()).group or COMMON.get(each.name, (FROM_TRANSFORMERS,))[0]
                each.type = hints[each.name]  # HfArgumentParser reads the resolved type there
                if each.init:
                    self._parse_dataclass_field(self.heading(title), each)

    usage = f"srpo {verb} [--config FILE] [--FLAG VALUE …]"
    words = {"prog": f"srpo {verb}", "description": description, "usage": usage}
    parser = TrainingParser((), **words, allow_abbrev=False, add_help=False, formatter_class=_Formatter)
    text = "Show the flags that most runs need; all: every flag."
    shown, absent = ["all"], argparse.SUPPRESS  # the option of a help page is no setting
    parser.add_argument(
        "-h", "--help", nargs="?", choices=shown, metavar="all", default=absent, action=_Help, help=text
    )
    parser.add_argument("--config", help="Flat YAML file of settings; its keys are the names of the flags.")
    for title in HEADINGS:
        parser.heading(title)
    parser.add_options(each if each.rule.group else each._replace(rule=Rule(group=verb)) for each in extra)
    for group in GROUPS:
        parser._add_dataclass_arguments(group)
    for action in parser._actions:
        if action.dest in COMMON:
            action.help = COMMON[action.dest][1]
        if get_origin(action.type) is dict:
            action.type = partial(as_mapping, name=action.dest)
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # a flag that may be unset, such as --bf16, needs no value either
        if action.option_strings[0] == f"--no_{action.dest}":
            action.help = f"Switches --{action.dest} off."
        if len(list(action.choices or ())) > 4:
            action.metavar = "NAME"  # a list of forty optimisers would hide the flag
    return parser


class _Help(argparse.Action):
    """The action of `--help`, which hides most flags of transformers; `--help all` shows them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: object = None
    ) -> None:
        folded = next(group for group in parser._action_groups if group.title == FROM_TRANSFORMERS)
        if values != "all":
            for action in folded._group_actions:
                action.help = argparse.SUPPRESS
            folded.description = f"{len(folded._group_actions)} more flags; `{parser.prog} --help all` lists them."
        parser.print_help()
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter of help pages that shows defaults and hides the hyphen spelling of flags with underscores."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, False, "", [], argparse.SUPPRESS) and action.const is not False
        return f"{action.help} [%(default)s]" if shown else action.help

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = argparse.Action([each for each in action.option_strings if "-" not in each[2:]], action.dest)
        shown.nargs, shown.choices, shown.metavar = action.nargs, action.choices, action.metavar
        return super()._format_action_invocation(shown if shown.option_strings else action)


def _converted(parser: argparse.ArgumentParser, settings: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Converts settings of a file to the types of their flags; YAML reads 2e-6 as text.

    Raises:
        ConfigError: the flag of a setting rejects the value.
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
    """The value of a flag, such as `--config`, that must be known before the parser is made.

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
