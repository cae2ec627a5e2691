"""`srpo rounds`: trains on given pairs, then repeats rounds of sample, label and train, from one settings file."""

from __future__ import annotations

from srpo.cli.output import quiet_transformers
from srpo.cli.training_flags import parse_training
from srpo.errors import Interrupted

DESCRIPTION = """Offline training, then rounds of sample, label and train: learning to revise one's own drafts.

srpo rounds --config rounds.yaml
srpo rounds --config rounds.yaml --rounds 3 --labels_per_round 2000

The same command goes on where a run was stopped.
"""


def main(argv: list[str]) -> int:
    """Runs `srpo rounds`: starts or resumes rounds of training, and prints a line for each round; returns 0.

    Raises:
        Interrupted: stopped by a signal; finished parts of a round are kept.
    """
    from srpo.judge.load import judge_from
    from srpo.judge.settings import JudgeSettings
    from srpo.rounds.plan import RoundsArguments

    settings, (plan, judge) = parse_training("rounds", DESCRIPTION, argv, RoundsArguments, JudgeSettings)
    quiet_transformers()

    from srpo.rounds.run import run_rounds
    from srpo.rounds.sources import RoundsSources
    from srpo.signals import signals
    from srpo.train.run import train_with

    # The offline training comes first, and would be hours lost on a mistake in these files.
    RoundsSources.of(settings, plan).expect_usable(judge.judge or "", offline=plan.offline_share > 0)
    try:
        with signals.heard():
            done = run_rounds(str(settings["output_dir"]), settings, plan, judge_from(judge), train_with)
    except KeyboardInterrupt:
        what = f"interrupted; finished stages are in {settings['output_dir']}"
        raise Interrupted(what, fix="the same command goes on") from None
    for each in done:
        print(each.line())
    return 0
