"""`srpo evaluate`: draw drafts and revisions or read them, score them with intervals, compare systems, report."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from typing import Any

from srpo.cli.judging import FLAGS, add_judge_flags
from srpo.cli.parser import Parser, show_progress
from srpo.secrets import redacted_command

DESCRIPTION = """Score drafts and revisions, with intervals over prompts, and compare systems: from files of trails, or
from models and prompts, which are drawn first and kept. Flags win over the settings file."""


def main(argv: list[str]) -> int:
    """Draws or reads the trails, judges them, writes the report, prints the table and what was found.

    Raises:
        SRPOError: a file, a model, a judge or the output folder is wrong, or the systems were not given the same
            prompts.
    """
    from srpo.evaluate.plan import Plan, read_plan

    parser = Parser("evaluate", DESCRIPTION)
    parser.add_argument("--config", help="a YAML file of these settings, or a recipe, which has them below `evaluate`")
    for each in fields(Plan):
        if each.name not in (*FLAGS, "asked"):
            parser.add_argument(f"--{each.name}", default=argparse.SUPPRESS, **_flag(each))
    add_judge_flags(parser)
    given = vars(parser.parse_args(argv))
    config = given.pop("config")
    plan = Plan.of({**(read_plan(config) if config else {}), **given}, where=config or "")

    from rich.console import Console

    from srpo.evaluate.run import evaluate
    from srpo.report.text_table import print_table

    show_progress()
    results, report = evaluate(plan, shlex.join(redacted_command(["srpo", "evaluate", *argv])))
    console = Console(highlight=False)
    print_table(results, console)
    for sentence in [*results.verdict, *results.advice]:
        console.print(sentence, markup=False)
    console.print(f"The report is {report}", markup=False, soft_wrap=True)
    return 0


def _flag(option: Any) -> dict[str, Any]:
    """How one field of a plan is given on the command line."""
    help = option.metadata["help"].replace("%", "%%")
    kinds = {"int": int, "float": float, "list[int]": int, "list[float]": float}
    kind = kinds.get(option.type.removesuffix(" | None"), str)
    if option.type == "bool":
        return {"action": "store_true", "help": help}
    if option.metadata["many"]:
        return {"nargs": "+", "type": kind, "help": help, "metavar": option.metadata["metavar"]}
    default = option.default_factory()
    return {"type": kind, "help": f"{help} [{default}]" if default not in (None, "") else help}
