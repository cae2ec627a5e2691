"""GGUF files: dequantised on load, with their tokenizer; damaged files and files of other things are named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srpo.errors import InputError
from srpo.model.weights.gguf import gguf_parsed_once
from srpo.model.weights.load import load_model, load_tokenizer
from tests.conftest import make_byte_tokenizer

gguf = pytest.importorskip("gguf")
LAYER = {  # name in GGUF → name in transformers
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tiny_qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(make_byte_tokenizer()) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return Qwen2ForCausalLM(config).eval()


def write_gguf(file: Path, model: Any, kind: Any = None) -> None:
    """Writes a tiny Qwen2 with a byte tokenizer; matrices of several rows are quantised to `kind` if it is given."""
    writer, config = gguf.GGUFWriter(str(file), "qwen2"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = sorted(make_byte_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    # A byte-level tokenizer without any merge is unknown to GGUF's readers, so there is one token of two letters.
    writer.add_token_list([*(token for token, _ in tokens), "ab"])
    writer.add_token_types([1] * (len(tokens) + 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    state = model.state_dict()
    tensors = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    tensors["output_norm.weight"] = "model.norm.weight"
    for n in range(config.num_hidden_layers):
        for theirs, ours in LAYER.items():
            tensors[f"blk.{n}.{theirs}.weight"] = f"model.layers.{n}.{ours}.weight"
            if theirs in ("attn_q", "attn_k", "attn_v"):
                tensors[f"blk.{n}.{theirs}.bias"] = f"model.layers.{n}.{ours}.bias"
    for theirs, ours in tensors.items():
        values: Any = state[ours].numpy()
        if kind is not None and values.ndim == 2:
            writer.add_tensor(theirs, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_file_or_its_folder_is_dequantised_and_said(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "srpo")
    model = tiny_qwen2()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model, gguf.GGMLQuantizationType.Q8_0)
    loaded = load_model(str(file if place == "file" else tmp_path))
    assert "tiny.gguf is a GGUF file: its weights are dequantised, and saved models are safetensors" in caplog.text
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(type(p) is torch.nn.Parameter for p in loaded.parameters())  # trainable, not blocks of GGUF
    worst = max((a - b).abs().max() for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert 0 < worst < 1e-2  # eight bits: some rounding, and no wrong weight
    tokenizer = load_tokenizer(str(file if place == "file" else tmp_path))
    assert tokenizer.decode(tokenizer("cab", add_special_tokens=False)["input_ids"]) == "cab"
    loaded.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    again = load_model(str(tmp_path / "saved"))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.parameters(), strict=True))


def test_control_weights_in_float32_are_read_exactly(tmp_path: Path) -> None:
    model = tiny_qwen2()
    write_gguf(tmp_path / "tiny.gguf", model)
    loaded = load_model(str(tmp_path / "tiny.gguf"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\0\0\0", "a damaged GGUF file"),
        (b"", "not a GGUF file, whatever its name"),
        (b"PK\x03\x04" + b"\0" * 64, "not a GGUF file, whatever its name"),
        (None, "no such GGUF file"),
    ],
)
def test_damaged_files(load: Callable[..., Any], content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "model.gguf"))


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_qwen2())
    whole = file.read_bytes()
    for keep in (30, 2000, len(whole) // 2, len(whole) - 100):
        file.write_bytes(whole[:keep])
        with pytest.raises(InputError, match="GGUF"):
            load_model(str(file))


def test_several_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.Q4_K_M.gguf", "b.Q8_0.gguf"):
        write_gguf(tmp_path / name, tiny_qwen2())
    with pytest.raises(InputError, match=r"2 GGUF files: a\.Q4_K_M\.gguf, b\.Q8_0\.gguf; name one"):
        load_model(str(tmp_path))


def test_a_vision_projector_beside_the_model_is_left_alone(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_qwen2())
    (tmp_path / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    assert load_model(str(tmp_path)).config.model_type == "qwen2"


def test_parts_of_a_split_file(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "big-00001-of-00002.gguf"):
        with pytest.raises(InputError, match="one part of a GGUF file that is split; join the parts"):
            load_model(str(path))


def test_a_file_is_parsed_once_and_alike(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_qwen2())
    plain, original = gguf.GGUFReader(str(tmp_path / "model.gguf")), gguf.GGUFReader
    with gguf_parsed_once(str(tmp_path / "model.gguf")) as file:
        assert file == tmp_path / "model.gguf"
        ours = gguf.GGUFReader(str(file))
        assert gguf.GGUFReader(str(file)) is ours
        for name, field in plain.fields.items():
            assert [part.tolist() for part in ours.fields[name].parts] == [part.tolist() for part in field.parts]
        for theirs, mine in zip(plain.tensors, ours.tensors, strict=True):
            assert (theirs.name, theirs.data.tolist()) == (mine.name, mine.data.tolist())
    assert gguf.GGUFReader is original
