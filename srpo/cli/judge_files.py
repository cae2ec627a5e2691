"""`srpo judge compare` and `srpo judge agree`: files of answers and files of verdicts."""

from __future__ import annotations

from pathlib import Path

from srpo.cli.judging import add_judge_flags, expect_judge_writable, judge_of
from srpo.cli.parser import Parser


def compare(argv: list[str]) -> int:
    """Puts the answers of two systems to a judge and writes its verdicts as AlpacaEval's annotations."""
    parser = Parser("judge compare", "Put two systems' answers to the same prompts to a judge.")
    add_judge_flags(parser)
    parser.add_argument("--first", required=True, help="trails, AlpacaEval outputs or Arena-Hard answers")
    parser.add_argument("--second", required=True, help="the same of another system")
    parser.add_argument("--revisions", type=int, default=1_000_000, help="answers after so many; default: the last")
    parser.add_argument("--gold_key", default="gold", help="key of a gold answer, for judges that need one")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--output", required=True, help="AlpacaEval annotations to write")
    args = parser.parse_args(argv)
    expect_judge_writable(args, {"--output": args.output}, "first", "second")

    from srpo.disk import write_file
    from srpo.judge.alpaca_arena import alpaca_annotations, read_answers
    from srpo.judge.compare import compare, pair_up
    from srpo.statistics.percent import measured

    one, other = read_answers(args.first), read_answers(args.second)
    comparisons = pair_up(one, other, revisions=args.revisions, gold_key=args.gold_key)
    judge = judge_of(args).load()
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
    """How often two files of annotations say the same, and Cohen's kappa."""
    parser = Parser("judge agree", "See how far two judges agree: two files of annotations on the same answers.")
    parser.add_argument("--first", required=True, help="annotations, as `srpo judge compare` or AlpacaEval writes them")
    parser.add_argument("--second", required=True, help="those of another judge, or of another run of the same")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    args = parser.parse_args(argv)

    from srpo.judge.alpaca_arena import read_annotations
    from srpo.judge.compare import agree
    from srpo.statistics.percent import measured

    found = agree(read_annotations(args.first), read_annotations(args.second), seed=args.seed)
    value, low, high, of = found.kappa
    print(f"{found.pairs} pairs in both files")
    print(f"  the same verdict  {measured(found.same)}")
    print(f"  Cohen's kappa     {value:.2f} [{low:.2f}, {high:.2f}] n={of}")
    return 0
