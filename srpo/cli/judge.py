"""`srpo judge`: measures a judge on labelled pairs, compares two files of answers, or compares two judges."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from srpo.cli.flags import parse
from srpo.errors import UsageError, did_you_mean
from srpo.judge.settings import JudgeSettings
from srpo.settings import part, setting, shared

ACTIONS = ("check", "compare", "agree")


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo judge check`, which measures a judge on labelled pairs."""

    judge: JudgeSettings = part(JudgeSettings, group="judge")
    pairs: str = setting(help="Labelled pairs: rows with prompt, chosen and rejected, in any layout srpo reads.")
    map: str | None = shared("map")
    split: str = setting("train", "Split of a data set loaded by name.")
    limit: int | None = setting(None, "Number of pairs to draw at random; unset: all.")
    runs: int = setting(
        1, "1, or 2: ask everything twice, to measure how far the judge agrees with itself.", choices=(1, 2)
    )
    gold_key: str = shared("gold_key")
    seed: int = shared("seed", help="Seed of the random choice of pairs and of the intervals.")
    output: str | None = setting(None, "Write the numbers to this JSON file as well.")


def main(argv: list[str]) -> int:
    """Runs `srpo judge`: the first word of `argv` names the action `check`, `compare` or `agree`; returns 0.

    Raises:
        UsageError: an unknown action.
    """
    if argv[:1] in ([], ["-h"], ["--help"]):
        print("usage: srpo judge check|compare|agree [options]\n\n`srpo judge check --help` lists the options.")
        return 0
    if argv[0] not in ACTIONS:
        expected, fix = "one of " + ", ".join(ACTIONS), did_you_mean(argv[0], ACTIONS)
        raise UsageError(f"unknown action {argv[0]!r}", where="srpo judge", expected=expected, fix=fix)
    from srpo.cli import judge_files

    return {"check": check, "compare": judge_files.compare, "agree": judge_files.agree}[argv[0]](argv[1:])


def check(argv: list[str]) -> int:
    """Runs `srpo judge check`: has a judge decide labelled pairs; prints accuracy, biases, flips and unscored pairs.

    A flip is a pair whose verdict changes with the order of the two answers. Each rate has a confidence interval.

    Returns:
        0.
    """
    description = "Measure a judge on labelled pairs: accuracy, position and length bias, flips, unscored pairs."
    args = parse("judge check", description, Arguments, argv)
    args.judge.expect_used()

    from srpo.data.read import Source, columns_of, read_pairs
    from srpo.disk import expect_writable, write_file
    from srpo.judge.check import check_judge, print_check, sample
    from srpo.judge.load import judge_from
    from srpo.judge.verdict import expect_verdicts

    expect_writable({"--output": args.output}, {"--pairs": args.pairs, **args.judge.files()})
    judge_from(args.judge)  # finds mistakes in the settings before the pairs are read
    pairs = sample(read_pairs(Source(args.pairs, columns_of(args.map), split=args.split)), args.limit, args.seed)
    checked = check_judge(
        functools.partial(judge_from, args.judge), pairs, runs=args.runs, gold_key=args.gold_key, seed=args.seed
    )
    print_check(checked)
    if args.output:
        write_file(Path(args.output), checked.to_json().encode(), flag="--output")
    expect_verdicts(checked.comparisons, checked.verdicts, checked.judge)
    return 0
