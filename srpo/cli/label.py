"""`srpo label`: a judge orders a model's own drafts and revisions into preference pairs for training."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.judge.settings import JudgeSettings
from srpo.settings import part, setting, shared

DESCRIPTION = "Order a model's own drafts and revisions by a judge; the pairs are ordinary training data."


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo label`, which makes preference pairs from a model's own answers and a judge."""

    trails: str = setting(help="JSONL file of trails, from `srpo sample` or `srpo revise`.")
    output: str = setting(help="JSONL file of pairs to write; counts of the labels go to a file beside it.")
    ask: str = setting(
        "draft-revision,revision-revision,draft-draft", "Kinds of comparison, separated by commas: which two answers."
    )
    choose: str = setting("random", "Comparisons to label if there are more than --labels: random or uncertain.")
    labels: int | None = setting(None, "Largest number of labels; unset: every comparison gets one.")
    seed: int = shared("seed", help="Seed of the choice of comparisons.")
    gold_key: str = shared("gold_key")
    to_vote: bool = setting(False, "Write the comparisons to --output for people to vote on, and ask no judge.")
    judge: JudgeSettings = part(JudgeSettings, group="judge")


def main(argv: list[str]) -> int:
    """Runs `srpo label`: a judge orders answers to one prompt, and preference pairs are written; returns 0.

    With --to_vote, the comparisons are written for people to vote on, and no judge is asked.
    """
    args = parse("label", DESCRIPTION, Arguments, argv)
    args.judge.expect_used()

    from srpo.disk import expect_writable
    from srpo.judge.load import judge_from
    from srpo.judge.votes import write_questions
    from srpo.revise.trail_files import read_trails
    from srpo.rounds.candidates import choose, find, kinds_of
    from srpo.rounds.label import LabelSettings, label_file

    outputs = {"--output": args.output, "file beside --output": f"{args.output}.labels.json"}
    expect_writable(outputs, {"--trails": args.trails, **args.judge.files()})
    settings = LabelSettings(kinds_of(args.ask), args.choose, args.labels, args.seed, args.gold_key)
    if args.to_vote:
        found = find(read_trails(args.trails, gold_key=None), settings.ask)
        chosen = choose(found.candidates, settings.labels, by=settings.choose, seed=settings.seed)
        write_questions((each.comparison for each in chosen), args.output)
        votes = f"vote first, second or tie, then `--judge votes:{args.output}`"
        print(f"{args.output}: {len(chosen)} comparisons; {votes}")
        return 0
    counts = label_file(args.trails, args.output, judge_from(args.judge), settings)
    print("\n".join(counts.lines()))
    print(f"{args.output}: {sum(counts.pairs.values())} pairs")
    return 0
