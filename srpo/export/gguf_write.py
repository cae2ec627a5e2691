"""The content of a GGUF file, written with the package `gguf`: fields of the architecture, tokenizer and weights.

Llama, Qwen2, Qwen3 and Gemma 3 are written, with tokenizers of three kinds: byte-level BPE, SentencePiece's pieces
with bytes for what has no piece, and one token per ASCII character. What llama.cpp would compute or split in another
way is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from srpo.errors import ConfigError

TYPES = ("f32", "f16", "bf16", "q8_0")
# Architecture in transformers → in GGUF.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
# Beginning of a pre-tokenizer's pattern → its name in llama.cpp; other patterns would split text differently.
_SPLITS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|": "qwen2",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|": "llama-bpe",
}
CONVERTER = "take llama.cpp's convert_hf_to_gguf.py"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of tokens in GGUF
SPACE = "\u2581"  # SentencePiece's mark of a space
GEMMA_PERIOD = 6  # llama.cpp takes every sixth layer of a Gemma 3 for one with full attention


def write_gguf(file: Path, model: Any, tokenizer: Any, *, kind: str, name: str) -> None:
    """Writes weights, configuration and tokenizer to a GGUF file.

    Args:
        file: the file to write.
        model: a model in float32.
        kind: type of the matrices, one of `TYPES`; vectors stay float32.
        name: name of the model in the file.

    Raises:
        ConfigError: the architecture, its positions or the tokenizer cannot be written exactly.
    """
    import gguf

    config = model.config
    if config.model_type not in ARCHITECTURES:
        expected = "one of " + ", ".join(ARCHITECTURES)
        raise ConfigError(f"architecture {config.model_type!r}", where="model", expected=expected, fix=CONVERTER)
    arch = ARCHITECTURES[config.model_type]
    if arch != "gemma3" and {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        raise ConfigError("layers with a sliding window", where="model", fix=CONVERTER)
    base_frequency = _gemma_positions(config) if arch == "gemma3" else _positions(config.rope_parameters or {})
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces = bool(state["model"].get("byte_fallback"))
    characters = state["model"].get("merges") == [] and not state.get("pre_tokenizer")
    fields = _pieces if pieces else _characters if characters else _byte_level
    vocabulary = fields(state, tokenizer, config.vocab_size)
    writer = gguf.GGUFWriter(str(file), arch)
    _allow_empty_lists(writer)
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
    writer.add_rope_freq_base(base_frequency)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    merges = vocabulary.pop("token_merges", None)
    if merges is not None:
        writer.add_key_value("tokenizer.ggml.merges", merges, gguf.GGUFValueType.ARRAY)
    for key, value in vocabulary.items():
        getattr(writer, f"add_{key}")(value)
    for role in ("bos", "eos", "pad", "unk") if pieces else ("bos", "eos", "pad"):
        token = getattr(tokenizer, f"{role}_token_id")
        if token is not None and token < config.vocab_size:
            getattr(writer, f"add_{role}_token_id")(token)
    writer.add_add_bos_token(bool(tokenizer("").input_ids))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    for tensor_name, array, dtype in _tensors(model, arch, kind):
        writer.add_tensor(tensor_name, array, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _positions(rope: Mapping[str, Any]) -> float:
    """Returns the base of the rotary frequencies (`rope_theta`) from a model's rotary settings.

    Raises:
        ConfigError: positions of another type than plain rotation.
    """
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"positions of type {rope['rope_type']!r}", where="model", fix=CONVERTER)
    return float(rope.get("rope_theta", 10000.0))


def _gemma_positions(config: Any) -> float:
    """Returns the base of the rotary frequencies of a Gemma 3 model, for its layers with full attention.

    A GGUF file has no field for some settings of Gemma 3; llama.cpp takes the usual values.

    Raises:
        ConfigError: the model's settings are not these values.
    """
    kinds = [
        "full_attention" if (i + 1) % GEMMA_PERIOD == 0 else "sliding_attention" for i in range(len(config.layer_types))
    ]
    local = _positions(config.rope_parameters["sliding_attention"])
    other = {
        "its layers with full attention": list(config.layer_types) != kinds,
        f"its sliding layers' base of frequencies, {local:g}": local != 10000.0,
        "its scale of the attention": config.query_pre_attn_scalar != config.head_dim,
        "its soft cap": bool(config.final_logit_softcapping or config.attn_logit_softcapping),
    }
    for found, differs in other.items():
        if differs:
            raise ConfigError(f"{found}: not those of llama.cpp's Gemma 3", where="model", fix=CONVERTER)
    return _positions(config.rope_parameters["full_attention"])


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
        if arch == "gemma3" and base.endswith("norm"):
            weight = weight + 1  # transformers multiplies by 1 + weight
        array = weight.contiguous().numpy()
        wanted = gguf.GGMLQuantizationType[kind.upper()] if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        if wanted == gguf.GGMLQuantizationType.Q8_0 and array.shape[-1] % 32:
            wanted = gguf.GGMLQuantizationType.F16
        yield f"{found}.{suffix}", gguf.quants.quantize(array, wanted), wanted


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns a Llama's query or key weights in llama.cpp's order: rows that are rotated as a pair are neighbours."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _byte_level(state: Mapping[str, Any], tokenizer: Any, size: int) -> dict[str, Any]:
    """Returns the fields of a GGUF file that describe a tokenizer of byte-level BPE.

    Args:
        state: the tokenizer as the `tokenizers` library serialises it.
        size: rows of the model's embeddings.

    Raises:
        ConfigError: the tokenizer is not byte-level, or splits by a pattern that llama.cpp has no name for.
    """
    steps = state.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    if state["model"].get("type") != "BPE" or not any(step.get("type") == "ByteLevel" for step in steps):
        raise ConfigError("neither byte-level BPE nor SentencePiece", where="tokenizer", fix=CONVERTER)
    merges = [each if isinstance(each, str) else " ".join(each) for each in state["model"]["merges"]]
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    named = [pre for start, pre in _SPLITS.items() if any(pattern.startswith(start) for pattern in patterns)]
    if not named and not any(step.get("use_regex") for step in steps):
        raise ConfigError("it splits text by a pattern without a name in llama.cpp", where="tokenizer", fix=CONVERTER)
    tokens, types = _vocabulary(state, tokenizer, size, lambda token: NORMAL)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": named[0] if named else "gpt-2",
        "token_list": tokens,
        "token_types": types,
        "token_merges": merges,
    }


def _characters(state: Mapping[str, Any], tokenizer: Any, size: int) -> dict[str, Any]:
    """Returns the fields of a GGUF file that describe a tokenizer with one token per character and no merges.

    For llama.cpp it is byte-level BPE without merges. Both drop a character that has no token.

    Raises:
        ConfigError: the tokenizer changes the text, has a token for unknown characters, puts something between tokens,
            or has a token of other text than one ASCII character, which llama.cpp would join from its bytes by merges.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    added = {each["id"] for each in state.get("added_tokens", [])}
    plain = {token for token, place in tokenizer.get_vocab().items() if place not in added}
    other = sorted(token for token in plain if len(token) != 1 or not token.isascii())
    refused = {
        "it changes texts before it splits them": bool(state.get("normalizer")),
        "it has a token for unknown characters": state["model"]["unk_token"] is not None,
        "its decoder does not join tokens as they are": (state.get("decoder") or {}).get("type") != "Fuse",
        f"it has no merges, and tokens other than one ASCII character: {other[:3]}": bool(other),
    }
    for found, holds in refused.items():
        if holds:
            raise ConfigError(found, where="tokenizer", fix=CONVERTER)
    spelled = bytes_to_unicode()
    tokens, types = _vocabulary(state, tokenizer, size, lambda token: NORMAL)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "gpt-2",
        "token_list": [spelled[ord(token)] if token in plain else token for token in tokens],
        "token_types": types,
        "token_merges": [],
    }


def _allow_empty_lists(writer: Any) -> None:
    """Lets a writer of the package `gguf` write empty lists of texts, which the package refuses and llama.cpp reads."""
    import gguf

    pack, kinds = writer._pack_val, gguf.GGUFValueType

    def packed(value: Any, kind: Any, *more: Any, **options: Any) -> bytes | bytearray:
        if kind == kinds.ARRAY and len(value) == 0:
            return struct.pack("<IIQ", kinds.ARRAY, kinds.STRING, 0)
        found: bytes | bytearray = pack(value, kind, *more, **options)
        return found

    writer._pack_val = packed


def _pieces(state: Mapping[str, Any], tokenizer: Any, size: int) -> dict[str, Any]:
    """Returns the fields of a GGUF file that describe a tokenizer of SentencePiece's pieces (BPE with a byte fallback).

    llama.cpp joins the pair whose piece has the highest score, so a piece's score is minus the rank of its merge.

    Raises:
        ConfigError: the tokenizer changes the text in another way than marking spaces.
    """
    normalizer = state.get("normalizer") or {}
    marks, prefix = False, False
    for step in normalizer.get("normalizers", [normalizer]):
        if step.get("type") == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            marks = True
        elif step.get("type") == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step:
            raise ConfigError(f"it changes texts by {step.get('type')}", where="tokenizer", fix=CONVERTER)
    splits = state.get("pre_tokenizer") or {}
    if not marks or (splits and splits.get("pattern") != {"String": " "}):  # no space is left to split at
        raise ConfigError("it does not mark spaces as SentencePiece does", where="tokenizer", fix=CONVERTER)
    rank: dict[str, int] = {}
    for place, merge in enumerate(state["model"]["merges"]):
        rank.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", ""), place)
    unknown = state["model"].get("unk_token")

    def kind(token: str) -> int:
        return UNKNOWN if token == unknown else BYTE if token.startswith("<0x") and len(token) == 6 else NORMAL

    tokens, types = _vocabulary(state, tokenizer, size, kind)
    return {
        "tokenizer_model": "llama",
        "token_list": tokens,
        "token_types": types,
        "token_scores": [-float(rank.get(token, len(rank))) for token in tokens],
        "add_space_prefix": prefix,
    }


def _vocabulary(
    state: Mapping[str, Any], tokenizer: Any, size: int, kind: Callable[[str], int]
) -> tuple[list[str], list[int]]:
    """Returns the texts of all tokens and their GGUF types, in the order of ids.

    Ids of the model for which the tokenizer has no token get the text `[PADn]`.

    Args:
        state: the tokenizer as the `tokenizers` library serialises it.
        size: rows of the model's embeddings.
        kind: function that returns the type of a token that is not an added one.
    """
    added = {each["id"]: each for each in state.get("added_tokens", [])}
    by_id = {place: token for token, place in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for place in range(size):
        token = by_id.get(place, f"[PAD{place}]")
        special = added.get(place)
        plain = kind(token) if place in by_id else NORMAL
        tokens.append(token)
        types.append(plain if special is None else CONTROL if special["special"] else USER_DEFINED)
    return tokens, types
