"""Padded forests: the numbers of unpadded ones, and no new shape for batches of one size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srpo.errors import ConfigError
from srpo.model.packed import head, tiles
from srpo.model.packed.backends import self_check
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS, packed_logps
from srpo.model.packed.spread import watched
from srpo.sequences.tree import PrefixTree
from tests.model.packed.test_forest import scored, scored_by_hand, visible
from tests.model.pictured import pictured_forest
from tests.model.zoo import build, forest_of, random_six

SIZES = (1, 7, 64, 100)  # multiples to pad to: nothing, less than a chain, a block of queries, more than one


def batches(count: int) -> Iterator[list[PrefixTree]]:
    """Batches of two pairs whose lengths differ, but are a few tokens below the same multiples of 128."""
    source = random.Random(0)
    for batch in range(count):
        sizes = [(26 + source.randint(0, 2), 9 + source.randint(0, 2), 7 + source.randint(0, 2)) for _ in range(2)]
        sixes = [random_six(batch * 10 + i, prompt=x, w=w, l=l) for i, (x, w, l) in enumerate(sizes)]
        yield [PrefixTree.pack(six) for six in sixes]


def numbers(
    model: Any, trees: list[PrefixTree], multiple: int | None, layout: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probs, all gradients, and entropies and token counts of the answers."""
    with watched() as spread:
        logps_BK = LAYOUTS[layout](model, Forest.plant(trees, multiple=multiple))
    weights_BK = torch.arange(logps_BK.numel(), dtype=torch.float64).view(logps_BK.shape)
    gradients = torch.autograd.grad((logps_BK * weights_BK).sum(), list(model.parameters()))
    shape = (logps_BK.shape[0], logps_BK.shape[1])
    return logps_BK, torch.cat([g.flatten() for g in gradients]), [spread.tokens(shape), *spread.entropy(shape)]


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("layout", ["path", "flat"])
@pytest.mark.parametrize("window", [None, 5])
def test_padding_changes_no_number(
    window: int | None, layout: str, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILED_ABOVE", 0 if tiled else 2**25)
    monkeypatch.setattr(tiles, "MOST_ROWS", 20)
    model, trees = build("mistral", num_hidden_layers=1, sliding_window=window).train(), forest_of()
    logps_BK, gradients, spread = numbers(model, trees, None, layout)
    for multiple in SIZES:
        ours_BK, ours, ours_spread = numbers(model, trees, multiple, layout)
        assert (ours_BK - logps_BK).abs().max() < 1e-5
        assert (ours - gradients).norm() < 1e-6 * gradients.norm()
        for here, there in zip(ours_spread, spread, strict=True):
            assert torch.allclose(here, there, atol=1e-5)


@pytest.mark.parametrize("multiple", SIZES)
@pytest.mark.parametrize("window", [None, 5])
def test_real_tokens_see_their_paths_alone(multiple: int, window: int | None) -> None:
    trees = forest_of("quote")
    forest = Forest.plant(trees, multiple=multiple)
    tokens, answers = sum(map(len, forest.packed)), scored_by_hand(trees)
    (group,) = forest.groups
    mask_CQK = group.mask(window)[:, 0]
    seen = [
        keys_K[mask_K].tolist() for keys_K, mask_QK in zip(group.keys_CK, mask_CQK, strict=True) for mask_K in mask_QK
    ]
    queries, place = group.queries_CQ.flatten().tolist(), forest.place_S.tolist()
    assert [queries[at] for at in place[:tokens]] == list(range(tokens))
    assert [seen[at] for at in place[:tokens]] == visible(forest.packed, window)
    assert forest.ends_S[tokens:].tolist() == list(range(tokens + 1, len(place) + 1))
    found = scored(forest)
    assert found[: len(answers)] == answers
    assert {owner for _, _, owner in found[len(answers) :]} <= {6 * len(trees)}
    sizes = [forest.ids_1S.shape[1], len(forest.parents_P), len(forest.row_T), group.keys_CK.shape[1]]
    assert [size % multiple for size in sizes] == [0, 0, 0, 0]


def test_control_a_padded_key_that_a_query_sees_changes_the_numbers() -> None:
    model, trees = build("llama", num_hidden_layers=1), forest_of()
    forest = Forest.plant(trees, multiple=64)
    expected_BK = packed_logps(model, forest, backend="path")
    forest.groups[0].mask(None)[..., -1] = True
    assert (packed_logps(model, forest, backend="path") - expected_BK).abs().max() > 1e-3


def test_the_self_check_runs_on_padded_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build("llama", num_hidden_layers=1), []
    plant = Forest.plant.__func__  # type: ignore[attr-defined]

    def planting(cls: Any, *args: Any, **options: Any) -> Forest:
        made: Forest = plant(cls, *args, **options)
        asked.append(made.layout.multiple)
        return made

    monkeypatch.setattr(Forest, "plant", classmethod(planting))
    off, allowed = self_check(model, forest_of(), "path", 64)
    assert off < allowed
    assert asked == [64, None, None, None]  # the packed trees, then each tree in flat rows


# ---------------------------------------------------------------------- shapes


class Shapes(TorchDispatchMode):
    """Records the name of every operation with the shapes and numbers that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(f"{func} {described([args, kwargs or {}])}")
        return func(*args, **(kwargs or {}))


def described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if isinstance(value, dict):
        return {key: described(each) for key, each in value.items()}
    return value


def new_shapes(model: Any, multiple: int | None, layout: str) -> list[int]:
    """The number of operations with new shapes in a step on each of several batches, forward and backward."""
    found = []
    seen: set[str] = set()
    for trees in batches(3):
        forest = Forest.plant(trees, multiple=multiple)
        with Shapes() as shapes, watched():
            LAYOUTS[layout](model, forest).sum().backward()
        found.append(len(shapes.seen - seen))
        seen |= shapes.seen
        model.zero_grad()
    return found


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("layout", ["path", "flat"])
def test_padded_batches_bring_no_new_shape(layout: str, tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "TILED_ABOVE", 0 if tiled else 2**25)
    monkeypatch.setattr(tiles, "MOST_ROWS", 20)
    model = build("llama", num_hidden_layers=1).train()
    first, *later = new_shapes(model, 128, layout)
    assert first > 20
    assert later == [0, 0]
    assert max(new_shapes(model, None, layout)[1:]) > 0  # control: without padding they do


@pytest.mark.sweep
def test_a_compiled_model_is_traced_once_for_each_bucket() -> None:
    traces: list[int] = []

    def counting(graph: Any, examples: Any) -> Callable[..., Any]:
        traces.append(len(traces))
        run: Callable[..., Any] = graph.forward
        return run

    torch._dynamo.reset()
    plain = build("llama", num_hidden_layers=1).train()
    compiled: Any = torch.compile(plain, backend=counting, dynamic=False, fullgraph=True)
    buckets: set[Any] = set()
    for trees in [*batches(3), forest_of(), *batches(2)]:
        forest = Forest.plant(trees, multiple=128)
        buckets.add((forest.ids_1S.shape, forest.groups[0].keys_CK.shape, forest.parents_P.shape))
        logps_BK = packed_logps(compiled, forest, backend="path")
        expected_BK = packed_logps(plain, Forest.plant(trees), backend="path")
        assert (logps_BK - expected_BK).abs().max() < 1e-5
        grads = [torch.autograd.grad(each.sum(), list(plain.parameters())) for each in (logps_BK, expected_BK)]
        ours, theirs = (torch.cat([g.flatten() for g in each]) for each in grads)
        assert (ours - theirs).norm() < 1e-6 * theirs.norm()
        assert len(traces) == len(buckets)
    assert len(buckets) == 2
    torch._dynamo.reset()


def test_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="pad_to_multiple_of: rows with pictures are not padded"):
        Forest.plant(pictured_forest("llava"), multiple=8)
