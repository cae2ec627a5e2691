"""`srpo check`: shows the result of reading and rendering data, before training; needs a tokenizer and no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from srpo.cli.flags import parse
from srpo.settings import setting, shared

DESCRIPTION = """Show the layout of a data set, its usable rows, lengths, shared prefixes and rendered examples.

Ends with 0 if any row can be trained on, whatever else is found; 65 if no row is usable, 66 if there is no such file,
78 if the template does not fit.
"""


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo check`, which reports on preference pairs before training: usable rows, lengths, examples."""

    dataset_name: str = setting(help="Preference pairs: a file, a folder, or a name that `datasets` can load.")
    model_name_or_path: str = setting(help="Folder or hub name of the tokenizer.")
    revision_template: str | None = shared("revision_template")
    chat_template_kwargs: dict[str, Any] | None = shared("chat_template_kwargs")
    no_chat_template: bool = shared("no_chat_template")
    max_length: int | None = shared("max_length")
    truncate: str = shared("truncate")
    eval_dataset_name: str | None = shared("eval_dataset_name")
    map: str | None = shared("map")
    rankings: str = shared("rankings")
    dataset_config: str | None = shared("dataset_config")
    dataset_train_split: str = shared("dataset_train_split")
    dataset_test_split: str = shared("dataset_test_split")
    dataset_num_proc: int | None = shared("dataset_num_proc")
    examples: int = setting(3, "Number of rendered examples to show.")
    base_model: str | None = shared("base_model")
    trust_remote_code: bool = shared("trust_remote_code")
    html: str | None = setting(None, "Write the findings as a page to this file as well.", metavar="FILE")
    json: bool = setting(False, "Print the findings as JSON instead of text.")


def main(argv: list[str]) -> int:
    """Runs `srpo check`: reads and tokenises preference pairs, prints usable rows, lengths, examples; returns 0."""
    args = parse("check", DESCRIPTION, Arguments, argv)

    from srpo.check.inspection import inspect
    from srpo.check.inspection_print import print_inspection
    from srpo.data.source import Source, columns_of, evaluation_source
    from srpo.disk import expect_writable, write_file
    from srpo.model.weights.load import load_processor, load_tokenizer
    from srpo.sequences.render import Renderer, template_for
    from srpo.sequences.tree_store import cache_folder

    read = ("dataset_name", "eval_dataset_name", "revision_template")
    expect_writable({"--html": args.html}, {f"--{name}": getattr(args, name) for name in read})
    template = template_for(args.model_name_or_path, args.revision_template)
    where: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, "base_model": args.base_model}
    tokenizer = load_tokenizer(args.model_name_or_path, **where)
    how = (columns_of(args.map), args.rankings)
    name, split = args.eval_dataset_name, args.dataset_test_split
    found = inspect(
        Source(args.dataset_name, *how, args.dataset_train_split, args.dataset_config),
        Renderer(
            tokenizer,
            template,
            chat_template_kwargs=args.chat_template_kwargs,
            no_chat_template=args.no_chat_template,
            processor=partial(load_processor, args.model_name_or_path, **where),
        ),
        max_length=args.max_length or _context(args.model_name_or_path),
        truncate=args.truncate,
        evaluation=evaluation_source(name, *how, split, args.dataset_config) if name else None,
        examples=args.examples,
        num_proc=args.dataset_num_proc,
        cache=cache_folder(),
    )
    if args.html:
        write_file(Path(args.html), found.to_html().encode(), flag="--html")
    print(found.to_json()) if args.json else print_inspection(found)
    return 0


def _context(path: str) -> int | None:
    """The context length in a model's config.json; None if the folder has no such entry. No weights are read."""
    try:
        settings = json.loads((Path(path) / "config.json").read_text("utf-8"))
        return {**settings, **(settings.get("text_config") or {})}.get("max_position_embeddings")
    except (OSError, ValueError, TypeError, AttributeError):
        return None
