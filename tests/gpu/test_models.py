"""On a GPU: a model given by its path is put there, and revises there as on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from srpo.cli.main import run
from srpo.errors import ConfigError
from srpo.revise.reviser import Reviser
from tests.revise.tiny import PROMPTS, carry_llama, saved

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = saved(tmp_path_factory.mktemp("model"), carry_llama())
    (folder / "srpo_training.json").write_text(json.dumps({"beta": 0.1}), "utf-8")
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_are_on_the_gpu_by_default(dtype: str, model: str) -> None:
    reviser = Reviser(model, reference=model, dtype=dtype)
    assert {p.device.type for p in reviser.model.parameters()} == {"cuda"}
    assert {str(p.dtype) for p in reviser.model.parameters()} == {f"torch.{dtype}"}
    (trail,) = reviser.revise(["12+34="], revisions=2, max_new_tokens=6, policy="always")
    assert trail.answers[1].preferred == pytest.approx(0.5, abs=1e-3)  # policy and reference are the same
    assert Reviser(model, device="cpu").model.device.type == "cpu"
    with pytest.raises(ConfigError, match=r"device: 'cuda:99', and \d+ GPU"):
        Reviser(model, device="cuda:99")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_command_writes_the_same_on_the_gpu(temperature: float, model: str, tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    texts = []
    for device in ("cuda", "cpu"):
        words = ["revise", "--model_name_or_path", model, "--input", str(tmp_path / "prompts.jsonl")]
        words += ["--max_new_tokens", "6", "--policy", "always", "--temperature", str(temperature)]
        assert run([*words, "--output", str(tmp_path / device), "--device", device]) == 0
        lines = (tmp_path / device).read_text("utf-8").splitlines()
        texts.append([[answer["text"] for answer in json.loads(line)["answers"]] for line in lines])
    assert texts[0] == texts[1]
