"""An argparse parser whose mistakes are our errors."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from srpo.errors import ConfigError, UsageError, did_you_mean


class Mistakes(argparse.ArgumentParser):
    """argparse whose mistakes are a `UsageError`, with a suggestion for a flag it does not know."""

    def flags(self) -> list[str]:
        """Every long flag this parser knows."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def converted(self, settings: Mapping[str, Any], *, where: str) -> dict[str, Any]:
        """Settings from a file as the flags of their names would have them; YAML reads 2e-6 as text.

        Raises:
            ConfigError: a value that its flag would not take.
        """
        found = dict(settings)
        for action in self._actions:
            value = settings.get(action.dest)
            if value is False and "no" in (action.choices or ()):
                value = found[action.dest] = "no"  # which YAML reads as false
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                try:
                    made = self._get_value(action, str(value))
                except argparse.ArgumentError as problem:
                    raise ConfigError(f"{action.dest}: {problem.message}", where=where) from None
                found[action.dest] = [made] if action.nargs == "+" else made  # as the flag with one word after it
        return found

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = self._instead_of(unknown[1]) if unknown else ""
        raise UsageError(message, where=self.prog, fix=near or f"`{self.prog} --help` lists the options")

    def _instead_of(self, flag: str) -> str:
        """What to write for a flag that there is none of."""
        if flag == "--device" and "--use_cpu" in self.flags():  # nothing that is spelt like it is meant
            return "a GPU is used where there is one; `--use_cpu` or CUDA_VISIBLE_DEVICES choose otherwise"
        return did_you_mean(flag, self.flags())


class Parser(Mistakes):
    """The parser of one verb: no abbreviations, defaults shown."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"srpo {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what standard error is at the time: while a bar is shown, to what writes above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would settle on a stream

    @property
    def stream(self) -> Any:
        return sys.stderr


def show_progress() -> None:
    """Progress goes to standard error, a line each; what a library says of every single request does not."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_StandardError()])
    logging.getLogger("httpx").setLevel(logging.WARNING)
