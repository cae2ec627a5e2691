"""A file of settings: the YAML that commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError

_EXPECTED = "a YAML file of settings"


def read_yaml(path: str) -> Any:
    """What a YAML file holds; an empty one holds no settings.

    Raises:
        InputError: no such file, or it cannot be read.
        ConfigError: it is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except FileNotFoundError:
        raise InputError("no such file", where=path, expected=_EXPECTED) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path, expected=_EXPECTED) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", where=path) from None
