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
        ConfigError: it is no YAML, or a key stands in it twice.
    """
    import yaml

    try:
        text = Path(path).read_text("utf-8")
        _expect_each_once(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text) or {}
    except FileNotFoundError:
        raise InputError("no such file", where=path, expected=_EXPECTED) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path, expected=_EXPECTED) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", where=path) from None


def _expect_each_once(node: Any, path: str) -> None:
    """YAML takes the last of two equal keys without a word."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        named = isinstance(key, yaml.ScalarNode) and key.value != "<<"
        if named and (first := lines.setdefault(key.value, line)) != line:
            raise ConfigError(f"key {key.value!r} stands twice, first in line {first}", where=f"{path}:{line}")
        _expect_each_once(value, path)
