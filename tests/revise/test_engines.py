"""Settings each engine accepts, settings that decide the answers, and the device of models in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.cli.main import run
from srpo.errors import ConfigError
from srpo.evaluate.answers import ModelAnswers, Task
from srpo.evaluate.plan import Model, Plan
from srpo.model.weights.load import load_model
from srpo.revise.engines import make_reviser
from srpo.revise.reviser import Reviser
from srpo.revise.settings import EngineSettings
from srpo.settings import build
from tests.revise.tiny import PROMPTS, carry_llama, reviser, saved

SERVER = {"base_url": "http://localhost:1/v1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("model"), carry_llama()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "hff"}, "engine: 'hff'; expected one of hf, vllm, openai, chat; did you mean 'hf'?"),
        ({"engine": "openai"}, "base_url: engine openai needs a server"),
        (SERVER, "base_url: has no use with engine hf"),
        ({"timeout": 3.0}, "timeout: has no use with engine hf"),
        ({"speculation": "none"}, "speculation: has no use with engine hf"),
        ({"engine": "vllm", "device": "cpu"}, "device: has no use with engine vllm"),
        ({"engine": "chat", "dtype": "auto", **SERVER}, "dtype: has no use with engine chat"),
        ({"engine": "openai", "device": "cpu", **SERVER}, "device: has no use with engine openai"),
        ({"engine": "chat", "served_reference": "base", **SERVER}, "served_reference: engine chat has no log-probs"),
    ],
)
def test_settings_without_use_for_the_engine_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(EngineSettings, settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "decides"),
    [
        ({}, {}),
        ({"device": "cpu"}, {}),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"engine": "vllm", "dtype": "auto"}, {"engine": "vllm", "dtype": "auto"}),
        ({"engine": "openai", "timeout": 3.0, **SERVER}, {"engine": "openai"}),
    ],
)
def test_recorded_settings_are_those_that_decide_the_answers(settings: dict[str, Any], decides: dict[str, str]) -> None:
    assert build(EngineSettings, settings).made_with() == decides


def places(reviser: Reviser) -> set[tuple[torch.dtype, str]]:
    """Of the weights of policy and reference."""
    assert reviser.confidence is not None
    scorer: Any = reviser.confidence.scorer
    with scorer._active_reference() as reference:
        return {(p.dtype, p.device.type) for each in (reviser.model, reference) for p in each.parameters()}


def test_weights_of_the_asked_dtype_on_the_asked_device(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srpo.revise.loading.inference_device", lambda name: torch.device({"": "meta"}.get(name, name)))
    for serving, place in (
        (EngineSettings(), (torch.float32, "meta")),
        (EngineSettings(dtype="bfloat16", device="cpu"), (torch.bfloat16, "cpu")),
    ):
        assert places(make_reviser(serving, model, reference=model, beta=0.1)) == {place}


def test_a_reference_by_its_path_goes_where_the_model_is(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srpo.revise.loading.inference_device", lambda name: torch.device("meta"))
    loaded = load_model(model, dtype="bfloat16")
    assert places(reviser(loaded, reference=model, beta=0.1)) == {(torch.bfloat16, "cpu")}
    for where, asked in (("device", "cpu"), ("dtype", "float32")):
        with pytest.raises(ConfigError, match=f"{where}: '{asked}', and a model that is loaded"):
            reviser(loaded, **{where: asked})


def test_an_evaluation_loads_models_in_its_dtype(model: str, tmp_path: Path) -> None:
    files = []
    for dtype in ("float32", "float16"):
        plan = Plan(models={"a": Model(model)}, prompts={"all": "p"}, dtype=dtype, device="cpu")
        answers = ModelAnswers(plan, Model(model), tmp_path, 0)
        assert answers.reviser(Model(model)).model.dtype == getattr(torch, dtype)
        files.append(answers.cache_file("answers", Task("a", "all", [], 1.0))[0])
    assert files[0] != files[1]  # trails drawn in one precision do not serve for the other


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "device: 'cuda:99', and 0 GPUs are seen by torch; name one of them, or cpu"),
        ("gpu", "device: 'gpu'; expected cpu, cuda, or one of several: cuda:1"),
        ("cuda:one", "device: 'cuda:one'; expected"),
        ("meta", "device: 'meta'; expected"),
    ],
)
def test_an_unknown_device_is_rejected(device: str, message: str, tmp_path: Path) -> None:
    saved(tmp_path)  # without weights: the device is looked at before them
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": PROMPTS[0]}) + "\n", "utf-8")
    words = ["revise", "--model_name_or_path", str(tmp_path), "--input", str(tmp_path / "in.jsonl"), "--device", device]
    with pytest.raises(ConfigError) as caught:
        run([*words, "--output", str(tmp_path / "out.jsonl")])
    assert message in str(caught.value)
