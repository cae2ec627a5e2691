"""`srpo judge`: check a judge on labelled pairs, put two files of answers to it, see how far two judges agree."""

from __future__ import annotations

from pathlib import Path

from srpo.cli.judging import add_judge_flags, expect_judge_writable, judge_of
from srpo.cli.parser import Parser, show_progress
from srpo.errors import UsageError, did_you_mean

ACTS = ("check", "compare", "agree")


def main(argv: list[str]) -> int:
    """Runs `check`, `compare` or `agree`.

    Raises:
        UsageError: it is none of them.
    """
    if argv[:1] in ([], ["-h"], ["--help"]):
        print("usage: srpo judge check|compare|agree [options]\n\n`srpo judge check --help` lists the options.")
        return 0
    if argv[0] not in ACTS:
        expected, fix = "one of " + ", ".join(ACTS), did_you_mean(argv[0], ACTS)
        raise UsageError(f"unknown act {argv[0]!r}", where="srpo judge", expected=expected, fix=fix)
    show_progress()
    if argv[0] == "check":
        return check(argv[1:])
    from srpo.cli import judge_files

    return judge_files.compare(argv[1:]) if argv[0] == "compare" else judge_files.agree(argv[1:])


def check(argv: list[str]) -> int:
    """Accuracy, biases, flips and unscored pairs of a judge, with intervals."""
    parser = Parser(
        "judge check", "Put labelled pairs to a judge: accuracy, position and length bias, flips, unscored."
    )
    add_judge_flags(parser)
    parser.add_argument("--pairs", required=True, help="rows with prompt, chosen, rejected; any layout srpo reads")
    parser.add_argument("--map", help="columns of other names, ours=theirs: prompt=instruction,chosen=good")
    parser.add_argument("--split", default="train", help="split of a named data set")
    parser.add_argument("--limit", type=int, help="so many pairs, drawn at random; default: all")
    parser.add_argument("--runs", type=int, default=1, choices=(1, 2), help="2: ask again, how far does it disagree?")
    parser.add_argument("--gold_key", default="gold", help="column with a gold answer, for judges that need one")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing and the intervals")
    parser.add_argument("--output", help="write the numbers to this JSON file as well")
    args = parser.parse_args(argv)
    expect_judge_writable(args, {"--output": args.output}, "pairs")

    from srpo.data.read import Source, columns_of, read_pairs
    from srpo.disk import write_file
    from srpo.judge.check import check_judge, print_check, sample

    make = judge_of(args).load
    make(0)  # a mistake in it is told before the pairs are read
    pairs = sample(read_pairs(Source(args.pairs, columns_of(args.map), split=args.split)), args.limit, args.seed)
    checked = check_judge(make, pairs, runs=args.runs, gold_key=args.gold_key, seed=args.seed)
    print_check(checked)
    if args.output:
        write_file(Path(args.output), checked.to_json().encode(), flag="--output")
    return 0
