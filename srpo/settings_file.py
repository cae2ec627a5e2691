"""Reads YAML files of settings; a repeated key is an error."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError
from srpo.secrets import redacted
from srpo.settings import expect_known

_YAML = "a YAML file of settings"


def read_settings(path: str, known: Iterable[str] = (), *, section: str = "", verb: str = "") -> dict[str, Any]:
    """Reads a YAML file of settings into a dictionary.

    Args:
        known: names of settings that the file may hold; empty allows any.
        section: top-level key of a recipe below which the settings may be nested.
        verb: the srpo command whose help lists the keys, for error messages.

    Raises:
        InputError: the file is missing or cannot be read.
        ConfigError: the file is not a YAML mapping, repeats a key, or holds an unknown key.
    """
    found = read_yaml(path)
    if isinstance(found, dict) and section:
        found = found.get(section, found)
    if not isinstance(found, dict):
        raise ConfigError("not a mapping", where=path, expected="lines of `key: value`")
    redacted(found)  # registers values under the name of a secret before any message can repeat them
    if known:
        expect_known(found, known, where=path, verb=verb)
    return found


def read_yaml(path: str) -> Any:
    """Reads the content of a YAML file; {} for an empty file.

    Raises:
        InputError: the file is missing or cannot be read.
        ConfigError: the file is not YAML, or repeats a key.
    """
    import yaml

    try:
        text = Path(path).read_text("utf-8")
        _expect_each_once(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text) or {}
    except FileNotFoundError:
        raise InputError("no such file", where=path, expected=_YAML) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path, expected=_YAML) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", where=path) from None


def _expect_each_once(root: object, path: str) -> None:
    """Raises ConfigError for repeated keys in a YAML document; YAML itself silently takes the last one."""
    import yaml

    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # aliases may form circles
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        waiting += [value for _, value in node.value]
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if key.value in lines:
                repeated = f"key {key.value!r} stands twice, first in line {lines[key.value]}"
                raise ConfigError(repeated, where=f"{path}:{key.start_mark.line + 1}")
            lines[key.value] = key.start_mark.line + 1
