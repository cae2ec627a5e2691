"""`srpo sample`: draws several drafts of each prompt and revises each, for a judge to order."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.trails import TrailArguments, parse_trails
from srpo.revise.settings import RevisionSettings
from srpo.settings import part, setting


@dataclass(kw_only=True)
class Arguments(TrailArguments):
    """Settings of `srpo sample`, which draws several drafts of each prompt and revises each."""

    samples: int = setting(2, "Number of drafts of each prompt; every draft is revised.")
    # The judge must see every revision, also those that the model's own policy would reject.
    revision: RevisionSettings = part(RevisionSettings, without=["policy"], revisions=2, policy="always")


def main(argv: list[str]) -> int:
    """Runs `srpo sample`: writes a file with several drafts and their revisions for each prompt; returns 0."""
    description = "Draw several drafts of each prompt and revise them, for a judge to order (`srpo label`)."
    args = parse_trails("sample", description, Arguments, argv)

    from srpo.rounds.sample import sample_file

    done, skipped = sample_file(
        args.reviser,
        args.prompts(),
        args.output,
        args.revision,
        samples=args.samples,
        bad_rows=args.bad_rows,
        made_with=args.made_with(),
    )
    args.finish(done, skipped)
    return 0
