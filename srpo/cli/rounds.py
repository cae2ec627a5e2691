"""`srpo rounds`: one settings file runs offline training and then rounds of sample, label and train."""

from __future__ import annotations

from srpo.cli.settings import settings_beside
from srpo.errors import Interrupted

DESCRIPTION = """Offline training, then rounds of sample, label and train: learning to revise one's own drafts.

srpo rounds --config rounds.yaml
srpo rounds --config rounds.yaml --rounds 3 --labels_per_round 2000

The same command goes on where a run was stopped.
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    from srpo.judge.settings import JudgeArguments
    from srpo.rounds.plan import RoundsArguments

    settings, (plan, judge) = settings_beside("rounds", DESCRIPTION, argv, (RoundsArguments, JudgeArguments))

    from srpo.rounds.run import run_rounds
    from srpo.signals import signals
    from srpo.train.run import train_with

    try:
        with signals.heard():
            done = run_rounds(str(settings["output_dir"]), settings, plan, judge.load(), train_with)
    except KeyboardInterrupt:
        what = f"interrupted; finished stages are in {settings['output_dir']}"
        raise Interrupted(what, fix="the same command goes on") from None
    for each in done:
        print(each.line())
    return 0
