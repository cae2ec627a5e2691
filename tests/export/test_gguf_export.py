"""Exported GGUF files: equal to the model in transformers and in llama.cpp; damaged files are found."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from srpo.errors import ConfigError, SRPOError
from srpo.export import gguf_export, gguf_write, llama_cpp
from srpo.export.gguf_export import export
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.model.weights.merge import continued, logits_of
from srpo.sequences.templates import RevisionTemplate
from srpo.tasks.carry import carry_tokenizer
from srpo.tasks.pretraining import character_tokenizer
from tests.conftest import EOS, PAD, VOCAB, make_byte_tokenizer, make_tiny_llama
from tests.revise.tiny import carry_llama, saved

pytest.importorskip("gguf", reason="needs the extra gguf")
pytest.importorskip("cyllama", reason="needs the extra llama")
TEXT = "What  is 2+2? Ä 雪"


def tiny(kind: str, **changes: Any) -> Any:
    import transformers

    if kind == "llama":
        return make_tiny_llama(initializer_range=0.2)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128 if kind == "Qwen3" else 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    if kind == "Gemma3":  # six layers, so that one has full attention; the window is shorter than a prompt
        shape |= {"num_hidden_layers": 6, "sliding_window": 8, "head_dim": 256}
    name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{name}Config")(**{**shape, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # constants at the start: a lost one would not be found
                torch.nn.init.normal_(weight, std=0.5)
    return model


def pieces_tokenizer(prefix: bool = False) -> Any:
    """A tokenizer of Gemma's kind: spaces are marked, and a character without a piece becomes bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("▁", "▁"), ("i", "s"), ("▁", "is"), ("W", "h")]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [*"▁abcdefghijklmnopqrstuvwxyzW?+", *("".join(merge) for merge in merges)]
    vocab = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    marked = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked]) if prefix else marked
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def folder(path: Path, kind: str, **changes: Any) -> str:
    tokenizer = pieces_tokenizer() if kind == "Gemma3" else make_byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    tiny(kind, **ids, **changes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    RevisionTemplate.preset("plain").save(path)
    return str(path)


def prompts(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps({"prompt": f"{TEXT} {n}+{n}"}) + "\n" for n in range(count)), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", "f16"), ("Qwen2", "f16"), ("Qwen3", "f32"), ("llama", "q8_0"), ("Gemma3", "f16")]
)
def test_the_file_equals_the_model(tmp_path: Path, kind: str, dtype: str) -> None:
    found = export(folder(tmp_path / "model", kind), str(tmp_path / "out"), kind=dtype, max_new_tokens=6)
    assert found.generated == 24
    assert found.other_tokens == 0 or dtype == "q8_0"
    assert found.difference < {"f32": 1e-5, "f16": 5e-3, "q8_0": 0.1}[dtype]
    assert found.opened is not None
    assert found.opened.drafts == 4
    assert found.opened.equal_drafts == 4 or dtype == "q8_0"
    tokenizer = load_tokenizer(str(found.file))
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False).input_ids) == TEXT
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        found.file.name,
        "Modelfile",
        "README.md",
        "revision_template.json",
    }


@pytest.mark.parametrize("kind", ["llama", "Gemma3"])
def test_drafts_and_revisions_in_llama_cpp_are_the_models(tmp_path: Path, kind: str) -> None:
    given = prompts(tmp_path / "prompts.jsonl", 8)
    model = folder(tmp_path / "model", kind)
    found = export(model, str(tmp_path / "out"), kind="f32", prompts=given, max_new_tokens=3)
    assert found.opened == (8, 8, 8, 8, 0.0)
    assert "in llama.cpp: 8 of 8 drafts and 8 of 8 revisions equal" in str(found)


def test_four_bits_are_written_by_llama_cpp(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "Qwen2", hidden_size=256, intermediate_size=256, head_dim=64)
    whole = export(model, str(tmp_path / "whole"), max_new_tokens=4)
    small = export(model, str(tmp_path / "small"), kind="q4_k_m", max_new_tokens=4)
    assert small.file.name == "model-q4_k_m.gguf"
    assert small.file.stat().st_size < 0.5 * whole.file.stat().st_size
    assert small.opened is not None
    assert whole.difference < 5e-3 < small.difference
    assert not list((tmp_path / "small").glob(".*"))


def test_without_llama_cpp_the_output_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gguf_export, llama_cpp):
        monkeypatch.setattr(module, "installed", lambda: False)
    model = folder(tmp_path / "model", "llama")
    found = export(model, str(tmp_path / "out"), max_new_tokens=2)
    assert "in llama.cpp: not tried, pip install 'srpo[llama]'" in str(found)
    with pytest.raises(ConfigError, match=r"q4_k_m.*not installed.*srpo\[llama\].*llama-quantize"):
        export(model, str(tmp_path / "out"), kind="q4_k_m")
    with pytest.raises(ConfigError, match=r"llama\.cpp is not installed"):
        llama_cpp.LlamaCpp(found.file, 8)


def test_a_wrong_order_of_merges_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = gguf_write._pieces

    def reversed_scores(*args: Any) -> dict[str, Any]:
        found = fields(*args)
        return found | {"token_scores": [-score for score in found["token_scores"]]}

    monkeypatch.setattr(gguf_write, "_pieces", reversed_scores)
    given = prompts(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(SRPOError, match="into other tokens"):
        export(folder(tmp_path / "model", "Gemma3"), str(tmp_path / "out"), prompts=given, max_new_tokens=2)
    assert not list((tmp_path / "out").iterdir())


def test_other_answers_of_llama_cpp_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = llama_cpp.LlamaCpp.choices
    monkeypatch.setattr(llama_cpp.LlamaCpp, "choices", lambda self, ids, answer: right(self, ids[:-1], answer))
    with pytest.raises(SRPOError, match="answers differently where the model is sure"):
        export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=6)
    assert not list((tmp_path / "out").iterdir())


def test_greedy_tokens_with_a_cache_are_those_without() -> None:
    model = tiny("Gemma3")
    ids = list(range(20))
    for _ in range(6):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    assert continued(model, list(range(20)), 6) == ids


@pytest.mark.parametrize("kind", ["llama", "Qwen3", "Gemma3"])
def test_answers_of_a_batch_are_those_of_each_context_alone(kind: str) -> None:
    model = tiny(kind)
    contexts = [list(range(20)), [9, 8, 7], [5], list(range(30, 60))]  # Gemma's window of 8 is shorter, and longer
    together = gguf_export.continued_together(model, contexts, 5)
    assert together == [continued(model, context, 5)[-5:] for context in contexts]
    assert together != gguf_export.continued_together(model, [[0, *context] for context in contexts], 5)  # control


def test_choices_of_llama_cpp_are_its_greedy_answer(tmp_path: Path) -> None:
    file = export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=2).file
    llama, ids, answer = llama_cpp.LlamaCpp(file, 30), list(range(20, 40)), list[int]()
    for _ in range(6):
        answer += llama.choices([*ids, *answer], [0])  # one token at a time
    assert llama.choices(ids, answer) == answer
    other = [*answer[:3], answer[3] + 1, *answer[4:]]
    assert llama.choices(ids, other)[:4] == answer[:4]
    llama.close()


@pytest.mark.parametrize("place", ["q_proj", "down_proj", "norm"])
def test_a_wrong_weight_is_found(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = gguf_write._tensors

    def damaged(model: Any, arch: str, kind: str) -> Any:
        other = deepcopy(model)
        for name, weight in other.state_dict().items():
            if place in name:
                weight.copy_(weight.flip(0) * 2)
        return tensors(other, arch, kind)

    monkeypatch.setattr(gguf_write, "_tensors", damaged)
    with pytest.raises(SRPOError, match="differs from the model"):
        export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=4)
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_the_order_of_a_llamas_rows_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_write, "_interleaved", lambda weight, heads: weight)
    with pytest.raises(SRPOError, match="differs from the model"):
        export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=4)


def test_the_readme_has_both_requests(tmp_path: Path) -> None:
    export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=2)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert text.count("curl http://localhost:8080/v1/completions") == 2
    assert "THE DRAFT" in text
    assert (tmp_path / "out" / "Modelfile").read_text("utf-8").startswith("FROM ./model-f16.gguf\n")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'q9'.*expected one of f32.*q4_k_m"):
        export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), kind="q9")
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCAB, eos_token_id=EOS)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    make_byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"architecture 'gpt2'.*convert_hf_to_gguf"):
        export(str(tmp_path / "gpt2"), str(tmp_path / "out"), max_new_tokens=2)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tiny("llama").save_pretrained(tmp_path / "words")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<unk>").save_pretrained(tmp_path / "words")
    with pytest.raises(ConfigError, match="neither byte-level BPE nor SentencePiece"):
        export(str(tmp_path / "words"), str(tmp_path / "out"), max_new_tokens=2)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_a_model_of_sums_drafts_and_revises_in_llama_cpp(tmp_path: Path, kind: str) -> None:
    given = tmp_path / "sums.jsonl"
    given.write_text("".join(json.dumps({"prompt": f"{n * n}+{7 * n}="}) + "\n" for n in range(6)), "utf-8")
    model = str(saved(tmp_path / "carry", carry_llama()))
    found = export(model, str(tmp_path / "out"), kind=kind, prompts=str(given), max_new_tokens=4)
    assert found.opened is not None
    assert (found.opened.drafts, found.opened.revisions) == (6, 6)
    if kind == "f16":
        assert found.opened == (6, 6, 6, 6, 0.0)
    tokenizer, again = carry_tokenizer(), load_tokenizer(str(found.file))
    llama = llama_cpp.LlamaCpp(found.file, 8)
    for text in ("12+34=?", "1 2", "é3\n雪", "<eos>4", "<eo5", ""):  # characters without a token are dropped
        assert tokenizer(text).input_ids == again(text).input_ids
        assert tokenizer(text, add_special_tokens=False).input_ids == llama.split(text)
    llama.close()


def test_characters_are_spelled_as_llama_cpp_reads_them() -> None:
    tokenizer = character_tokenizer("a \n")
    fields = gguf_write._characters(json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer, 7)
    assert fields["token_list"] == ["a", "Ġ", "Ċ", "<pad>", "<bos>", "<eos>", "[PAD6]"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alphabet": "aé"}, "no merges, and tokens other than one ASCII character: .*é"),
        ({"unk_token": "a"}, "a token for unknown characters"),
        ({"normalizer": True}, "changes texts"),
        ({"decoder": True}, "its decoder does not join tokens as they are"),
    ],
)
def test_characters_that_llama_cpp_would_split_otherwise_are_refused(change: dict[str, Any], said: str) -> None:
    tokenizer = character_tokenizer(change.get("alphabet", "ab"))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["unk_token"] = change.get("unk_token")
    state["decoder"] = None if "decoder" in change else state["decoder"]
    state["normalizer"] = {"type": "Lowercase"} if "normalizer" in change else None
    with pytest.raises(ConfigError, match=said):
        gguf_write._characters(state, tokenizer, len(tokenizer))


def test_where_answers_part_the_output_has_the_models_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "model", "llama")
    right, parted = llama_cpp.LlamaCpp.choices, list[tuple[list[int], list[int]]]()

    def second_best(self: Any, ids: list[int], answer: list[int]) -> list[int]:
        found = right(self, ids, answer)
        if parted:
            return found
        model = load_model(path, dtype="float32")
        found[0] = int(logits_of(model, ids)[-1].topk(2).indices[1])
        parted.append((ids, [answer[0], found[0]]))
        return found

    monkeypatch.setattr(llama_cpp.LlamaCpp, "choices", second_best)
    monkeypatch.setitem(gguf_export._SHARE, "f16", 1.0)
    found = export(path, str(tmp_path / "out"), max_new_tokens=2)
    [(ids, pair)] = parted
    own, other = torch.log_softmax(logits_of(load_model(path, dtype="float32"), ids)[-1], -1)[pair].tolist()
    assert found.opened is not None
    assert found.opened[:4] == (3, 4, 0, 0)
    assert found.opened.lead == pytest.approx(own - other, rel=1e-4)
    assert f"where the others part, the model prefers its own token by {own - other:.2g} nats" in str(found)


def test_a_sliding_window_outside_gemma_is_refused(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "Qwen3", use_sliding_window=True, sliding_window=24, max_window_layers=1)
    with pytest.raises(ConfigError, match="sliding window"):
        export(model, str(tmp_path / "out"), max_new_tokens=2)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        export(model, str(tmp_path / "out"), max_new_tokens=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": ["full_attention"] * 6}, "layers with full attention"),
        ({"query_pre_attn_scalar": 8}, "scale of the attention"),
        ({"final_logit_softcapping": 30.0}, "soft cap"),
    ],
)
def test_a_gemma_that_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"{said}.*not those of llama.cpp"):
        export(folder(tmp_path / "model", "Gemma3", **changes), str(tmp_path / "out"), max_new_tokens=2)
