"""JSON Schemas of settings files, made from the dataclasses that also make the flags."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

from srpo.setting_kinds import kinds, words_of
from srpo.settings import Dataclass, Option, Rule

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", dict: "object"}


def schema_of(found: Iterable[Option], *, title: str) -> dict[str, Any]:
    """Returns the JSON Schema of a YAML file without sections that holds the settings `found`.

    A required setting is optional in the schema, since a flag may give it.

    Example:
        >>> schema_of([Option("seed", int, 0, "Seed.", Rule(least=0))], title="t")["properties"]["seed"]
        {'description': 'Seed.', 'type': 'integer', 'default': 0, 'minimum': 0}
    """
    properties = {option.name: _property(option) for option in found}
    return {
        "$schema": DRAFT,
        "title": title,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def flat_options(kind: type[Dataclass]) -> list[Option]:
    """Returns the settings of a dataclass that holds no other dataclass, with the fields that transformers declares."""
    hints = get_type_hints(kind)
    found = []
    for each in fields(kind):
        if each.init:
            help = each.metadata.get("help", "")
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found.append(Option(each.name, hints[each.name], default, str(help), getattr(help, "rule", Rule())))
    return found


def _property(option: Option) -> dict[str, Any]:
    found: dict[str, Any] = {"description": " ".join(option.help.split())} | _type(option.hint)
    if isinstance(option.default, bool | int | float | str | list | dict):
        found["default"] = getattr(option.default, "value", option.default)
    if option.rule.choices:
        found["enum"] = [*option.rule.choices, *([None] if option.default is None else [])]
    bounds = {
        "minimum": option.rule.least,
        "exclusiveMinimum": option.rule.above,
        "maximum": option.rule.most,
        "exclusiveMaximum": option.rule.below,
    }
    return found | {name: bound for name, bound in bounds.items() if bound is not None}


def _type(hint: object) -> dict[str, Any]:
    """The part of a schema that a type decides; {} for a type that JSON cannot express."""
    if words := words_of(hint):
        return {"enum": [*words, *([None] if type(None) in kinds(hint) else [])]}
    names: list[str] = []
    items: dict[str, Any] = {}
    for kind in kinds(hint):
        origin = get_origin(kind) or kind
        if origin in (list, tuple):
            names.append("array")
            items = {"items": _type(get_args(kind)[0])} if get_args(kind) else {}
        elif origin in _PLAIN:
            names.append(_PLAIN[origin])
        else:
            return {}
    return {"type": names[0] if len(names) == 1 else names} | items
