"""vLLM itself, under `make vllm`, in an environment of its own; skipped in other environments.

Greedy trails and confidences are those of the engine in this process, in float32, for an adapter, for the same adapter
merged, and through `vllm serve`. A trail may part from the other only where the two likeliest tokens are within 1e-3.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.parting import Count
from srpo import Reviser
from srpo.generate.engine import Decoding
from srpo.generate.http import Endpoint
from srpo.generate.openai import CompletionsEngine
from srpo.generate.vllm import VLLMEngine
from srpo.model.weights.load import load_model
from srpo.revise.confidence import ModelScorer, RatioScorer
from srpo.revise.trail import Trail
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.revise.tiny import carry_llama, ids_of

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; `make vllm` runs it"),
]
PROMPTS = [f"{a}+{b}=" for a in range(10, 34) for b in (7, 95)]
NATS = 1e-4  # between log-ratios of two float32 engines
SETTINGS: dict[str, Any] = {"revisions": 4, "temperature": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, adapter (LoRA of rank 4 on it) and merged; random weights, large enough to have opinions."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("models")
    found = {name: root / name for name in ("base", "adapter", "merged")}
    # vLLM's attention on CPUs begins at heads of 32.
    model = carry_llama(hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1)
    model.save_pretrained(found["base"])
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(load_model(str(found["base"])), lora)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    tuned.save_pretrained(found["adapter"])
    load_model(str(found["adapter"])).merge_and_unload().save_pretrained(found["merged"])
    for folder in found.values():
        carry_tokenizer().save_pretrained(folder)
        TEMPLATE.save(folder)
        (folder / "srpo_training.json").write_text(json.dumps({"beta": 0.1, "reference": "adapter off"}), "utf-8")
    return found


@pytest.fixture(scope="module", params=[("adapter", "auto"), ("merged", "ngram")], ids=lambda each: each[0])
def served(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[tuple[Path, VLLMEngine]]:
    """A folder and vLLM on it."""
    name, speculation = request.param
    folder = folders[name]
    engine = VLLMEngine(str(folder), speculation=speculation, enforce_eager=True)
    assert engine.speculation in ("suffix", "ngram")
    yield folder, engine
    engine.close()


def apart(subject: Reviser, ours: list[Trail], theirs: list[Trail]) -> Count:
    """How the answers of two engines part, of each trail up to the first that does: later ones have other contexts."""
    count, end = Count(), carry_tokenizer().eos_token_id
    for one, other in zip(ours, theirs, strict=True):
        in_hand = None
        for a, b in zip(one.answers, other.answers, strict=False):
            render = subject.renderer
            context = render.draft(one.prompt) if in_hand is None else render.revision(one.prompt, in_hand)
            mine, its = (ids_of(answer.text) + [end] * answer.finished for answer in (a, b))
            count.see(subject.model, [context], [mine], [its])
            if mine != its:
                break
            in_hand = a.text if a.kept else in_hand
    return count


def unlike(ours: list[Trail], theirs: list[Trail]) -> float:
    """The largest difference between two confidences in the same revision."""
    return max(
        abs(a.preferred - b.preferred)
        for one, other in zip(ours, theirs, strict=True)
        for (before, a), (before_too, b) in zip(pairwise(one.answers), pairwise(other.answers), strict=False)
        if (before.text, a.text) == (before_too.text, b.text) and a.preferred is not None and b.preferred is not None
    )


def test_greedy_trails_and_confidences_equal_those_in_process(
    served: tuple[Path, VLLMEngine], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, engine = served
    near = Reviser(str(folder), reference=str(folders["base"]))
    if engine.has_adapter:
        scorer = RatioScorer(engine.logps, engine.base_logps)
    else:  # the reference in process, the policy on vLLM
        base = ModelScorer(load_model(str(folders["base"])), load_model(str(folders["merged"])))
        scorer = RatioScorer(engine.logps, lambda pairs: logps_in_process(base.model, pairs))
    far = Reviser(str(folder), engine=engine, scorer=scorer)
    ours, theirs = near.revise(PROMPTS, **SETTINGS), far.revise(PROMPTS, **SETTINGS)
    count = apart(near, ours, theirs)
    with capsys.disabled():
        print(f"\n{folder.name}, {engine.speculation}: {count.sentence()}")
    assert count.mistakes == 0
    assert len(count.gaps) <= len(PROMPTS) // 10
    assert unlike(ours, theirs) <= 0.1 * NATS * 2  # β times two log-ratios
    # The control: the base in process says something else.
    other = Reviser(str(folders["base"])).revise(PROMPTS, **SETTINGS)
    assert apart(near, ours, other).mistakes > 0


@torch.no_grad()
def logps_in_process(model: Any, pairs: Any) -> list[float]:
    """One sequence at a time, as plain as can be."""
    sums = []
    for context, answer in pairs:
        rows = model(torch.tensor([[*context, *answer]])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(rows[len(context) - 1 + i, id_]) for i, id_ in enumerate(answer)))
    return sums


def test_log_probs_equal_those_in_process(served: tuple[Path, VLLMEngine], folders: dict[str, Path]) -> None:
    folder, engine = served
    pairs = [(tuple(ids_of(prompt)), tuple(ids_of(answer))) for prompt in PROMPTS[:6] for answer in ("17", "4", "1234")]
    policy = load_model(str(folder)).eval()
    expected = logps_in_process(policy, pairs)
    assert max(abs(a - b) for a, b in zip(engine.logps(pairs), expected, strict=True)) <= NATS
    base = logps_in_process(load_model(str(folders["base"])).eval(), pairs)
    assert max(abs(a - b) for a, b in zip(base, expected, strict=True)) > 0.1  # the control
    if engine.has_adapter:
        assert max(abs(a - b) for a, b in zip(engine.base_logps(pairs), base, strict=True)) <= NATS


def test_sampling_repeats_and_has_the_right_distribution(served: tuple[Path, VLLMEngine]) -> None:
    """χ² of 3,000 first tokens; at temperature 2 the same draws would fail by far."""
    folder, engine = served
    context = ids_of("12+34=")
    ask = {"max_new_tokens": 1, "stop_ids": (carry_tokenizer().eos_token_id,)}
    keys = [str(i) for i in range(3000)]
    drawn = [done.ids[0] for done in engine.complete([context] * 3000, keys, Decoding(seed=1, **ask))]
    assert drawn == [done.ids[0] for done in engine.complete([context] * 3000, keys, Decoding(seed=1, **ask))]
    assert drawn != [done.ids[0] for done in engine.complete([context] * 3000, keys, Decoding(seed=2, **ask))]
    with torch.no_grad():
        logits = load_model(str(folder)).eval()(torch.tensor([context])).logits[0, -1].double()
    counts = torch.bincount(torch.tensor(drawn), minlength=len(logits)).double()

    def chi2(temperature: float) -> float:
        expected = 3000 * (logits / temperature).softmax(-1)
        common = expected >= 5
        rest = [counts[~common].sum(), expected[~common].sum().clamp(min=1e-9)]
        return float(((counts - expected)[common] ** 2 / expected[common]).sum() + (rest[0] - rest[1]) ** 2 / rest[1])

    assert chi2(1.0) < 45  # 15 tokens: 14 degrees of freedom at most, p below 1e-4
    assert chi2(2.0) > 200


def test_vllm_serve_answers_like_the_engine_in_process(folders: dict[str, Path], tmp_path: Path) -> None:
    """The endpoint engine against vLLM's own server, the adapter and its base served side by side."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        "base",
    ]
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"adapter={folders['adapter']}"]
    targets = ["--lora-target-modules", "q_proj", "v_proj", "down_proj"]
    # What `vllm serve` starts; that command itself looks for a distribution named vllm, and the CPU build has another.
    vllm = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folders["base"])]
    log = (tmp_path / "server.log").open("wb")
    with subprocess.Popen([*vllm, *flags, *lora, *targets], stdout=log, stderr=log) as server:
        try:
            until_healthy(f"http://127.0.0.1:{port}/health", server, tmp_path / "server.log")
            endpoint = Endpoint(f"http://127.0.0.1:{port}/v1")
            policy, base = (CompletionsEngine(endpoint, name) for name in ("adapter", "base"))
            assert (policy.dialect, policy.max_length) == ("vllm", 64)
            near = Reviser(str(folders["adapter"]))
            far = Reviser(str(folders["adapter"]), engine=policy, scorer=RatioScorer(policy.logps, base.logps))
            ours, theirs = near.revise(PROMPTS, **SETTINGS), far.revise(PROMPTS, **SETTINGS)
            assert not [trail.failed for trail in theirs if trail.failed]
            count = apart(near, ours, theirs)
            assert count.mistakes == 0, count.sentence()
            assert len(count.gaps) <= len(PROMPTS) // 10
            assert unlike(ours, theirs) <= 0.1 * NATS * 2
        finally:
            server.terminate()


def until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for as long as the server lives."""
    while True:
        assert server.poll() is None, log.read_text("utf-8", "replace")[-3000:]
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)  # another process starts; there is nothing of it to wait on
