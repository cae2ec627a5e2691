"""Messages of the command line: progress on standard error, libraries kept quiet."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


class _StandardError(logging.StreamHandler[TextIO]):
    """A log handler for the current standard error, which a progress bar replaces by the stream above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own __init__ would fix the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def show_progress() -> None:
    """Prints srpo's progress messages to standard error, but no log lines of single HTTP requests."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_StandardError()])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def quiet_transformers() -> None:
    """Turns off the warnings and progress bars of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
