"""`srpo config-schema`: prints the JSON Schema of a YAML settings file, for editors and other programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from srpo.cli.flags import parse
from srpo.settings import options, setting

FILES = ("train", "rounds", "evaluate")


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo config-schema`, which prints the JSON Schema of a command's YAML settings file."""

    file: str = setting(
        "train", "Verb that reads the settings file: train, rounds or evaluate.", choices=FILES, positional=True
    )


def schema(file: str) -> dict[str, Any]:
    """Returns the JSON Schema of the YAML settings file of one srpo command.

    Args:
        file: the command, "train", "rounds" or "evaluate". The schemas of the first two have a key `evaluate` for the
            settings of `srpo evaluate`, which may be in the same file.
    """
    from srpo.settings_schema import flat_options, schema_of

    title = f"Settings file of srpo {file}"
    if file == "evaluate":
        from srpo.evaluate.plan import Plan

        return schema_of(options(Plan), title=title)
    from srpo.train.arguments import GROUPS

    found = schema_of([each for group in GROUPS for each in flat_options(group)], title=title)
    if file == "rounds":
        from srpo.judge.settings import JudgeSettings
        from srpo.rounds.plan import RoundsArguments

        more = [each for kind in (RoundsArguments, JudgeSettings) for each in options(kind)]
        found["properties"] |= schema_of(more, title="")["properties"]
    found["properties"]["evaluate"] = schema("evaluate") | {"title": "Settings for srpo evaluate"}
    return found


def main(argv: list[str]) -> int:
    """Runs `srpo config-schema`: prints the JSON Schema of a settings file.

    Returns:
        0.
    """
    description = "Print the JSON Schema of a settings file, for editors and other programs."
    args = parse("config-schema", description, Arguments, argv)
    print(json.dumps(schema(args.file), indent=2))
    return 0
