"""Adapters: only they are trained, the reference is what the model was, and what is saved loads in plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SRPOTrainer
from srpo.errors import ConfigError
from srpo.model.packed import backends
from srpo.model.reference.reference import REFERENCE_ADAPTER
from srpo.model.weights.load import load_model
from srpo.model.weights.quantised import TRAINING_FILE
from tests.conftest import make_byte_tokenizer
from tests.train.plain import ROWS, flat_six, ids_of, logged, settings, sharp_llama, trainer, weights_of

peft = pytest.importorskip("peft")
FOUR = ROWS[:4]


def lora(**changes: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sharp_llama().save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter's folder."""
    folder = tmp_path_factory.mktemp("adapter")
    run = adapter_run(base, folder, peft_config=lora())
    run.train()
    run.save_model()
    return folder


def adapter_run(model: Path, folder: Path, **keywords: Any) -> SRPOTrainer:
    args = {"max_steps": 3, "learning_rate": 0.02, "alpha": 0.5, **keywords.pop("args", {})}
    return SRPOTrainer(str(model), args=settings(folder, **args), train_dataset=FOUR, **keywords)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(torch.tensor([ids_of("A colour: ")])).logits
    return out


def test_only_a_new_adapter_is_trained(base: Path, tmp_path: Path) -> None:
    run = adapter_run(base, tmp_path, peft_config=lora())
    assert run.reference.kind == "adapter off"
    before = weights_of(run.model)
    run.train()
    moved = {name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    losses = logged(run, "loss")
    assert losses[0] == 0.75  # every log-ratio exactly 0, α = ½
    assert losses[-1] < losses[0]


def test_the_reference_of_a_new_adapter_is_the_base(base: Path, tmp_path: Path) -> None:
    run = adapter_run(base, tmp_path, peft_config=lora())
    run.train()
    with torch.no_grad():
        reference = run.reference.six_logps(run.train_dataset.trees)
        plain = flat_six(load_model(str(base)), FOUR)
        policy = flat_six(run.model.eval(), FOUR)
    torch.testing.assert_close(torch.stack(list(reference)), torch.stack(list(plain)), rtol=1e-4, atol=1e-3)
    assert (policy.w - plain.w).abs().max() > 0.1


def test_saved_adapters_load_in_peft(base: Path, adapter: Path) -> None:
    from transformers import AutoModelForCausalLM

    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "revision_template.json", TRAINING_FILE} <= names
    assert "model.safetensors" not in names
    assert json.loads((adapter / TRAINING_FILE).read_text("utf-8"))["beta"] == 0.1
    stock = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    ours = load_model(str(adapter))
    assert torch.equal(logits(stock), logits(ours))
    with ours.disable_adapter():
        off = logits(ours)
    assert torch.equal(off, logits(load_model(str(base))))
    assert not torch.allclose(off, logits(ours), atol=1e-2)


def test_the_reference_of_a_pretrained_adapter_is_a_copy(adapter: Path, tmp_path: Path) -> None:
    run = adapter_run(adapter, tmp_path)
    assert run.reference.kind == "frozen adapter"
    was = flat_six(load_model(str(adapter)), FOUR)
    run.train()
    assert logged(run, "loss")[0] == 0.75  # its reference is the adapter as it was, not the base
    with torch.no_grad():
        reference = run.reference.six_logps(run.train_dataset.trees)
        plain_base = flat_six(load_model(str(adapter)).unload(), FOUR)
    torch.testing.assert_close(torch.stack(list(reference)), torch.stack(list(was)), rtol=1e-4, atol=1e-3)
    assert (reference.w - plain_base.w).abs().max() > 0.1
    moved = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert moved
    assert not any(REFERENCE_ADAPTER in name for name in moved)


def test_the_reference_adapter_is_not_saved(adapter: Path, tmp_path: Path) -> None:
    run = adapter_run(adapter, tmp_path, args={"save_strategy": "steps", "save_steps": 2, "max_steps": 2})
    run.train()
    run.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert (folder / "adapter_model.safetensors").is_file()
        saved = [path for path in folder.rglob("*") if REFERENCE_ADAPTER in path.as_posix()]
        assert saved == []
        assert REFERENCE_ADAPTER not in (folder / "adapter_config.json").read_text("utf-8")
        assert list(load_model(str(folder)).peft_config) == ["default"]
    assert torch.equal(logits(load_model(str(tmp_path))), logits(run.model))


def test_an_adapter_on_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peft_config: the model already has an adapter; merge the adapter first"):
        adapter_run(adapter, tmp_path, peft_config=lora())


def test_an_adapter_in_memory(tmp_path: Path) -> None:
    model = peft.get_peft_model(sharp_llama(), lora(lora_dropout=0.1))
    run = trainer(tmp_path, FOUR, model=model, args={"alpha": 0.5})
    run.train()
    assert (run.reference.kind, logged(run, "loss")) == ("adapter off", [0.75])


def test_activation_checkpointing_changes_nothing_under_an_adapter(base: Path, tmp_path: Path) -> None:
    runs = [adapter_run(base, tmp_path, peft_config=lora(), args=on) for on in ({}, {"gradient_checkpointing": True})]
    for run, seed in zip(runs, (0, 0), strict=True):
        torch.manual_seed(seed)
        for name, weight in run.model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(weight, std=0.1)  # peft draws it from the global generator
        run.train()
    assert logged(runs[0], "loss") == pytest.approx(logged(runs[1], "loss"), rel=1e-5)
    assert logged(runs[0], "grad_norm") == pytest.approx(logged(runs[1], "grad_norm"), rel=1e-4)


def test_the_reference_of_a_compiled_adapter_is_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The trainer is then given another object than the reference: a wrapper round the model both score with.
    # tests/model/packed checks the layouts of a compiled model; here the check would be half of all traces.
    monkeypatch.setattr(backends, "self_check", lambda *_: (0.0, 1.0))
    base = tmp_path / "base"
    sharp_llama(num_hidden_layers=1).save_pretrained(base)  # torch traces every layer for seconds
    make_byte_tokenizer().save_pretrained(base)
    torch._dynamo.reset()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    runs = [
        adapter_run(base, tmp_path / str(n), peft_config=lora(), args={"max_steps": 2, **args})
        for n, args in enumerate(({}, compiled))
    ]
    for run in runs:
        run.train()
    assert {run._backends[False] for run in runs} == {"path"}
    assert logged(runs[1], "loss") == [pytest.approx(loss, rel=1e-5) for loss in logged(runs[0], "loss")]
    assert logged(runs[1], "rewards/chosen")[0] == 0.0  # the log-ratio at step 0
