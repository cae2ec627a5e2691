"""`srpo merge`: merges an adapter into its base model, and compares the merged model with both before keeping it."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.settings import setting, shared


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo merge`, which writes an adapter and its base model as one model."""

    model_name_or_path: str = setting(help="Folder of a saved adapter.")
    output_dir: str = setting(help="Folder of the merged model; new, or empty.")
    base_model: str | None = shared("base_model")
    prompts: str | None = setting(None, "File of prompts to compare on; unset: prompts made of the vocabulary.")
    max_new_tokens: int = shared("max_new_tokens", 16, "Number of tokens decoded greedily for each prompt.")
    dtype: str = shared("dtype", "auto")
    trust_remote_code: bool = shared("trust_remote_code")


def main(argv: list[str]) -> int:
    """Runs `srpo merge`: merges an adapter into its base, compares the merged model with both; returns 0."""
    description = "Merge an adapter into its base, and compare the merged model with base and adapter."
    args = parse("merge", description, Arguments, argv)

    from srpo.model.weights.merge import merge

    quiet_transformers()
    compared = merge(
        args.model_name_or_path,
        args.output_dir,
        prompts=args.prompts,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        trust_remote_code=args.trust_remote_code,
        base_model=args.base_model,
    )
    print(f"{args.output_dir}: {compared}")
    return 0
