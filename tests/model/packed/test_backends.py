"""FlexAttention and the cache tree: what they see, what they give, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from srpo.errors import BackendError
from srpo.model.packed import backends, cache_tree
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.cache_tree import segments
from srpo.model.packed.flex import BLOCK, tree_block_mask
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.layouts import packed_logps
from srpo.sequences.tree import PrefixTree
from tests.conftest import make_tiny_llama
from tests.model.zoo import REFUSED, SERVED, WINDOW, build, forest_of, plain_logps, random_six

# Families whose layers carry a state; all of them are refused by path attention.
STATEFUL = ["qwen3_next", "lfm2"]


def model_of(name: str) -> Any:
    model_type, settings = (SERVED | {name: case[:2] for name, case in REFUSED.items()})[name]
    return build(model_type, **settings)


def visible(forest: Forest, window: int | None) -> Tensor:
    """[S, S] the second implementation: token q sees k when k is on the path of q, within the window."""
    tokens = forest.ids_1S.shape[1]
    seen_SS = torch.zeros(tokens, tokens, dtype=torch.bool)
    offset = 0
    for tree in forest.packed:
        for node in range(len(tree)):
            path = tree.path(node)
            seen_SS[offset + node, [offset + k for k in path[-(window or len(path)) :]]] = True
        offset += len(tree)
    return seen_SS


def long_forest() -> Forest:
    """A few hundred tokens: blocks of every kind."""
    sizes = [(300, 40, 60), (9, 5, 7), (150, 130, 20)]
    six = [random_six(n, shape, prompt=x, w=w, l=l) for shape in ("turn", "paper") for n, (x, w, l) in enumerate(sizes)]
    return Forest.plant([PrefixTree.pack(each) for each in six])


@pytest.mark.parametrize("window", [None, WINDOW, 200])
class TestBlockMask:
    def test_every_bit(self, window: int | None) -> None:
        forest = long_forest()
        mask, seen_SS = tree_block_mask(forest, window), visible(forest, window)
        index = torch.arange(len(seen_SS))
        bits_SS = mask.mask_mod(torch.tensor(0), torch.tensor(0), index[:, None], index[None, :])
        assert torch.equal(bits_SS, seen_SS)

    def test_blocks_are_empty_full_or_mixed_as_they_say(self, window: int | None) -> None:
        forest = long_forest()
        mask, seen_SS = tree_block_mask(forest, window), visible(forest, window)
        kinds = {"full": 0, "mixed": 0, "empty": 0}
        blocks = -(-len(seen_SS) // BLOCK)
        for q in range(blocks):
            mixed = set(mask.kv_indices[0, 0, q, : mask.kv_num_blocks[0, 0, q]].tolist())
            full = set(mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]].tolist())
            assert not mixed & full
            for k in range(blocks):
                bits = seen_SS[q * BLOCK : (q + 1) * BLOCK, k * BLOCK : (k + 1) * BLOCK]
                kind = "full" if k in full else "mixed" if k in mixed else "empty"
                kinds[kind] += 1
                assert {"full": bits.all(), "mixed": True, "empty": not bits.any()}[kind]
        assert kinds["empty"] > blocks * (blocks - 1) / 2  # more than the upper triangle: branches are skipped
        assert kinds["full"] or window is not None


def test_flex_scores_what_path_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    # Plain Python instead of a compiled kernel, which takes half a minute to make.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    forest, model = Forest.plant([PrefixTree.pack(random_six(0, prompt=140))]), model_of("gemma3, mixed windows")
    with torch.no_grad():
        off = packed_logps(model, forest, backend="flex") - packed_logps(model, forest, backend="path")
    assert off.abs().max() < 1e-4


def test_flex_does_not_train_on_a_cpu() -> None:
    with pytest.raises(BackendError, match="FlexAttention cannot serve this model: it has no backward pass on a CPU"):
        sequence_logps(model_of("llama"), forest_of(), "flex")


# ---------------------------------------------------------------------- the cache tree


@pytest.mark.parametrize("shape", ["turn", "quote", "paper"])
@pytest.mark.parametrize("name", [*STATEFUL, "llama", "mistral, window", "gemma2"])
def test_the_cache_tree_scores_what_plain_rows_score(name: str, shape: str) -> None:
    model, trees = model_of(name), forest_of(shape)
    with torch.no_grad():
        assert (sequence_logps(model, trees, "cache") - plain_logps(model, trees)).abs().max() < 1e-4


@pytest.mark.parametrize("name", STATEFUL)
def test_control_a_cache_that_branches_share(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trees = model_of(name), forest_of()
    monkeypatch.setattr(cache_tree.copy, "deepcopy", lambda cache: cache)
    with torch.no_grad(), pytest.raises(BackendError, match=r"differ from flat ones by [\d.]+ nats"):
        sequence_logps(model, trees, "cache")


def test_the_cache_tree_does_not_train() -> None:
    model = model_of("lfm2")
    with torch.no_grad():
        assert settle_backend(model, forest_of(), "cache") == "cache"
    with pytest.raises(BackendError, match="it has no backward pass, and serves scoring alone"):
        sequence_logps(model, forest_of(), "cache")  # settled or not


def test_a_state_outside_past_key_values_is_refused() -> None:
    model = build("mamba", hidden_size=32, state_size=4, num_hidden_layers=1)
    with torch.no_grad(), pytest.raises(BackendError, match="its state does not pass through past_key_values"):
        sequence_logps(model, forest_of(), "cache")


def test_segments_cover_the_tree_once_and_start_at_branchings() -> None:
    for shape in ("turn", "quote", "paper"):
        for tree in forest_of(shape):
            found = segments(tree)
            assert [node for start, stop, _ in found for node in range(start, stop)] == list(range(len(tree)))
            for n, (start, stop, parent) in enumerate(found):
                assert parent < n
                before = tree.path(stop - 1)[: -(stop - start)]
                assert before == (tree.path(found[parent][1] - 1) if parent >= 0 else [])


# ---------------------------------------------------------------------- the line of the check


def test_the_check_says_what_it_does_and_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter([100.0, 126.4])
    monkeypatch.setattr(backends, "monotonic", lambda: next(seconds))
    shown: list[str] = []
    monkeypatch.setattr(backends, "remark_detail", shown.append)
    model, trees = make_tiny_llama(), forest_of()
    with caplog.at_level("INFO", logger="srpo"), torch.no_grad():
        assert settle_backend(model, trees, "auto") == "path"
        assert settle_backend(model, trees, "auto") == "path"  # a second call checks nothing, and so logs nothing
        assert settle_backend(make_tiny_llama(), trees, "flat") == "flat"  # control: nothing to compare
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("srpo: backend path: packed log-probs within ")
    assert line.endswith(" nats of flat ones on the first batch; the check took 26.4 s")
    assert shown == ["comparing packed log-probs with those of separate sequences", ""]


# ---------------------------------------------------------------------- refused by all


def test_an_encoder_with_a_decoder_is_refused_by_name() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    tiny = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    for backend in ("auto", "flat", "path", "cache"):
        with (
            torch.no_grad(),
            pytest.raises(BackendError, match="T5ForConditionalGeneration: an encoder with a decoder"),
        ):
            sequence_logps(T5ForConditionalGeneration(tiny), forest_of(), backend)
