"""`srpo judge compare` (a judge compares two files of answers) and `srpo judge agree` (two files of verdicts)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srpo.cli.flags import parse
from srpo.judge.settings import JudgeSettings
from srpo.settings import part, setting, shared


@dataclass(kw_only=True)
class CompareArguments:
    """Settings of `srpo judge compare`, which asks a judge to compare two files of answers."""

    judge: JudgeSettings = part(JudgeSettings, group="judge")
    first: str = setting(help="Answers of the first system: trails, AlpacaEval outputs or Arena-Hard answers.")
    second: str = setting(help="Answers of the second system to the same prompts, in any of these forms.")
    revisions: int = setting(1_000_000, "Number of revisions after which an answer is taken; the default is the last.")
    gold_key: str = shared("gold_key")
    seed: int = shared("seed", help="Seed of the intervals.")
    output: str = setting(help="File of AlpacaEval annotations to write.")


@dataclass(kw_only=True)
class AgreeArguments:
    """Settings of `srpo judge agree`, which measures how often two files of verdicts agree."""

    first: str = setting(help="Annotations of one judge, as `srpo judge compare` or AlpacaEval writes them.")
    second: str = setting(help="Annotations of another judge, or of another run of the same judge.")
    seed: int = shared("seed", help="Seed of the intervals.")


def compare(argv: list[str]) -> int:
    """Runs `srpo judge compare`: a judge picks the better of two systems' answers to each prompt; returns 0.

    Prints the win rate of the second file and writes the verdicts as AlpacaEval annotations.
    """
    description = "Ask a judge about the answers of two systems to the same prompts."
    args = parse("judge compare", description, CompareArguments, argv)
    args.judge.expect_used()

    from srpo.disk import expect_writable, write_file
    from srpo.judge.alpaca_arena import alpaca_annotations, read_answers
    from srpo.judge.compare import compare, pair_up
    from srpo.judge.load import judge_from
    from srpo.statistics.percent import measured

    inputs = {"--first": args.first, "--second": args.second, **args.judge.files()}
    expect_writable({"--output": args.output}, inputs)
    one, other = read_answers(args.first), read_answers(args.second)
    comparisons = pair_up(one, other, revisions=args.revisions, gold_key=args.gold_key)
    judge = judge_from(args.judge)
    found = compare(judge, comparisons, seed=args.seed)
    names = (Path(args.first).stem, Path(args.second).stem)
    text = alpaca_annotations(found.comparisons, found.verdicts, names, judge.identity)
    write_file(Path(args.output), text.encode(), flag="--output")
    print(f"{names[1]} against {names[0]}, by {judge.identity}")
    print(f"  wins      {measured(found.wins)}, ties as half")
    print(f"  unscored  {measured(found.unscored)}")
    print(f"  flips     {measured(found.flips)}, the two orders disagree")
    return 0


def agree(argv: list[str]) -> int:
    """Runs `srpo judge agree`: prints how often two files of verdicts agree, and Cohen's kappa; returns 0."""
    description = "Measure how far two judges agree: two files of annotations on the same answers."
    args = parse("judge agree", description, AgreeArguments, argv)

    from srpo.judge.alpaca_arena import read_annotations
    from srpo.judge.compare import agree
    from srpo.statistics.percent import measured

    found = agree(read_annotations(args.first), read_annotations(args.second), seed=args.seed)
    value, low, high, pairs = found.kappa
    print(f"{found.pairs} pairs in both files")
    print(f"  the same verdict  {measured(found.same)}")
    print(f"  Cohen's kappa     {value:.2f} [{low:.2f}, {high:.2f}] n={pairs}")
    return 0
