"""An argparse parser whose mistakes are our errors."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from srpo.errors import UsageError, did_you_mean


class Mistakes(argparse.ArgumentParser):
    """argparse whose mistakes are a `UsageError`, with a suggestion for a flag it does not know."""

    def flags(self) -> list[str]:
        """Every long flag this parser knows."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = did_you_mean(unknown[1], self.flags()) if unknown else ""
        raise UsageError(message, where=self.prog, fix=near or f"`{self.prog} --help` lists the options")


class Parser(Mistakes):
    """The parser of one verb: no abbreviations, defaults shown."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"srpo {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
