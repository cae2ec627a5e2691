"""`srpo revise`: writes drafts and revisions for a file of prompts, resumable, or prints those of one prompt."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srpo.cli.trails import TrailArguments, parse_trails
from srpo.errors import DataError, UsageError
from srpo.revise.settings import RevisionSettings
from srpo.settings import part, setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from srpo.data.source import AnySource
    from srpo.revise.trail import Trail

DESCRIPTION = """Draft an answer to each prompt and revise it.

srpo revise --model_name_or_path my-model "Why is the sky blue?"
srpo revise --model_name_or_path my-model --input prompts.jsonl --output trails.jsonl

Without --output the drafts and revisions are printed, and nothing is kept.
"""


@dataclass(kw_only=True)
class Arguments(TrailArguments):
    """Settings of `srpo revise`, which drafts and revises answers to prompts."""

    prompt: str | None = setting(None, "One prompt; its draft and revisions are printed.", positional=True)
    input: str = setting(
        "", "File of prompts: a `prompt` in each row; JSONL, JSON, CSV or Parquet. -: standard input, rows or one text."
    )
    output: str = setting("", "JSONL file of trails to write; rows that it already holds are not drawn again.")
    revision: RevisionSettings = part(RevisionSettings)
    diff: bool = setting(False, "Print every trail with its changes marked.")
    html: str | None = setting(None, "Write a page of the trails to this file.", metavar="FILE")

    def prompts(self) -> AnySource:
        """Returns the source of prompts: the one on the command line, or the rows of the file in --input."""
        text = self.prompt
        if self.input == "-":
            self.input, text = "/dev/stdin", _plain_text()
        return super().prompts() if text is None else [{"prompt": text}]


def main(argv: list[str]) -> int:
    """Runs `srpo revise`: drafts an answer to each prompt and revises it; writes or prints both; returns 0."""
    args = parse_trails("revise", DESCRIPTION, Arguments, argv)
    if (args.prompt is None) == (args.input == ""):
        raise UsageError("one prompt or --input is needed, not both", where="srpo revise")

    from srpo.data.read import read_prompts
    from srpo.revise.stored_calibration import calibrated_policy
    from srpo.revise.trail_files import located_trails, revise_file

    source = args.prompts()
    if not args.output:
        rows = read_prompts(source)  # before the weights are loaded
        _show(args, args.reviser().trails(rows, args.revision))
        return 0
    calibrated = calibrated_policy(args.model_name_or_path) if args.revision.policy == "auto" else ""
    made_with = {**args.made_with(), "calibrated": calibrated}
    done, skipped = revise_file(
        args.reviser, source, args.output, args.revision, bad_rows=args.bad_rows, made_with=made_with
    )
    args.finish(done, skipped)
    if args.diff or args.html:
        _show(args, (trail for _, trail in located_trails(args.output)), printed=args.diff)
    return 0


def _show(args: Arguments, trails: Iterable[Trail], *, printed: bool = True) -> None:
    """Prints trails as they are drawn, if `printed`, and writes them to the HTML page that `args.html` names."""
    from rich.console import Console

    from srpo.report.trail_page import as_text, write_page

    console, shown = Console(highlight=False), []
    for trail in trails:
        shown.append(trail)
        if printed:
            console.print(as_text(trail, marks=not console.is_terminal), soft_wrap=not console.is_terminal)
    if args.html:
        write_page(args.html, shown, f"Drafts and revisions of {args.model_name_or_path}")


def _plain_text() -> str | None:
    """Standard input as one prompt; None if it holds rows of prompts, to be read from /dev/stdin as a file."""
    content = sys.stdin.buffer.read()
    if content.lstrip()[:1] not in (b"{", b"[", b""):
        try:
            return content.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error.reason}", where="standard input", expected="text, or rows") from None
    with tempfile.TemporaryFile() as spool:
        spool.write(content)
        spool.seek(0)
        os.dup2(spool.fileno(), 0)
    return None
