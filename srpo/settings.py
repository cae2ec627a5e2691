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


def _expect_each_once(root: Any, path: str) -> None:
    """YAML takes the last of two equal keys without a word."""
    import yaml

    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # aliases may go in circles
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        waiting += [value for _, value in node.value]
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if key.value in lines:
                what = f"key {key.value!r} stands twice, first in line {lines[key.value]}"
                raise ConfigError(what, where=f"{path}:{key.start_mark.line + 1}")
            lines[key.value] = key.start_mark.line + 1
