"""`srpo revise`: a file of prompts → a file of trails, resumable line by line."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.trails import TrailArguments, parse_trails
from srpo.revise.settings import RevisionSettings
from srpo.settings import part, setting


@dataclass(kw_only=True)
class Arguments(TrailArguments):
    """Settings of `srpo revise`."""

    input: str = setting(
        help="File of prompts: a `prompt` in each row; JSONL, JSON, CSV or Parquet. -: standard input."
    )
    revision: RevisionSettings = part(RevisionSettings)
    diff: bool = setting(False, "Print every trail with its changes marked.")
    html: str | None = setting(None, "Write a page of the trails to this file.", metavar="FILE")


def main(argv: list[str]) -> int:
    """Drafts an answer to each prompt and revises it."""
    args = parse_trails("revise", "Draft an answer to each prompt and revise it.", Arguments, argv)

    from srpo.revise.stored_calibration import calibrated_policy
    from srpo.revise.trail_files import located_trails, revise_file

    source = "/dev/stdin" if args.input == "-" else args.input
    calibrated = calibrated_policy(args.model_name_or_path) if args.revision.policy == "auto" else ""
    made_with = {**args.made_with(), "calibrated": calibrated}
    done, skipped = revise_file(
        args.reviser, source, args.output, args.revision, bad_rows=args.bad_rows, made_with=made_with
    )
    args.finish(done, skipped)
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
