"""`srpo sample`: several drafts of each prompt, each revised, to be labelled."""

from __future__ import annotations

from pathlib import Path

from srpo.cli.engine import add_engine_flags, serving
from srpo.cli.parser import Parser, show_progress


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("sample", "Draw drafts and revisions of a model's own, for a judge to order (`srpo label`).")
    parser.add_argument("--model_name_or_path", default="", help="folder of a trained model or adapter")
    parser.add_argument("--input", required=True, help="a file with a `prompt` per row, in any layout")
    parser.add_argument("--output", required=True, help="JSONL of trails; rows already in it are not done again")
    parser.add_argument("--samples", type=int, default=2, help="drafts per prompt, each revised")
    parser.add_argument("--revisions", type=int, default=2, help="revisions of each draft")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0: greedy drafts are all the same")
    parser.add_argument("--seed", type=int, default=0, help="with a prompt's text it decides every draw")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens per answer")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts generated together")
    parser.add_argument("--reference", help="what the model was before training, for `srpo label --choose uncertain`")
    parser.add_argument("--revision_template", help="preset or file; default: the one saved with the model")
    parser.add_argument("--bad_rows", choices=["error", "skip"], default="error", help="what to do with unusable rows")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    if not args.model_name_or_path and args.engine != "chat":
        parser.error("the following arguments are required: --model_name_or_path")

    from transformers.utils import logging as hf_logging

    from srpo.revise.reviser import Reviser, Settings
    from srpo.rounds.sample import sample_file

    hf_logging.set_verbosity_error()
    show_progress()

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

    # Whichever the model itself would keep, a judge is to see them all.
    settings = Settings(args.revisions, args.temperature, args.seed, args.max_new_tokens, policy="always")
    made_with = {
        "model": args.model_name_or_path,
        "revision_template": args.revision_template or "saved",
        "reference": args.reference or "",
        **engine.made_with(),
    }
    done, skipped = sample_file(
        reviser, args.input, args.output, settings, samples=args.samples, bad_rows=args.bad_rows, made_with=made_with
    )
    asked.unlink(missing_ok=True)  # what it holds stands in the trails by now
    print(f"{args.output}: {done} trails" + (f" ({skipped} were already there)" if skipped else ""))
    return 0
