"""`srpo sample`: several drafts of each prompt, each revised, to be labelled."""

from __future__ import annotations

from srpo.cli.engine import add_drawing_flags, drawing
from srpo.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("sample", "Draw drafts and revisions of a model's own, for a judge to order (`srpo label`).")
    parser.add_argument("--input", required=True, help="a file with a `prompt` per row, in any layout")
    parser.add_argument("--samples", type=int, default=2, help="drafts per prompt, each revised")
    parser.add_argument("--revisions", type=int, default=2, help="revisions of each draft")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0: greedy drafts are all the same")
    parser.add_argument("--reference", help="what the model was before training, for `srpo label --choose uncertain`")
    add_drawing_flags(parser)
    args, drawn = drawing(parser, argv)

    from srpo.revise.settings import RevisionSettings
    from srpo.rounds.sample import sample_file

    # Whichever the model itself would keep, a judge is to see them all.
    settings = RevisionSettings(args.revisions, args.temperature, args.seed, args.max_new_tokens, policy="always")
    done, skipped = sample_file(
        drawn.reviser,
        args.input,
        args.output,
        settings,
        samples=args.samples,
        bad_rows=args.bad_rows,
        made_with=drawn.made_with,
    )
    drawn.told(args.output, done, skipped)
    return 0
