"""Rows of the support table in docs/train.md, in one process: evaluated, saved whole, resumed, reference cached."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srpo.train.adapters import lora_config
from srpo.train.durable import loading
from tests.train.plain import ROWS, logged, sharp_llama, trainer, weights_of
from tests.train.test_adapter_settings import asked, experts
from tests.train.test_compiled import _attention_as_it_was  # noqa: F401

KINDS: dict[str, dict[str, Any]] = {
    "experts": {},
    "adapter": {},
    "compile_layers": {"compile_layers": True},
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "eager", "pad_to_multiple_of": 256},
}


@pytest.fixture(autouse=True)
def _traced_and_not_built(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers are traced as always, and the graphs run as they are: no compiler of C++ is needed."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, *args, **options: compile_(self, *args, **{**options, "backend": "eager"})
    )
    yield
    torch._dynamo.reset()


def run(kind: str, folder: Path, *, plain: bool = False, **changes: Any) -> Any:
    torch._dynamo.reset()  # its limit of traces counts those of all models of a process
    model = sharp_llama(num_hidden_layers=1) if "compile" in kind else experts()
    args = {**({} if plain else KINDS[kind]), "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **changes}
    adapter = (
        lora_config(asked(lora_target_modules=["all-linear"]), disable_dropout=True) if kind == "adapter" else None
    )
    args["per_device_train_batch_size"] = 2
    return trainer(folder, ROWS[:4], model=model, args=args, eval_dataset=ROWS[4:], peft_config=adapter)


def test_an_adapter_of_experts_is_resumed(tmp_path: Path) -> None:
    whole = run("adapter", tmp_path / "whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "cut" / "checkpoint-1")
    again = run("adapter", tmp_path / "cut")
    again.train(resume_from_checkpoint=True)
    ours, theirs = weights_of(again.model), weights_of(whole.model)
    assert any("experts" in name and theirs[name].count_nonzero() for name in theirs if "lora_B" in name)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    "kind", ["experts", *(pytest.param(kind, marks=pytest.mark.sweep) for kind in ("compile_layers", "torch_compile"))]
)
def test_a_row_of_the_support_table(kind: str, tmp_path: Path) -> None:
    plain, whole = run(kind, tmp_path / "plain", plain=True), run(kind, tmp_path / "whole")
    for made in (plain, whole):
        made.train()
    losses = logged(whole, "loss")
    assert losses == pytest.approx(logged(plain, "loss"), abs=1e-6)
    assert whole.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)

    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "cut" / "checkpoint-1")
    again = run(kind, tmp_path / "cut")
    again.train(resume_from_checkpoint=True)
    ours, theirs = weights_of(again.model), weights_of(whole.model)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []

    if kind == "experts":  # their names on disk differ from those in memory; the finished model is loaded again as well
        again.save_model()
        finished = run(kind, tmp_path / "cut")
        finished.train(resume_from_checkpoint=True)
        assert finished.start.complete
        assert all(torch.equal(weight, theirs[name]) for name, weight in weights_of(finished.model).items())

    cache = {"reference_cache": str(tmp_path / "kept")}
    for settings in (cache, {**cache, "precompute_ref_log_probs": True}):
        cached = run(kind, tmp_path / str(len(settings)), **settings)
        cached.train()
        assert logged(cached, "loss") == pytest.approx(losses, abs=1e-6)

    best = run(kind, tmp_path / "best", load_best_model_at_end=True, eval_strategy="steps", eval_steps=1)
    best.train()
    loaded = weights_of(type(plain.model).from_pretrained(best.state.best_model_checkpoint))
    assert all(torch.equal(weight, loaded[name]) for name, weight in weights_of(best.model).items())
    whole.save_model()
    _, found = type(plain.model).from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


def test_control_experts_that_are_loaded_by_name_keep_their_first_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' own trainer does it: the names on disk differ from those in memory."""
    monkeypatch.setattr(loading, "names_differ", lambda model, folder: False)
    whole = run("experts", tmp_path, max_steps=1)
    whole.train()
    again = run("experts", tmp_path, max_steps=1)
    again._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    ours, theirs, first = weights_of(again.model), weights_of(whole.model), weights_of(experts())
    differ = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert differ == {name for name in theirs if ".experts." in name}
    assert all(torch.equal(ours[name], first[name]) for name in differ)
