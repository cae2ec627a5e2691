"""`srpo evaluate`: draw drafts and revisions or read them, score them with intervals, compare systems, report."""

from __future__ import annotations

import shlex

from srpo.cli.flags import parser_of
from srpo.secrets import redacted_command

DESCRIPTION = """Score drafts and revisions, with intervals over prompts, and compare systems: from files of trails, or
from models and prompts; answers are then drawn first and kept. Flags win over the settings file."""


def main(argv: list[str]) -> int:
    """Runs `srpo evaluate`: draws or reads answers, judges them, writes a report and prints scores; returns 0.

    Raises:
        SRPOError: a wrong file, model, judge or output folder, or systems with different prompts.
    """
    from srpo.evaluate.plan import Plan, read_plan

    parser = parser_of("evaluate", DESCRIPTION, Plan)
    parser.add_argument("--config", help="YAML file of these settings, or a recipe with them below `evaluate`.")
    given = vars(parser.parse_args(argv))
    config = given.pop("config")
    plan = Plan.of({**(read_plan(config) if config else {}), **given}, where=config or "")

    from rich.console import Console

    from srpo.evaluate.run import evaluate
    from srpo.judge.load import load_judges
    from srpo.report.text_table import print_table

    plan.check()
    judges = load_judges([plan.judge, *plan.secondary], plan.llm, plan.judge_runs)
    results, report = evaluate(plan, judges, shlex.join(redacted_command(["srpo", "evaluate", *argv])))
    console = Console(highlight=False)
    print_table(results, console)
    for sentence in [*results.cautions, *results.verdict, *results.advice]:
        console.print(sentence, markup=False)
    console.print(f"The report is {report}", markup=False, soft_wrap=True)
    return 0
