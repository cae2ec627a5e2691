"""Compiled layers: few traces over batches of many shapes, the numbers of uncompiled ones, and no silent fallback."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from srpo.errors import ConfigError
from srpo.model.packed import attention
from srpo.model.packed.forest import Forest
from srpo.model.packed.head import is_compiled
from srpo.model.packed.layouts import packed_logps
from srpo.sequences.tree import PrefixTree
from srpo.train.compiled import compile_layers, staying_compiled
from tests.model.zoo import build, random_six
from tests.train.plain import ROWS, logged, settings, sharp_llama, trainer

MOST = 8  # traces, of policy and reference together


@pytest.fixture(autouse=True)
def _attention_as_it_was() -> Iterator[None]:
    """Compiled layers leave attention uncompiled for the rest of a process; here each test begins without that."""

    def as_written() -> None:
        for name in (attention.NAME, attention.FLEX):
            function = AttentionInterface()[name]
            AttentionInterface.register(name, getattr(function, "_torchdynamo_orig_callable", function))
        torch._dynamo.reset()

    as_written()
    yield
    as_written()


@pytest.fixture
def traces() -> Iterator[list[str]]:
    """The names under which graphs were traced: a back-end that counts and runs them as they are."""
    found: list[str] = []

    def counting(graph: Any, examples: Any) -> Any:
        found.append(str(len(found)))
        return graph.forward

    torch._dynamo.register_backend(counting, name="srpo_counting")
    yield found
    torch._dynamo.backends.registry._COMPILER_FNS.pop("srpo_counting", None)
    torch._dynamo.backends.registry._BACKENDS.pop("srpo_counting", None)


def forests(batches: int) -> Iterator[Forest]:
    """Batches of one to six pairs of random lengths, `turn` and `quote`."""
    source = random.Random(0)
    for batch in range(batches):
        shape, pairs = ("turn", "quote")[batch % 2], source.randint(1, 6)
        sizes = [[source.randint(5, 40), source.randint(1, 12), source.randint(1, 12)] for _ in range(pairs)]
        sixes = [random_six(batch * 10 + i, shape, prompt=x, w=w, l=l) for i, (x, w, l) in enumerate(sizes)]
        yield Forest.plant([PrefixTree.pack(six) for six in sixes])


@pytest.mark.sweep
def test_few_traces_serve_batches_of_many_shapes(traces: list[str], tmp_path: Path) -> None:
    small = {"num_hidden_layers": 1}
    plain = build("llama", **small).train()
    policy, reference = (compile_layers(build("llama", **small), backend="srpo_counting") for _ in range(2))
    policy.train()
    groups = set()
    with staying_compiled(settings(tmp_path, compile_layers=True)):
        for forest in forests(14):
            groups.add(len(forest.groups))
            logps = packed_logps(policy, forest, backend="path")
            with torch.no_grad():
                assert torch.equal(packed_logps(reference, forest, backend="path"), logps)
            expected = packed_logps(plain, forest, backend="path")
            assert (logps - expected).abs().max() < 3e-6
            ours, theirs = (
                torch.cat([g.flatten() for g in torch.autograd.grad(each.sum(), list(model.parameters()))])
                for each, model in ((logps, policy), (expected, plain))
            )
            assert (ours - theirs).norm() < 4e-7 * theirs.norm()
    assert len(groups) >= 4
    assert 1 <= len(traces) <= MOST
    assert not is_compiled(policy)  # its head is still tiled


@pytest.mark.sweep
def test_control_attention_inside_the_graph_is_traced_again_and_again(
    traces: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srpo.train.compiled.leave_attention_uncompiled", lambda: None)
    policy = compile_layers(build("llama", num_hidden_layers=1), backend="srpo_counting")

    def score(batches: int) -> None:
        for forest in forests(batches):
            packed_logps(policy, forest, backend="path")

    problem = r"compile_layers: the batches need more than the limit of \d traces"
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=3):
        with pytest.raises(ConfigError, match=problem), staying_compiled(settings(tmp_path, compile_layers=True)):
            score(14)
        torch._dynamo.reset()
        score(6)  # without the guard the same batches go on uncompiled


@pytest.mark.sweep
def test_training_with_compiled_layers_is_training(traces: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    compile_ = nn.Module.compile

    def counting(self: nn.Module, *args: Any, **options: Any) -> None:
        compile_(self, *args, **{**options, "backend": "srpo_counting"})

    monkeypatch.setattr(nn.Module, "compile", counting)
    losses = []
    for on in (False, True):
        args = {"compile_layers": on, "max_steps": 1, "per_device_train_batch_size": 2}
        made = trainer(tmp_path / str(on), ROWS[:2], model=sharp_llama(num_hidden_layers=1), args=args)
        made.train()
        losses.append(logged(made, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert traces


def test_what_cannot_be_compiled_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Linear has no decoder layers"):
        compile_layers(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="leave one of the two out"):
        settings(tmp_path, compile_layers=True, torch_compile=True)
