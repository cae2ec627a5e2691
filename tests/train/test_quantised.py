"""Adapters on bases that bitsandbytes keeps in 4 or 8 bits: trained, saved, continued, merged. Skips without it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SRPOTrainer
from srpo.cli.main import run
from srpo.errors import ConfigError, SRPOError
from srpo.model.weights.load import load_model
from srpo.model.weights.merge import MERGE_FILE
from srpo.model.weights.quantised import TRAINING_FILE
from tests.conftest import make_byte_tokenizer
from tests.train.plain import ROWS, ids_of, settings, sharp_llama

pytest.importorskip("bitsandbytes")
QUICK = ["--max_steps", "3", "--learning_rate", "0.05", "--report_to", "none", "--use_cpu", "true", "--use_peft"]
KINDS: dict[str, list[str]] = {
    "nf4": ["--load_in_4bit"],
    "fp4": ["--load_in_4bit", "--bnb_4bit_quant_type", "fp4", "--use_bnb_nested_quant", "--use_rslora"],
    "dora": ["--load_in_4bit", "--use_dora"],
}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, pairs, and the adapter that `srpo train` made on each kind of quantised base."""
    folder = tmp_path_factory.mktemp("place")
    sharp_llama(num_hidden_layers=1).save_pretrained(folder / "base")
    make_byte_tokenizer().save_pretrained(folder / "base")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]), "utf-8")
    for name, flags in KINDS.items():
        assert run([*words(folder, name), *flags]) == 0
    return folder


def words(place: Path, name: str, model: str = "base") -> list[str]:
    given = ["train", "--model_name_or_path", str(place / model), "--dataset_name", str(place / "pairs.jsonl")]
    return [*given, "--output_dir", str(place / name), "--logging_steps", "1", *QUICK]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(torch.tensor([ids_of("A colour: ")])).logits
    return out


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_on_a_quantised_base_learns(name: str, place: Path) -> None:
    found = losses(place / name)
    assert found[0] == pytest.approx(0.6, abs=1e-5)  # every log-ratio 0, α = 0.8
    assert found[-1] < found[0]
    record = json.loads((place / name / TRAINING_FILE).read_text("utf-8"))
    assert record["quantization"]["load_in_4bit"] is True
    assert {path.name for path in (place / name).glob("*.safetensors")} == {"adapter_model.safetensors"}


@pytest.mark.parametrize("name", KINDS)
def test_merging_gives_the_model_that_was_trained(name: str, place: Path) -> None:
    out = place / f"{name}-merged"
    assert run(["merge", "--model_name_or_path", str(place / name), "--output_dir", str(out)]) == 0
    record = json.loads((out / MERGE_FILE).read_text("utf-8"))
    assert (record["other_tokens"], record["dtype"]) == (0, "float32")
    assert record["difference"] < record["tolerance"] == 1e-4 < record["effect"]
    assert "quantization_config" not in json.loads((out / "config.json").read_text("utf-8"))
    assert "quantization" not in json.loads((out / TRAINING_FILE).read_text("utf-8"))
    # Control: the adapter on the base that was never rounded is another model.
    whole = load_model(str(place / name)).merge_and_unload()
    assert not torch.allclose(logits(load_model(str(out))), logits(whole), atol=1e-3)


def test_a_base_in_8_bits_is_merged_with_its_rounded_weights(place: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(str(place / "base"))
    adapter = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False))
    folder, out = place / "int8", place / "int8-merged"
    adapter.save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / TRAINING_FILE).write_text(json.dumps({"beta": 0.1, "quantization": quantised}))
    assert run(["merge", "--model_name_or_path", str(folder), "--output_dir", str(out)]) == 0
    merged, original = load_model(str(out)), adapter.merge_and_unload()
    off = (merged.model.layers[0].self_attn.q_proj.weight - original.model.layers[0].self_attn.q_proj.weight).abs()
    assert 0 < off.max() < 0.01  # a 127th of the largest weight of a row


def test_training_on_8_bits_is_refused_on_a_processor(place: Path) -> None:
    with pytest.raises(ConfigError, match="load_in_8bit: on a processor, policy and reference would differ"):
        run([*words(place, "int8-run"), "--load_in_8bit"])


def test_the_unrounded_base_is_reported(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "srpo"):
        load_model(str(place / "nf4"))
    assert "was trained on its base in 4 bits, and is used on the unrounded base" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "srpo"):
        load_model(str(place / "nf4"), quantization_config=dict(NF4))
    assert caplog.text == ""


def test_an_adapter_goes_on_with_a_frozen_copy_as_reference(place: Path) -> None:
    flags = [*words(place, "nf4-on", model="nf4"), "--load_in_4bit"]
    flags.remove("--use_peft")
    assert run(flags) == 0
    assert losses(place / "nf4-on")[0] == pytest.approx(0.6, abs=1e-6)
    assert json.loads((place / "nf4-on" / TRAINING_FILE).read_text("utf-8"))["reference"] == "frozen adapter"


def test_reference_log_probs_of_a_quantised_base_are_cached(place: Path) -> None:
    cached = ["--load_in_4bit", "--precompute_ref_log_probs", "--reference_cache", str(place / "kept")]
    assert run([*words(place, "nf4-cached"), *cached]) == 0
    assert losses(place / "nf4-cached") == pytest.approx(losses(place / "nf4"), abs=1e-5)


def test_all_weights_of_a_quantised_model_are_refused(place: Path) -> None:
    flags = [*words(place, "whole"), "--load_in_4bit"]
    flags.remove("--use_peft")
    with pytest.raises(ConfigError, match="quantised weights cannot be trained; train an adapter"):
        run(flags)
    model = load_model(str(place / "base"), quantization_config=dict(NF4))
    with pytest.raises(ConfigError, match="quantised weights cannot be trained"):
        SRPOTrainer(model, args=settings(place / "none"), train_dataset=ROWS, processing_class=make_byte_tokenizer())


def test_weights_are_not_packed_for_inference(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor with AVX512-BF16, bitsandbytes packs 4-bit weights in eval mode, and packed ones pass no gradient.

    Here the instructions are pretended, and packing marks the weights as the real one does.
    """
    import bitsandbytes.nn.modules as modules

    packed: list[int] = []

    def pack(weight: torch.Tensor, state: Any) -> Any:
        packed.append(len(weight))
        return weight, state

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", pack)
    logits(load_model(str(place / "base"), quantization_config=dict(NF4)))
    assert packed  # control
    packed.clear()
    assert run([*words(place, "unpacked"), "--load_in_4bit"]) == 0
    assert not packed
    assert losses(place / "unpacked") == pytest.approx(losses(place / "nf4"), abs=1e-6)


def test_a_gradient_of_zero_ends_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 4-bit layers that lose their gradient would: the product passes a gradient of zero to its input."""
    import bitsandbytes as bnb

    real = bnb.matmul_4bit
    monkeypatch.setattr(bnb, "matmul_4bit", lambda x, *args, **kwargs: real(x.detach(), *args, **kwargs) + 0 * x.sum())
    targets = ["--load_in_4bit", "--lora_target_modules", "q_proj"]
    with pytest.raises(SRPOError, match=r"exactly zero: .*likely causes: quantised layers") as caught:
        run([*words(place, "nothing"), *targets])
    assert caught.value.exit_code == 70


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_on_a_quantised_base_is_the_uninterrupted_one(
    name: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The base is rounded again from the same weights; evaluations take its numbers, before and after."""
    evaluated = ["--eval_dataset_name", str(place / "pairs.jsonl"), "--eval_strategy", "steps", "--eval_steps", "1"]
    more = [*KINDS[name], *evaluated, "--save_strategy", "steps", "--save_steps", "1"]
    whole, cut = place / f"{name}-whole", place / f"{name}-cut"
    assert run([*words(place, whole.name), *more]) == 0
    shutil.copytree(whole / "checkpoint-1", cut / "checkpoint-1")
    with caplog.at_level(logging.INFO, "srpo"):
        assert run([*words(place, cut.name), *more, "--resume"]) == 0
    assert f"resuming from {cut / 'checkpoint-1'}" in caplog.text
    assert (cut / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text("utf-8").splitlines()]
    evaluations = [row["eval_loss"] for row in rows if "eval_loss" in row]
    # Training takes all four pairs in each step, so an evaluation has the loss of the step after it.
    assert evaluations[:2] == pytest.approx(losses(whole)[1:], abs=1e-5)
