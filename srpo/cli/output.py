"""Messages of the command line: progress on standard error, libraries kept quiet."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current standard error: while a progress bar is shown, that is the stream above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own __init__ would fix the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def show_progress() -> None:
    """Sends progress to standard error, one line each; log lines of single HTTP requests are left out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_StandardError()])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def quiet_transformers() -> None:
    """Keeps the warnings and progress bars of transformers off standard error."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
