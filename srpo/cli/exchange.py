"""`srpo exchange`: converts files of drafts and revisions to and from the files of AlpacaEval and Arena-Hard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srpo.cli.flags import parse
from srpo.settings import setting

DESCRIPTION = """Write answers in the form of another tool. Reads trails, AlpacaEval outputs, Arena-Hard answers and
questions; the keys of a file decide which of these it holds."""


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo exchange`, which converts answers to and from the files of AlpacaEval and Arena-Hard."""

    input: str = setting(help="JSON or JSONL file: trails, AlpacaEval outputs, Arena-Hard answers or questions.")
    output: str = setting(help="File to write.")
    form: str = setting(help="Form of the output: alpaca, arena, trails, or prompts (for `srpo revise --input`).")
    name: str = setting("", "Name of the system in the output: the generator of AlpacaEval, the model of Arena-Hard.")
    revisions: int = setting(1_000_000, "Number of revisions after which an answer is taken; the default is the last.")


def main(argv: list[str]) -> int:
    """Runs `srpo exchange`: converts a file of drafts and revisions to the format of AlpacaEval or Arena-Hard, or back.

    Returns:
        0.
    """
    args = parse("exchange", DESCRIPTION, Arguments, argv)

    from srpo.disk import expect_writable, write_file
    from srpo.judge.alpaca_arena import read_answers, written_as

    expect_writable({"--output": args.output}, {"--input": args.input})
    trails = read_answers(args.input)
    text = written_as(args.form, trails, name=args.name, revisions=args.revisions)
    write_file(Path(args.output), text.encode(), flag="--output")
    print(f"{len(trails)} rows in {args.output}")
    return 0
