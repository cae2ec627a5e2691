"""`python -m tests.faults.die AT VERB …`: the command, killed at something that it does to the disk.

AT is the number of a write since the first checkpoint was begun, the name of one such as `os.rename checkpoint-2`, or
`-` to live. Of several processes the first alone dies.
"""

from __future__ import annotations

import os
import signal
import sys

from tests.faults.dying import Disk


class Dying(Disk):
    """Counts from the first staging folder on."""

    def __init__(self, at: str) -> None:
        super().__init__(int(at) if at.isdigit() else None)
        self._name, self._begun = at, False

    def _happens(self, name: str) -> None:
        self._begun = self._begun or name == "os.mkdir .staging"
        if self._begun:
            super()._happens(name)
            if name == self._name:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    from srpo.cli.main import main as command

    at = sys.argv.pop(1)
    if at == "-" or os.environ.get("RANK", "0") != "0":
        command()
    with Dying(at).watched():
        command()


if __name__ == "__main__":
    main()
