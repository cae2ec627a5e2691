"""`srpo convert`: pickled weights → safetensors, without running pickled code."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.settings import setting


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo convert`, which rewrites pickled weights (.bin, .pt) as safetensors."""

    model_name_or_path: str = setting(help="Folder of a model or adapter with pickled weights (.bin, .pt).")
    output_dir: str = setting(help="Folder to write.")


def main(argv: list[str]) -> int:
    """Runs `srpo convert`: copies a model's folder with pickled weights rewritten as safetensors; returns 0."""
    args = parse(
        "convert", "Make a folder of safetensors from a folder of pickled weights (.bin, .pt).", Arguments, argv
    )

    from srpo.model.weights.convert import convert

    written = convert(args.model_name_or_path, args.output_dir)
    print(f"{args.output_dir}: {', '.join(written)}")
    return 0
