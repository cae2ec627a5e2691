"""`srpo evaluate`: score drafts and revisions against gold answers, with intervals, and compare systems."""

from __future__ import annotations

import shlex
from pathlib import Path

from srpo import __version__
from srpo.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Judges the trails, writes tables, figure and report, prints the table and what was found.

    Raises:
        SRPOError: a file, a judge or the output folder is wrong, or the systems were not given the same prompts.
    """
    parser = Parser("evaluate", "Score drafts and revisions, with intervals over prompts, and compare systems.")
    parser.add_argument(
        "--trails",
        nargs="+",
        required=True,
        metavar="[NAME=]FILE",
        help="files written by `srpo revise`, one per system; a name that stands twice is a system with two seeds",
    )
    parser.add_argument("--output_dir", required=True, help="folder for report, figure and tables")
    parser.add_argument("--judge", default="exact_match", help="exact_match, per_character or module:function")
    parser.add_argument("--secondary", nargs="+", default=[], metavar="JUDGE", help="judges to report beside it")
    parser.add_argument("--highlight", default="", help="the system that the comparisons are about; default: the first")
    parser.add_argument("--gold_key", default="gold", help="column of the prompts' file that holds the gold answer")
    parser.add_argument("--split_key", default="split", help="column that holds the name of the split, if any")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling and of the trails shown")
    args = parser.parse_args(argv)

    from rich.console import Console

    from srpo.evaluate.cases import sample_cases
    from srpo.evaluate.inputs import read_systems
    from srpo.evaluate.judges import load_judge
    from srpo.evaluate.pooling import Resampling
    from srpo.evaluate.report import write_evaluation
    from srpo.evaluate.scores import score
    from srpo.evaluate.summary import summarise, usual_questions
    from srpo.evaluate.table import print_table
    from srpo.output import writable_folder

    judges = {name: load_judge(name) for name in (args.judge, *args.secondary)}
    writable_folder(Path(args.output_dir))
    trails = read_systems(args.trails, gold_key=args.gold_key, split_key=args.split_key)
    scored = score(trails, judges, gold_key=args.gold_key)
    highlight = args.highlight or next(iter(scored)).system
    results = summarise(
        scored, usual_questions(scored, highlight), highlight=highlight, resampling=Resampling(seed=args.seed)
    )
    report = write_evaluation(
        args.output_dir,
        results,
        title="Drafts and revisions of " + ", ".join(results.values("system")),
        samples=sample_cases(scored, highlight, seed=args.seed),
        run={"command": shlex.join(["srpo", "evaluate", *argv]), "judge": list(judges), "srpo": __version__},
    )
    console = Console(highlight=False)
    print_table(results, console)
    for sentence in results.verdict:
        console.print(sentence, markup=False)
    console.print(f"The report is {report}", markup=False, soft_wrap=True)
    return 0
