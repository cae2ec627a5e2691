"""Messages of the command line: progress goes to standard error, and libraries print warnings alone."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO

QUIET = "--quiet"  # flag of every verb, which srpo.cli.main takes out of the command line


class _StandardError(logging.StreamHandler[TextIO]):
    """A log handler that looks up `sys.stderr` anew for each line, because a progress bar replaces that stream."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own __init__ would fix the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def show_progress(*, quiet: bool = False) -> None:
    """Prints srpo's progress, or its warnings alone if `quiet`, to standard error; libraries print warnings alone."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars that transformers does not control; read at the import of tqdm
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StandardError()])
    logging.getLogger("srpo").setLevel(logging.WARNING if quiet else logging.INFO)


def quiet_transformers() -> None:
    """Turns off warnings and progress bars of transformers, and two kinds of warnings on which a user cannot act."""
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", "'pin_memory' argument")

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
