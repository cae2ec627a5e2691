"""Pictures in packed batches: equal to one forward per sequence, given to the model once, refused where unserved."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.errors import BackendError, DataError
from srpo.model.packed.backends import self_check, settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS
from srpo.model.packed.pictures import FAMILIES, occurrences, packed_inputs
from srpo.sequences.picture_inputs import PictureInputs
from srpo.sequences.tree import PrefixTree, merge_prompts
from tests.model.pictured import IMAGE, KINDS, build, picture, pictured_forest, pictured_tree, plain_logps
from tests.model.zoo import build as build_text
from tests.model.zoo import exact_casts, forest_of


def gradient(model: nn.Module, logps: Tensor) -> Tensor:
    """The gradient of an uneven sum of log-probs with respect to the language model's weights."""
    model.zero_grad()
    (logps * torch.arange(1, logps.numel() + 1).view_as(logps)).sum().backward()
    reached = (p for name, p in model.named_parameters() if "vis" not in name and p.grad is not None)
    return torch.cat([p.grad.flatten() for p in reached])


# kind → layouts that serve it; tokens of Gemma's pictures see later ones
SERVING = {kind: ["path", "flat"] for kind in KINDS} | {"gemma3": ["flat"]}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_flat_equal_one_forward_per_sequence(kind: str) -> None:
    model, trees = build(kind), pictured_forest(kind)
    forest = Forest.plant(trees)
    with torch.no_grad():
        plain = plain_logps(model, trees)
        assert plain.std(1).min() > 0.1
        for backend in [*SERVING[kind], *["flex"] * (kind == "qwen3_vl")]:
            torch.testing.assert_close(LAYOUTS[backend](model, forest), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_in_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trees = build(kind).double(), pictured_forest(kind)[:2]
    exact_casts(model, monkeypatch)
    forest = Forest.plant(trees)
    plain = plain_logps(model, trees)
    wanted = gradient(model, plain)
    for backend in SERVING[kind]:
        logps = LAYOUTS[backend](model, forest)
        torch.testing.assert_close(logps, plain, rtol=0, atol=2e-5)
        assert (gradient(model, logps) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("order", [[0, 2, 1], [1, 0, 2], [0, 0, 0]])
def test_control_a_wrong_axis_of_positions_shows(order: list[int]) -> None:
    model, trees = build("qwen2_5_vl"), pictured_forest("qwen2_5_vl")

    def turned(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = kwargs.get("position_ids")
        return args, kwargs if positions is None else {**kwargs, "position_ids": positions[order]}

    off, allowed = self_check(model, trees)
    assert off < allowed
    model.register_forward_pre_hook(turned, with_kwargs=True)
    off, allowed = self_check(model, trees)
    assert off > 10 * allowed


def test_control_depth_as_position_shows() -> None:
    model, trees = build("qwen3_vl"), pictured_forest("qwen3_vl")

    def by_depth(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        forest = kwargs.get("srpo_forest")
        return args, kwargs if forest is None else {**kwargs, "position_ids": forest.positions_1S}

    model.register_forward_pre_hook(by_depth, with_kwargs=True)
    off, allowed = self_check(model, trees)
    assert off > 10 * allowed


def test_a_picture_in_the_trunk_is_given_once() -> None:
    model = build("qwen2_5_vl")
    one, wide = picture("qwen2_5_vl", 1), picture("qwen2_5_vl", 2, wide=8)
    turn, paper = pictured_tree([one, wide], 0), pictured_tree([one], 0, "paper")
    assert occurrences(turn) == [0, 1]
    assert occurrences(paper) == [0, 0]  # after the prompt of drafts, and after the first words of revisions
    assert turn.ids.count(IMAGE) == one.count + wide.count
    inputs = packed_inputs(model, Forest.plant([turn]))
    assert torch.equal(inputs["pixel_values"], torch.cat([one.tensors["pixel_values"], wide.tensors["pixel_values"]]))
    assert inputs["position_ids"].shape == (3, 1, len(turn))


def test_prompts_of_equal_ids_and_other_pictures_are_not_merged() -> None:
    kind = "qwen2_5_vl"
    trees = [pictured_tree([picture(kind, seed)], 0) for seed in (1, 2, 1)]
    assert trees[0].ids == trees[1].ids
    assert trees[0].content == trees[2].content != trees[1].content
    merged, members = merge_prompts(trees)
    assert members == [[0, 2], [1]]
    assert [tree.pictures for tree in merged] == [trees[0].pictures, trees[1].pictures]
    model = build(kind)
    with torch.no_grad():
        logps = LAYOUTS["path"](model, Forest.plant(trees))
        torch.testing.assert_close(logps, plain_logps(model, trees), rtol=0, atol=1e-4)
    torch.testing.assert_close(logps[0], logps[2], rtol=0, atol=1e-5)
    assert (logps[0] - logps[1]).abs().max() > 0.1


def test_a_model_is_checked_again_at_its_first_pictures(caplog: pytest.LogCaptureFixture) -> None:
    model = build("qwen2_5_vl")
    with caplog.at_level(logging.INFO, "srpo"):
        for trees in (forest_of(), pictured_forest("qwen2_5_vl"), forest_of()):
            assert settle_backend(model, trees, "auto") == "path"
    assert sum("within" in record.getMessage() for record in caplog.records) == 2


def test_models_without_a_known_tower_and_the_cache_tree_refuse_pictures() -> None:
    trees = pictured_forest("qwen2_5_vl")
    for backend in ("auto", "flat", "path"):
        with pytest.raises(BackendError, match="models of type 'llama' are given no pictures"):
            settle_backend(build_text("llama"), trees, backend)
    with pytest.raises(BackendError, match="does not place pictures"), torch.no_grad():
        settle_backend(build("qwen2_5_vl"), trees, "cache")
    assert set(KINDS) <= set(FAMILIES)


def test_pictures_whose_tokens_see_later_ones_fall_to_flat_rows_aloud(caplog: pytest.LogCaptureFixture) -> None:
    model, trees = build("gemma3"), pictured_forest("gemma3")
    assert settle_backend(model, trees, "auto") == "flat"
    why = "cannot serve this model: tokens of a picture see later ones of the same picture"
    assert any(f"backend flat: path attention {why}" in record.getMessage() for record in caplog.records)
    with pytest.raises(BackendError, match=why):
        settle_backend(model, trees, "path")
    text = [tree for tree in trees if not tree.pictures]
    assert settle_backend(model, text, "auto") == "path"  # without pictures its prefixes are shared
    off, allowed = self_check(model, trees, "path")
    assert off > 10 * allowed  # the control: packed all the same


@pytest.mark.parametrize("kind", KINDS)
def test_control_exchanged_pictures_show(kind: str) -> None:
    model = build(kind)
    trees = [pictured_tree([picture(kind, seed)], 0) for seed in (1, 2)]
    other = [pictured_tree([picture(kind, seed)], 0) for seed in (2, 1)]
    with torch.no_grad():
        plain = plain_logps(model, trees)
        for backend in SERVING[kind]:
            torch.testing.assert_close(LAYOUTS[backend](model, Forest.plant(trees)), plain, rtol=0, atol=1e-4)
            assert (LAYOUTS[backend](model, Forest.plant(other)) - plain).abs().max() > 0.01


def test_a_sequence_without_its_picture_is_an_error() -> None:
    one = picture("qwen2_5_vl", 1)
    tree = pictured_tree([one], 0)
    longer = PrefixTree(tree.ids, tree.chains, tree.answers, (PictureInputs(b"", IMAGE, one.count + 1),))
    with pytest.raises(DataError, match="has 4 image tokens and its pictures fill 5"):
        occurrences(longer)
