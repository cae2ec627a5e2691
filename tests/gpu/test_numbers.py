"""On a GPU, where kernels are others than on a CPU: the same log-probs, gradients and tokens; nothing of size S×S."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from srpo.errors import BackendError
from srpo.generate.engine import Decoding
from srpo.generate.plain import HFEngine
from srpo.generate.speculative import SpeculativeEngine
from srpo.model.packed import flex, fused, head
from srpo.model.packed.backends import TOLERANCE, self_check
from srpo.model.packed.flex import SMALLEST_HEAD
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import SERVED, VOCAB, build, forest_of, plain_logps, random_six

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PACKED = ["path", "flex"]
BACKENDS = [*PACKED, "flat"]
FAMILIES = ["llama", "llama without GQA", "qwen3", "mistral, window", "gemma3, mixed windows"]


def model_of(name: str, **more: Any) -> Any:
    model_type, settings = SERVED[name]
    return build(model_type, **{**settings, "max_position_embeddings": 4096, "head_dim": SMALLEST_HEAD, **more})


def forests() -> list[list[PrefixTree]]:
    """Short trees, and trees of several blocks of 128 tokens."""
    sizes = [(300, 40, 60), (9, 5, 7), (150, 130, 20)]
    long = [random_six(n, "quote", prompt=x, w=w, l=l) for n, (x, w, l) in enumerate(sizes)]
    return [forest_of("turn"), [PrefixTree.pack(six) for six in long]]


def gradients(model: Any, logps_BK: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1.5, logps_BK.numel(), dtype=logps_BK.dtype, device=logps_BK.device)
    found = torch.autograd.grad((weights.view_as(logps_BK) * logps_BK).sum(), list(model.parameters()))
    return [gradient.double().cpu() for gradient in found]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Relative distance of two gradients, all weights as one vector."""
    off = sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True))
    return float((off / sum(b.square().sum() for b in theirs)).sqrt())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_float32(name: str, backend: str) -> None:
    exact, model = model_of(name).double(), model_of(name).cuda()
    for trees in forests():
        plain = plain_logps(exact, trees)
        logps = sequence_logps(model, trees, backend)
        assert (logps.cpu() - plain).abs().max() < 2e-3
        assert apart(gradients(model, logps), gradients(exact, plain)) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", [SMALLEST_HEAD, 64, 80, 128])
def test_bfloat16(head_dim: int, backend: str) -> None:
    exact = model_of("llama", head_dim=head_dim).bfloat16()
    model = copy.deepcopy(exact).cuda()
    for trees in forests():
        logps, plain = sequence_logps(model, trees, backend), plain_logps(exact.double(), trees)
        allowed = TOLERANCE[torch.bfloat16] * max(len(answer) for tree in trees for _, answer in tree.unpack()) ** 0.5
        assert (logps.cpu() - plain).abs().max() < allowed
        assert apart(gradients(model, logps), gradients(exact, plain)) < 0.1
        off, _ = self_check(model, trees, "path" if backend == "flat" else backend)
        assert off < allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_heads_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from srpo.model.packed import fused_kernels

    calls = []

    def noting(name: str) -> None:
        whole = getattr(fused_kernels, name)
        monkeypatch.setattr(fused_kernels, name, lambda *args: (calls.append(name), whole(*args))[1])

    assert fused.serves(torch.device("cuda"), dtype)  # a first run of its own, before calls are counted
    noting("norms")
    noting("slopes")
    exact = model_of("llama").to(dtype)
    model, exact = copy.deepcopy(exact).cuda(), exact.double()
    coarse = dtype == torch.bfloat16
    for trees in forests():
        for above, launched in ((2**60, set()), (0, {"norms", "slopes"})):  # whole logits, then tiles
            calls.clear()
            monkeypatch.setattr(head, "TILED_ABOVE", above)
            logps, plain = sequence_logps(model, trees, "path"), plain_logps(exact, trees)
            longest = max(len(answer) for tree in trees for _, answer in tree.unpack())
            assert (logps.cpu() - plain).abs().max() < (TOLERANCE[dtype] * longest**0.5 if coarse else 2e-3)
            assert apart(gradients(model, logps), gradients(exact, plain)) < (0.1 if coarse else 1e-4)
            assert {*calls} == launched


def test_heads_too_small_for_flex() -> None:
    model = model_of("llama", head_dim=8).cuda()
    with pytest.raises(BackendError, match="FlexAttention cannot serve this model: its heads are of size 8"):
        sequence_logps(model, forests()[0], "flex")


@pytest.mark.parametrize("name", ["llama", "gemma3, mixed windows"])
def test_kernels_are_compiled_a_few_times_and_not_for_every_batch(name: str) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    flex._compiled.clear()
    model = model_of(name).cuda()
    for n in range(12):
        trees = [PrefixTree.pack(random_six(n, prompt=40 + 37 * n, w=10 + 7 * n, l=9 + 5 * n))] * (1 + n % 3)
        sequence_logps(model, trees, "flex").sum().backward()
        if n == 5:
            known = counters["stats"]["unique_graphs"]
    print("graphs", counters["stats"]["unique_graphs"], dict(counters["frames"]))
    assert counters["stats"]["unique_graphs"] == known <= 8


@pytest.mark.parametrize("backend", PACKED)
def test_no_tensor_is_tokens_by_tokens(backend: str) -> None:
    model = model_of("llama", head_dim=64).bfloat16().cuda()
    trees = [PrefixTree.pack(random_six(n, prompt=1024, w=128, l=128)) for n in range(16)]
    forest = Forest.plant(trees, "cuda")
    tokens = forest.ids_1S.shape[1]
    square = 2 * tokens**2  # bytes of one head's scores
    sequence_logps(model, forest, backend).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sequence_logps(model, forest, backend).sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    print(backend, tokens, "tokens", used / 2**20, "MiB, a square takes", square / 2**20)
    assert used < square


def test_cache_scores() -> None:
    exact, model = model_of("llama").double(), model_of("llama").cuda()
    for trees in forests():
        with torch.no_grad():
            off = sequence_logps(model, trees, "cache").cpu() - plain_logps(exact, trees)
        assert off.abs().max() < 2e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_revisions_are_what_plain_decoding_writes(temperature: float) -> None:
    model = model_of("llama").cuda()
    source = torch.Generator().manual_seed(0)
    contexts = [torch.randint(3, VOCAB, (n,), generator=source).tolist() for n in (9, 30, 17)]
    plain, live = HFEngine(model, pad_id=0), SpeculativeEngine(model, pad_id=0)
    how = Decoding(40, (2,), temperature)
    for _ in range(3):
        wanted = [each.ids for each in plain.complete(contexts, ["a", "b", "c"], how)]
        guesses = [[*ids[:-3], 5, 6, 7] for ids in wanted]
        for hint in (None, guesses):
            found = live.complete(contexts, ["a", "b", "c"], how, guesses=hint)
            assert [each.ids for each in found] == wanted
        contexts = [[*context, *ids, 4] for context, ids in zip(contexts, wanted, strict=True)]
    assert live.serves
