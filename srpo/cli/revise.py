"""`srpo revise`: a file of prompts → a file of trails, resumable line by line."""

from __future__ import annotations

from pathlib import Path

from srpo.cli.engine import add_engine_flags, serving
from srpo.cli.parser import Parser, show_progress


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("revise", "Draft an answer to each prompt and revise it.")
    parser.add_argument("--model_name_or_path", default="", help="folder of a trained model or adapter")
    parser.add_argument("--input", required=True, help="a file with a `prompt` per row, in any layout; -: stdin")
    parser.add_argument("--output", required=True, help="JSONL of trails; rows already in it are not done again")
    parser.add_argument("--revisions", type=int, default=5, help="revisions at most")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0, help="with a prompt's text it decides every draw")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens per answer")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts generated together")
    parser.add_argument("--policy", default="auto", help="auto, always, if_preferred, until_worse, fixed:K, …")
    parser.add_argument("--reference", help="what the model was before training, for its own confidence")
    parser.add_argument("--revision_template", help="preset or file; default: the one saved with the model")
    parser.add_argument("--bad_rows", choices=["error", "skip"], default="error", help="what to do with unusable rows")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--diff", action="store_true", help="print every trail, what changed in it marked")
    parser.add_argument("--html", metavar="FILE", help="write a page of the trails")
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    if not args.model_name_or_path and args.engine != "chat":
        parser.error("the following arguments are required: --model_name_or_path")

    from transformers.utils import logging as hf_logging

    from srpo.revise.calibration import decided
    from srpo.revise.files import revise_file
    from srpo.revise.reviser import Reviser, Settings

    hf_logging.set_verbosity_error()
    show_progress()
    settings = Settings(args.revisions, args.temperature, args.seed, args.max_new_tokens, args.policy)

    source = "/dev/stdin" if args.input == "-" else args.input
    engine, asked = serving(args), Path(f"{args.output}.answers.jsonl")

    def reviser() -> Reviser:
        return engine.reviser(
            args.model_name_or_path,
            template=args.revision_template,
            reference=args.reference,
            batch_size=args.batch_size,
            journal=asked,
            trust_remote_code=args.trust_remote_code,
        )

    made_with = {
        "model": args.model_name_or_path,
        "revision_template": args.revision_template or "saved",
        "reference": args.reference or "",
        "calibrated": decided(args.model_name_or_path) if args.policy == "auto" else "",
        **engine.made_with(),
    }
    done, skipped = revise_file(reviser, source, args.output, settings, bad_rows=args.bad_rows, made_with=made_with)
    asked.unlink(missing_ok=True)  # what it holds stands in the trails by now
    print(f"{args.output}: {done} trails" + (f" ({skipped} were already there)" if skipped else ""))
    if args.diff or args.html:
        from rich.console import Console

        from srpo.revise.show import as_text, read, write_page

        if args.html:
            write_page(args.html, read(args.output), f"Drafts and revisions of {args.model_name_or_path}")
        console = Console(highlight=False)
        for trail in read(args.output) if args.diff else ():
            console.print(as_text(trail, marks=not console.is_terminal))
    return 0
