"""`srpo check`: what a data file becomes, before anything is trained on it; needs a tokenizer and no weights."""

from __future__ import annotations

from collections import Counter

from srpo.cli.parser import Parser

SHOWN_REJECTS = 10


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("check", "Show what a data file becomes: usable rows, lengths, sharing, rendered examples.")
    parser.add_argument("--dataset_name", required=True, help="JSONL with prompt, chosen and rejected")
    parser.add_argument("--model_name_or_path", required=True, help="where the tokenizer is")
    parser.add_argument("--revision_template", help="preset or file; default: the one saved there, or fitting")
    parser.add_argument("--max_length", type=int, help="longest of the six sequences, tokens")
    parser.add_argument("--examples", type=int, default=3, help="rendered examples to show")
    args = parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from srpo.model.load import load_tokenizer
    from srpo.pairs.inspection import inspect
    from srpo.pairs.render import Renderer, template_for

    template = template_for(args.model_name_or_path, args.revision_template)
    renderer = Renderer(load_tokenizer(args.model_name_or_path), template)
    found = inspect(args.dataset_name, renderer, max_length=args.max_length, examples=args.examples)
    console = Console(highlight=False)
    for pair, six in found.examples:
        for role, (context, answer) in (("draft", six[0]), ("revision of the rejected answer", six[4])):
            console.print(f"[bold]{pair.where}, {role}[/bold] (scored tokens in colour)")
            shown = Text(renderer.tokenizer.decode(context), style="dim")
            console.print(shown.append(renderer.tokenizer.decode(answer), style="not dim bold green"), "")
    total = found.usable + len(found.rejects)
    console.print(f"{found.usable} of {total} rows usable as {found.layout}; {found.duplicates} duplicates")
    for where, reason in found.rejects[:SHOWN_REJECTS]:
        console.print(f"  {where}: {reason}", markup=False)
    for reason, count in Counter(reason for _, reason in found.rejects).most_common():
        console.print(f"  {count} × {reason}", markup=False)
    table = Table("tokens", "median", "95 %", "longest", box=None)
    for name, lengths in found.lengths.items():
        table.add_row(name, *map(str, lengths))
    console.print(table)
    if args.max_length is not None:
        console.print(f"{found.over} of {found.usable} rows are over max_length {args.max_length}")
    console.print(
        f"revision template {renderer.template.name}: {found.flat_tokens} flat tokens, {found.packed_tokens} packed "
        f"({found.flat_tokens / found.packed_tokens:.2f} to 1)"
    )
    return 0
