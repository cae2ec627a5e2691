"""`srpo revise`: a file of prompts → a file of trails, resumable line by line."""

from __future__ import annotations

from srpo.cli.engine import add_drawing_flags, drawing
from srpo.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("revise", "Draft an answer to each prompt and revise it.")
    parser.add_argument("--input", required=True, help="a file with a `prompt` per row, in any layout; -: stdin")
    parser.add_argument("--revisions", type=int, default=5, help="revisions at most")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--policy", default="auto", help="auto, always, if_preferred, until_worse, fixed:K, …")
    parser.add_argument("--reference", help="what the model was before training, for its own confidence")
    parser.add_argument("--diff", action="store_true", help="print every trail, what changed in it marked")
    parser.add_argument("--html", metavar="FILE", help="write a page of the trails")
    add_drawing_flags(parser)
    args, drawn = drawing(parser, argv)

    from srpo.revise.settings import RevisionSettings
    from srpo.revise.stored_calibration import calibrated_policy
    from srpo.revise.trail_files import located_trails, revise_file

    settings = RevisionSettings(args.revisions, args.temperature, args.seed, args.max_new_tokens, args.policy)
    source = "/dev/stdin" if args.input == "-" else args.input
    calibrated = calibrated_policy(args.model_name_or_path) if args.policy == "auto" else ""
    made_with = {**drawn.made_with, "calibrated": calibrated}
    done, skipped = revise_file(
        drawn.reviser, source, args.output, settings, bad_rows=args.bad_rows, made_with=made_with
    )
    drawn.told(args.output, done, skipped)
    if args.diff or args.html:
        from rich.console import Console

        from srpo.report.trail_page import as_text, write_page

        trails = [trail for _, trail in located_trails(args.output)]
        if args.html:
            write_page(args.html, trails, f"Drafts and revisions of {args.model_name_or_path}")
        console = Console(highlight=False)
        for trail in trails if args.diff else ():
            console.print(as_text(trail, marks=not console.is_terminal))
    return 0
