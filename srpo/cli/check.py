"""`srpo check`: what a data file becomes, before anything is trained on it; needs a tokenizer and no weights."""

from __future__ import annotations

import json
from pathlib import Path

from srpo.cli.parser import Parser

DESCRIPTION = """Show what data becomes: its layout, usable rows, lengths, sharing, rendered examples.

Ends with 0 when there is anything to train on, whatever it finds; 65 when no row is usable, 66 when there is no such
file, 78 when the template does not fit.
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("check", DESCRIPTION)
    parser.add_argument("--dataset_name", required=True, help="a file, a folder, or a name that `datasets` can load")
    parser.add_argument("--model_name_or_path", required=True, help="where the tokenizer is")
    parser.add_argument("--revision_template", help="preset or file; default: the one saved there, or fitting")
    parser.add_argument("--max_length", type=int, help="longest of the six sequences, tokens; default: the model's own")
    parser.add_argument("--truncate", default="none", help="none, or prompt: cut the oldest part of a long prompt")
    parser.add_argument("--eval_dataset_name", help="rows that ought not to be among those trained on")
    parser.add_argument("--map", help="columns of other names, ours=theirs: prompt=instruction,chosen=good")
    parser.add_argument("--rankings", default="all", help="pairs of a ranked list: all, or best-worst")
    parser.add_argument("--dataset_config", help="configuration of a named data set")
    parser.add_argument("--dataset_train_split", default="train", help="split of a named data set")
    parser.add_argument("--dataset_test_split", default="test", help="split of a named evaluation set")
    parser.add_argument("--dataset_num_proc", type=int, help="processes; default: one per core, eight at most")
    parser.add_argument("--examples", type=int, default=3, help="rendered examples to show")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    parser.add_argument("--html", help="write the findings as a page to this file as well")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON instead")
    args = parser.parse_args(argv)

    from srpo.check.inspection import inspect
    from srpo.check.inspection_print import print_inspection
    from srpo.data.read import Source, columns_of
    from srpo.disk import expect_writable, write_file
    from srpo.model.weights.load import load_tokenizer
    from srpo.sequences.render import Renderer, template_for
    from srpo.sequences.tree_store import cache_folder

    read = ("dataset_name", "eval_dataset_name", "revision_template")
    expect_writable({"--html": args.html}, {f"--{name}": getattr(args, name) for name in read})
    template = template_for(args.model_name_or_path, args.revision_template)
    tokenizer = load_tokenizer(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    renderer = Renderer(tokenizer, template)
    how = (columns_of(args.map), args.rankings)
    test = args.eval_dataset_name and Source(args.eval_dataset_name, *how, args.dataset_test_split, args.dataset_config)
    found = inspect(
        Source(args.dataset_name, *how, args.dataset_train_split, args.dataset_config),
        renderer,
        max_length=args.max_length or _context(args.model_name_or_path),
        truncate=args.truncate,
        evaluation=test,
        examples=args.examples,
        num_proc=args.dataset_num_proc,
        cache=cache_folder(),
    )
    if args.html:
        write_file(Path(args.html), found.to_html().encode(), flag="--html")
    print(found.to_json()) if args.json else print_inspection(found)
    return 0


def _context(path: str) -> int | None:
    """The model's own context where its folder says it; no weights are read for it."""
    try:
        settings = json.loads((Path(path) / "config.json").read_text("utf-8"))
        return {**settings, **(settings.get("text_config") or {})}.get("max_position_embeddings")
    except (OSError, ValueError, TypeError, AttributeError):
        return None
