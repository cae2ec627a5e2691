"""`srpo convert`: pickled weights → safetensors, without running what is pickled."""

from __future__ import annotations

from srpo.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("convert", "Make a folder of safetensors from a folder of pickled weights (.bin, .pt).")
    parser.add_argument("--model_name_or_path", required=True, help="folder of a model or adapter")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    args = parser.parse_args(argv)

    from srpo.model.weights.convert import convert

    written = convert(args.model_name_or_path, args.output_dir)
    print(f"{args.output_dir}: {', '.join(written)}")
    return 0
