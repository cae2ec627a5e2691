"""`srpo calibrate`: on labelled prompts, whether to revise with a model and how far to trust its confidence."""

from __future__ import annotations

import argparse
from pathlib import Path

from srpo.cli.engine import add_device_flags
from srpo.cli.parser import Parser, show_progress
from srpo.errors import ConfigError


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("calibrate", "Measure on labelled prompts whether revising helps; keep the verdict with the model.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a trained model or adapter")
    parser.add_argument("--input", required=True, help="a file with a `prompt` and a gold answer per row")
    parser.add_argument("--gold_key", default="gold", help="column that holds the gold answer")
    parser.add_argument("--judge", default="exact_match", help="exact_match, per_character or module:function")
    parser.add_argument("--revisions", type=int, default=5, help="revisions at most")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of every draw, and of the halves")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens per answer")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts generated together")
    parser.add_argument("--reference", help="what the model was before training, for its own confidence")
    parser.add_argument("--equation", default="eq9", help="of the confidence: eq9, or eq14 at twice the cost")
    parser.add_argument("--revision_template", help="preset or file; default: the one saved with the model")
    parser.add_argument("--output_dir", help="where the verdict goes; default: beside the model")
    add_device_flags(parser.add_argument)
    args = parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging as hf_logging

    from srpo.data.read import read_prompts
    from srpo.evaluate.calibrate import calibrate, lines
    from srpo.judge.single import load_judge
    from srpo.revise.reviser import Reviser
    from srpo.revise.settings import RevisionSettings

    folder = _folder(args)
    hf_logging.set_verbosity_error()
    show_progress()
    settings = RevisionSettings(args.revisions, args.temperature, args.seed, args.max_new_tokens)
    judge, rows = load_judge(args.judge), read_prompts(args.input)
    reviser = Reviser(
        args.model_name_or_path,
        template=args.revision_template,
        reference=args.reference,
        batch_size=args.batch_size,
        equation=args.equation,
        device=args.device,
        dtype=args.dtype,
    )
    found = calibrate(reviser, rows, judge, settings, gold_key=args.gold_key)
    path = found.save(folder)
    console = Console(highlight=False)
    if found.table:
        head, *body = lines(found)
        table = Table(*head)
        for row in body:
            table.add_row(*map(str, row))
        console.print(table)
    for said in found.sentences():
        console.print(said, markup=False, soft_wrap=True)
    console.print(f"{found.choice.sentence()}\nwritten to {path}", markup=False, soft_wrap=True)
    return 0


def _folder(args: argparse.Namespace) -> Path:
    """Where the verdict goes; found out before anything is drawn for it.

    Raises:
        ConfigError: writing there would cost the input, or the model is in no folder and none is named.
        OutputError: it cannot be written to.
    """
    from srpo.disk import expect_writable, writable_folder
    from srpo.model.weights.load import load_tokenizer
    from srpo.revise.stored_calibration import CALIBRATION_FILE

    folder = Path(args.output_dir or args.model_name_or_path)
    if not args.output_dir and not folder.is_dir():
        load_tokenizer(args.model_name_or_path)  # says so where there is no such model
        raise ConfigError("the model is in no folder here", where="output_dir", fix="name a folder for the verdict")
    expect_writable({"--output_dir": writable_folder(folder) / CALIBRATION_FILE}, {"--input": args.input})
    return folder
