"""`srpo export`: a model → a GGUF file for llama.cpp and Ollama, compared with the model."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.settings import setting, shared


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo export`, which writes a model as a GGUF file for llama.cpp and Ollama."""

    model_name_or_path: str = setting(help="Folder of a trained model; an adapter must be merged first.")
    output_dir: str = setting(help="Folder to write the GGUF file, a Modelfile and a README into.")
    type: str = setting(
        "f16",
        "Type of the weights in the file: f32, f16, bf16, q8_0; or q6_k, q5_k_m, q4_k_m, q4_0, q3_k_m (extra llama).",
    )
    prompts: str | None = setting(
        None, "File of prompts to compare drafts and revisions on; unset: prompts made of the vocabulary."
    )
    max_new_tokens: int = shared("max_new_tokens", 16, "Number of tokens decoded greedily for each prompt.")
    trust_remote_code: bool = shared("trust_remote_code")


def main(argv: list[str]) -> int:
    """Runs `srpo export`: writes a model as a GGUF file, and prints how answers differ from the model's; returns 0."""
    description = "Export a model as GGUF for llama.cpp and Ollama, and compare the file with the model."
    args = parse("export", description, Arguments, argv)

    from srpo.export.gguf_export import export

    quiet_transformers()
    found = export(
        args.model_name_or_path,
        args.output_dir,
        kind=args.type,
        prompts=args.prompts,
        max_new_tokens=args.max_new_tokens,
        trust_remote_code=args.trust_remote_code,
    )
    print(f"{found.file}: {found}")
    return 0
