"""Settings of a training run from a file and flags, for every verb that begins as a run would."""

from __future__ import annotations

import logging
import sys
from typing import Any

from srpo.cli.parser import Mistakes
from srpo.errors import UsageError


def settings_of(verb: str, description: str, argv: list[str]) -> tuple[Any, ...]:
    """The groups of settings in their order; flags win over the settings file, the file over a preset."""
    from transformers import HfArgumentParser
    from transformers.utils import logging as hf_logging

    from srpo.train.launch import GROUPS, read_settings, settings_of_preset

    class Parser(Mistakes, HfArgumentParser):
        """transformers' argument parser with our errors."""

    hf_logging.set_verbosity_error()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = Parser(GROUPS, prog=f"srpo {verb}", description=description, allow_abbrev=False)
    parser.add_argument("--config", help="A flat YAML file of settings; its keys are the flags below.")
    file = _value_of("--config", argv, verb)
    settings = read_settings(file) if file else {}
    parser.set_defaults(**settings_of_preset(_value_of("--preset", argv, verb) or settings.get("preset")))
    parser.set_defaults(**parser.converted(settings, where=str(file)))
    parsed = parser.parse_args(argv)
    vars(parsed).pop("config")
    return parser.parse_dict(vars(parsed))


def _value_of(flag: str, argv: list[str], verb: str) -> str | None:
    """A flag's value before the parser runs: it decides the parser's own defaults."""
    for i, word in enumerate(argv):
        if word == flag:
            if i + 1 == len(argv):
                raise UsageError(f"{flag} needs a value", where=f"srpo {verb}")
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
    return None
