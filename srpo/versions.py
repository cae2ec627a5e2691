"""Which versions are at work: an allow-list, so that a record or a bug report tells nothing else of a machine."""

from __future__ import annotations

import importlib.metadata
import platform

from srpo import __version__

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "trl", "vllm")


def versions() -> dict[str, str | None]:
    """Library → installed version, None where it is not installed; nothing is imported to find out.

    Example:
        >>> list(versions())[:3]
        ['srpo', 'python', 'torch']
    """
    found: dict[str, str | None] = {"srpo": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
