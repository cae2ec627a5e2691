"""`srpo exchange`: trails to and from the files of AlpacaEval and Arena-Hard."""

from __future__ import annotations

from pathlib import Path

from srpo.cli.parser import Parser

DESCRIPTION = """Write answers in the form of another tool. Trails, AlpacaEval outputs, Arena-Hard answers and questions
are read; which of them a file holds, its keys say."""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("exchange", DESCRIPTION)
    parser.add_argument("--input", required=True, help="JSON or JSONL in any of these forms")
    parser.add_argument("--output", required=True, help="file to write")
    parser.add_argument("--form", required=True, help="alpaca, arena, trails, or prompts (for `srpo revise --input`)")
    parser.add_argument("--name", default="", help="what the system is called there: AlpacaEval's generator, say")
    parser.add_argument("--revisions", type=int, default=1_000_000, help="answers after so many; default: the last")
    args = parser.parse_args(argv)

    from srpo.disk import expect_writable, write_file
    from srpo.judge.alpaca_arena import read_answers, written_as

    expect_writable({"--output": args.output}, {"--input": args.input})
    trails = read_answers(args.input)
    text = written_as(args.form, trails, name=args.name, revisions=args.revisions)
    write_file(Path(args.output), text.encode(), flag="--output")
    print(f"{len(trails)} rows in {args.output}")
    return 0
