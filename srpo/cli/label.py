"""`srpo label`: a file of trails and a judge → preference pairs of the model's own answers."""

from __future__ import annotations

from srpo.cli.judging import add_judge_flags, expect_judge_writable, judge_of
from srpo.cli.parser import Parser, show_progress


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser(
        "label", "Order a model's own drafts and revisions by a judge; the pairs are ordinary training data."
    )
    parser.add_argument("--trails", required=True, help="JSONL of trails, from `srpo sample` or `srpo revise`")
    parser.add_argument("--output", required=True, help="JSONL of pairs; what became of the labels stands beside it")
    parser.add_argument("--ask", default="draft-revision,revision-revision,draft-draft", help="which two are compared")
    parser.add_argument("--choose", default="random", help="which comparisons get a label: random or uncertain")
    parser.add_argument("--labels", type=int, help="labels at most; unset: every comparison gets one")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--gold_key", default="gold", help="column with the gold answer, for judges that need one")
    parser.add_argument(
        "--to_vote", action="store_true", help="write the comparisons to --output for people to vote on"
    )
    add_judge_flags(parser)
    args = parser.parse_args(argv)
    beside = {"what is written beside --output": f"{args.output}.labels.json"}
    expect_judge_writable(args, {"--output": args.output, **beside}, "trails")

    from srpo.judge.votes import write_questions
    from srpo.revise.trail_files import read_trails
    from srpo.rounds.candidates import choose, find, kinds_of
    from srpo.rounds.label import LabelSettings, label_file

    show_progress()
    settings = LabelSettings(kinds_of(args.ask), args.choose, args.labels, args.seed, args.gold_key)
    if args.to_vote:
        found = find(read_trails(args.trails, gold_key=None), settings.ask)
        chosen = choose(found.candidates, settings.labels, by=settings.choose, seed=settings.seed)
        write_questions((each.comparison for each in chosen), args.output)
        print(
            f"{args.output}: {len(chosen)} comparisons; vote first, second or tie, then `--judge votes:{args.output}`"
        )
        return 0
    counts = label_file(args.trails, args.output, judge_of(args).load(), settings)
    print("\n".join(counts.lines()))
    print(f"{args.output}: {sum(counts.pairs.values())} pairs")
    return 0
