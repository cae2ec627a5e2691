"""Checkpoints of a model with code of its own, whose weights have other names on disk: loaded with the user's leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import dynamic_module_utils

from srpo.errors import InputError
from srpo.train.durable import loading
from tests.train.plain import sharp_llama, trainer, weights_of

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class Config(LlamaConfig):
    model_type = "theirs"


class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved model that needs its own code; its names count as other ones than in memory."""
    folder = tmp_path / "theirs"
    sharp_llama(seed=5, num_hidden_layers=1).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    settings |= {"model_type": "theirs", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "own.py").write_text(CODE, "utf-8")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(loading, "names_differ", lambda model, folder: True)
    return folder


def load(run: Any, kind: str, folder: Path) -> None:
    if kind == "resume":
        run._load_from_checkpoint(str(folder))
    else:
        run.state.best_model_checkpoint = str(folder)
        run._load_best_model()


@pytest.mark.parametrize("kind", ["resume", "best"])
def test_a_checkpoint_that_needs_its_code_is_loaded_with_leave_alone(kind: str, theirs: Path, tmp_path: Path) -> None:
    runs = {
        leave: trainer(tmp_path, model=sharp_llama(num_hidden_layers=1), args={"trust_remote_code": leave})
        for leave in (True, False)
    }
    load(runs[True], kind, theirs)
    wanted = weights_of(sharp_llama(seed=5, num_hidden_layers=1))
    assert all(torch.equal(weight, wanted[name]) for name, weight in weights_of(runs[True].model).items())
    with pytest.raises(InputError, match=r"no model without running own\.py"):
        load(runs[False], kind, theirs)
