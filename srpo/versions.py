"""Versions of Python, srpo and its libraries: an allow-list, so that records and bug reports reveal nothing else."""

from __future__ import annotations

import importlib.metadata
import platform

from srpo import __version__

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "tokenizers",
    "trl",
    "vllm",
    "bitsandbytes",
)


def versions() -> dict[str, str | None]:
    """Returns library → installed version, None where it is not installed; no library is imported.

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
