"""Versions of Python, srpo and its libraries: an allow-list, so that records and bug reports reveal nothing else."""

from __future__ import annotations

import functools
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
    return {"srpo": __version__, "python": platform.python_version(), **{name: _installed(name) for name in LIBRARIES}}


@functools.cache  # a training asks three times, and each look on the disk takes milliseconds
def _installed(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
