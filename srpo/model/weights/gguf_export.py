"""A model as a GGUF file for llama.cpp and Ollama, read back through transformers and compared before it is kept.

The package `gguf` writes the file, names the tensors and quantises to q8_0. Llama, Qwen2 and Qwen3 with byte-level BPE
are written; for other models and for smaller quantisations the errors name llama.cpp's own tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srpo.disk import writable_folder, write_file
from srpo.errors import ConfigError, SRPOError
from srpo.model.unwrap import adapted
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.model.weights.merge import compare, contexts_of, greedy
from srpo.sequences.render import Renderer, template_for
from srpo.sequences.templates import RevisionTemplate

TYPES = ("f32", "f16", "bf16", "q8_0")
# Architecture in transformers → in GGUF.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Beginning of a pre-tokenizer's pattern → its name in llama.cpp; other patterns would split text differently.
_SPLITS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|": "qwen2",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|": "llama-bpe",
}
CONVERTER = "take llama.cpp's convert_hf_to_gguf.py"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # types of tokens in GGUF
_SHARE = {"f32": 1e-4, "f16": 0.02, "bf16": 0.1, "q8_0": 0.1}  # difference of logits allowed, as a share of their range


@dataclass(frozen=True)
class Exported:
    """A record of an exported file and its comparison with the model.

    Attributes:
        file: the GGUF file.
        generated: greedy tokens compared.
        other_tokens: greedy tokens that the file decodes differently.
        difference: largest difference of logits, as a share of their range at its position.
    """

    file: Path
    generated: int
    other_tokens: int
    difference: float

    def __str__(self) -> str:
        equal = self.generated - self.other_tokens
        logits = f"logits differ by {self.difference:.1e} of their range at most"
        return f"{equal} of {self.generated} greedy tokens equal; {logits}"


def export(
    path: str,
    target: str,
    *,
    kind: str = "f16",
    prompts: str | None = None,
    max_new_tokens: int = 16,
    trust_remote_code: bool = False,
) -> Exported:
    """Writes a model as GGUF with an Ollama Modelfile and a README, and compares the file with the model.

    Args:
        path: folder of the model; an adapter must be merged first.
        target: folder to write into.
        kind: type of the weights, one of `TYPES`; vectors stay float32.
        prompts: file of prompts to compare on, of which the first 64 are used; None draws tokens of the vocabulary.
        max_new_tokens: tokens decoded greedily for each prompt.

    Raises:
        ConfigError: an adapter, or a model or tokenizer that this file cannot write.
        OutputError: the folder cannot be written.
        SRPOError: the file differs from the model by more than its type explains; it is removed.
    """
    if kind not in TYPES:
        fix = f"export f16, then `llama-quantize FILE {kind}` of llama.cpp"
        raise ConfigError(f"{kind!r}", where="type", expected="one of " + ", ".join(TYPES), fix=fix)
    out = writable_folder(Path(target))
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    contexts = contexts_of(path, tokenizer, prompts)
    model = load_model(path, dtype="float32", trust_remote_code=trust_remote_code).eval()
    if adapted(model) is not None:
        raise ConfigError("an adapter", where=path, fix="merge it first: `srpo merge`")
    template = template_for(path, None) or Renderer(tokenizer).template
    name = Path(path).name
    file = out / f"{name}-{kind}.gguf"
    before = greedy(model, contexts, max_new_tokens)
    write_gguf(file, model, tokenizer, kind=kind, name=name)
    again = load_model(str(file), dtype="float32").eval()
    compared = compare(before, again, [logits for _, logits in before], [len(each) for each in contexts])
    found = Exported(file, compared.generated, compared.other_tokens + compared.ties, compared.difference)
    if not compared.difference <= _SHARE[kind]:
        file.unlink()
        raise SRPOError(f"the file differs from the model: {found}", where=str(file), fix=CONVERTER)
    template.save(out)
    write_file(out / "Modelfile", modelfile(file.name, tokenizer).encode())
    write_file(out / "README.md", readme(file.name, template, found).encode())
    return found


def write_gguf(file: Path, model: Any, tokenizer: Any, *, kind: str, name: str) -> None:
    """Writes weights, configuration and tokenizer to a GGUF file.

    Raises:
        ConfigError: the architecture, its positions or the tokenizer cannot be written exactly.
    """
    import gguf

    config = model.config
    if config.model_type not in ARCHITECTURES:
        expected = "one of " + ", ".join(ARCHITECTURES)
        raise ConfigError(f"architecture {config.model_type!r}", where="model", expected=expected, fix=CONVERTER)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"positions of type {rope['rope_type']!r}", where="model", fix=CONVERTER)
    tokens = _tokenizer_fields(tokenizer, config.vocab_size)
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(str(file), arch)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[kind]))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list(tokens["tokens"])
    writer.add_token_types(tokens["types"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens["pre"])
    if tokens["merges"]:
        writer.add_token_merges(tokens["merges"])
    else:  # an empty list cannot be written; readers then look for scores
        writer.add_token_scores([0.0] * config.vocab_size)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(bool(tokenizer("").input_ids))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    for tensor_name, array, dtype in _tensors(model, arch, kind):
        writer.add_tensor(tensor_name, array, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def _tensors(model: Any, arch: str, kind: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, data and type of each tensor; matrices have the wanted type, vectors are float32."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch), config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        base, _, suffix = name.rpartition(".")
        found = names.get_name(base)
        if found is None:
            raise ConfigError(f"the weight {name} has no name in GGUF", where="model", fix=CONVERTER)
        weight = weight.detach().float().cpu()
        if arch == "llama" and base.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if base.endswith("q_proj") else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        array = weight.contiguous().numpy()
        wanted = gguf.GGMLQuantizationType[kind.upper()] if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        if wanted == gguf.GGMLQuantizationType.Q8_0 and array.shape[-1] % 32:
            wanted = gguf.GGMLQuantizationType.F16
        yield f"{found}.{suffix}", gguf.quants.quantize(array, wanted), wanted


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a Llama's query or key weights in llama.cpp's order, in which rotated pairs are neighbours."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer_fields(tokenizer: Any, size: int) -> Mapping[str, Any]:
    """Tokens, their types, merges and the name of the pre-tokenizer.

    Raises:
        ConfigError: the tokenizer is not byte-level BPE with a pattern that llama.cpp knows.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = state.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    added = {each["id"]: each for each in state.get("added_tokens", [])}
    by_id = {place: token for token, place in tokenizer.get_vocab().items()}
    letters = [token for place, token in by_id.items() if place not in added]
    # Byte-level BPE writes printable ASCII as itself, so a vocabulary of such letters without merges is one, too.
    plain = not state["model"].get("merges") and all(len(each) == 1 and "!" <= each <= "~" for each in letters)
    if state["model"].get("type") != "BPE" or not (plain or any(step.get("type") == "ByteLevel" for step in steps)):
        raise ConfigError("not byte-level BPE", where="tokenizer", fix=CONVERTER)
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    named = [pre for start, pre in _SPLITS.items() if any(pattern.startswith(start) for pattern in patterns)]
    merges = [each if isinstance(each, str) else " ".join(each) for each in state["model"]["merges"]]
    if not named and (patterns or merges) and not any(step.get("use_regex") for step in steps):
        raise ConfigError("it splits text by a pattern without a name in llama.cpp", where="tokenizer", fix=CONVERTER)
    tokens, types = [], []
    for place in range(size):
        tokens.append(by_id.get(place, f"[PAD{place}]"))
        special = added.get(place)
        types.append(NORMAL if special is None else CONTROL if special["special"] else USER_DEFINED)
    return {"tokens": tokens, "types": types, "merges": merges, "pre": named[0] if named else "gpt-2"}


# ---------------------------------------------------------------------- beside the file


def modelfile(file: str, tokenizer: Any) -> str:
    """An Ollama Modelfile; Ollama takes the chat template from the GGUF file where it knows it."""
    lines = [f"FROM ./{file}", "PARAMETER temperature 0"]
    stops = [tokenizer.eos_token] if tokenizer.eos_token else []
    return "\n".join([*lines, *(f"PARAMETER stop {json.dumps(stop)}" for stop in stops)]) + "\n"


def readme(file: str, template: RevisionTemplate, compared: Exported) -> str:
    """A README with the requests for draft and revision, and commands for llama.cpp and Ollama."""
    prompt = "Why is the sky blue?"
    draft = "THE DRAFT"
    bodies: list[dict[str, Any]]
    if template.form == "text":
        path, bodies = "completions", [{"prompt": template.fill(prompt)}, {"prompt": template.fill(prompt, draft)}]
    else:
        path = "chat/completions"
        user = [{"role": "user", "content": prompt}]
        bodies = [{"messages": template.asking(user)}, {"messages": template.asking(user, draft)}]
    commands = "\n\n".join(
        f"```sh\ncurl http://localhost:8080/v1/{path} -H 'Content-Type: application/json' -d "
        f"{_quoted(json.dumps({**body, 'temperature': 0}, ensure_ascii=False))}\n```"
        for body in bodies
    )
    return f"""# {file}

Written by `srpo export` and read back through transformers: {compared}.

    llama-server -m {file}                  # llama.cpp
    ollama create my-model -f Modelfile      # Ollama, at http://localhost:11434/v1

The model drafts, and revises a draft that its prompt shows. The first request asks for a draft, the second for a
revision of it; put the draft in place of `{draft}`.

{commands}

`srpo serve` in front of that server does both, with policies and trails:

    srpo serve --engine chat --base_url http://localhost:8080/v1 --revision_template revision_template.json

Smaller files: `llama-quantize {file} q4_k_m.gguf Q4_K_M` of llama.cpp, which no Python package brings.
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
