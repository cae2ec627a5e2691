"""`srpo merge`: an adapter and its base → one model, compared before it is kept."""

from __future__ import annotations

from srpo.cli.parser import Parser, show_progress


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("merge", "Merge an adapter into its base, and compare what was written with the two.")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a saved adapter")
    parser.add_argument("--output_dir", required=True, help="folder of the merged model; not there yet, or empty")
    parser.add_argument("--prompts", help="a file of prompts to compare on; default: made of the vocabulary")
    parser.add_argument("--max_new_tokens", type=int, default=16, help="tokens generated greedily for each prompt")
    parser.add_argument("--dtype", default="auto", help="auto (the base's own), float32, bfloat16 or float16")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base")
    args = parser.parse_args(argv)

    from transformers.utils import logging as hf_logging

    from srpo.model.weights.merge import merge

    hf_logging.set_verbosity_error()
    show_progress()
    compared = merge(
        args.model_name_or_path,
        args.output_dir,
        prompts=args.prompts,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        trust_remote_code=args.trust_remote_code,
    )
    print(f"{args.output_dir}: {compared}")
    return 0
