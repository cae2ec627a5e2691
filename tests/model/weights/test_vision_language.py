"""Vision-language checkpoints are loaded whole and trained on text: no tower is lost, and none is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from srpo.errors import InputError
from srpo.model.packed.forward import sequence_logps
from srpo.model.weights.architecture import outside_language
from srpo.model.weights.load import load_model, load_processor
from tests.conftest import make_tiny_llama
from tests.model.zoo import LINEAR, TINY, WINDOW, forest_of, plain_logps
from tests.sequences.pictured import idefics_processor, model_for

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": 28,
    "patch_size": 14,
}


def rope(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4, **more}}


MIXED = {"layer_types": ["linear_attention", "full_attention"], **LINEAR}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (rope([1, 1, 2]), {}),
    "qwen3_vl": (rope([2, 1, 1]), {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral", "head_dim": 8}),
    "smolvlm": ({"model_type": "llama"}, {}),
    "qwen3_5": ({**MIXED, **rope([1, 0, 0], partial_rotary_factor=0.25)}, {"num_position_embeddings": 16}),
    "gemma3": ({"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, {}),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}),
    "internvl": ({"model_type": "qwen2"}, {"image_size": [28, 28], "patch_size": [14, 14]}),
}


def save(kind: str, folder: Path) -> set[str]:
    """Saves a tiny model of that kind; returns the names of its weights."""
    text, vision = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, text_config={**TINY, **text}, vision_config={**VISION, **vision})
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return names_in(folder)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_loaded_trained_on_text_and_saved_whole(kind: str, tmp_path: Path) -> None:
    names = save(kind, tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trees = forest_of(pairs=2)
    logps = sequence_logps(model, trees, "auto")
    torch.testing.assert_close(logps.detach(), plain_logps(model, trees).detach(), rtol=0, atol=1e-4)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    logps.sum().neg().backward()
    optimiser.step()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(("vision" in name or "visual" in name or "connector" in name or "proj" in name) for name in frozen)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name in frozen), name
    model.save_pretrained(tmp_path / "trained")
    assert names_in(tmp_path / "trained") == names


def test_control_the_text_class_of_transformers_drops_the_tower(tmp_path: Path) -> None:
    names = save("qwen3_5", tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "text")
    assert len(names_in(tmp_path / "text")) < len(names)


def test_an_adapter_of_the_text_class_gets_the_text_class(tmp_path: Path) -> None:
    save("qwen3_5", tmp_path / "model")
    for kind, loaded in ((AutoModelForCausalLM, "Qwen3_5ForCausalLM"), (load_model, "Qwen3_5ForConditionalGeneration")):
        load = kind.from_pretrained if isinstance(kind, type) else kind
        lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
        adapter = get_peft_model(load(str(tmp_path / "model")), lora)
        adapter.save_pretrained(tmp_path / loaded)
        again = load_model(str(tmp_path / loaded))
        assert type(again.get_base_model()).__name__ == loaded
        ids = torch.tensor([[1, 5, 9]])
        with torch.no_grad():
            ours, theirs = again(input_ids=ids).logits, adapter.eval()(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_processors_are_loaded_for_pictures_alone(tmp_path: Path) -> None:
    processor = idefics_processor()
    processor.save_pretrained(tmp_path / "base")
    model_for(processor).save_pretrained(tmp_path / "base")
    assert load_processor(str(tmp_path / "base")).image_seq_len == 4
    base = load_model(str(tmp_path / "base"))
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], exclude_modules=r".*vision_model.*")
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    assert load_processor(str(tmp_path / "adapter")).image_seq_len == 4
    processor.tokenizer.save_pretrained(tmp_path / "text")
    make_tiny_llama().save_pretrained(tmp_path / "text")
    assert not hasattr(load_processor(str(tmp_path / "text")), "image_processor")
    for file in (tmp_path / "base").glob("*processor*"):
        file.unlink()
    with pytest.raises(InputError, match="no processor"):
        load_processor(str(tmp_path / "base"))
    with pytest.raises(InputError, match="no such folder"):
        load_processor(str(tmp_path / "nothing"))


def test_names_of_modules_outside_the_language_model() -> None:
    assert outside_language(model_for(idefics_processor())) == ["model.vision_model", "model.connector"]
    assert outside_language(make_tiny_llama()) == []
