"""The carry task: sums that are right, mistakes as they are meant, pairs in the right order, a base that learns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srpo import Pair, Renderer
from srpo.errors import ConfigError
from srpo.tasks.carry import (
    ALPHABET,
    TEMPLATE,
    BaseConfig,
    answers,
    carry_tokenizer,
    label,
    operands,
    sums,
    train_base,
    untrained_base,
    with_mistakes,
    write_rows,
)

TINY = BaseConfig(digits=3, hidden=24, layers=1, heads=2, steps=30, batch=32, seed=3)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(digits_ND: torch.Tensor) -> list[int]:
    return [int("".join(map(str, row))) for row in digits_ND.tolist()]


# ---------------------------------------------------------------------- sums


@pytest.mark.parametrize("split", ["in", "out"])
@pytest.mark.parametrize("digits", [1, 2, 5, 8])
def test_answers_equal_python_s_sums(split: str, digits: int) -> None:
    a, b = operands(300, digits, split, source(digits))
    expected = [f"{x + y:0{digits + 1}d}" for x, y in zip(numbers(a), numbers(b), strict=True)]
    assert ["".join(map(str, row)) for row in answers(a, b).tolist()] == expected


@given(st.integers(0, 99_999), st.integers(0, 99_999))
def test_any_sum(x: int, y: int) -> None:
    a, b = (torch.tensor([[int(digit) for digit in f"{number:05d}"]]) for number in (x, y))
    assert numbers(answers(a, b)) == [x + y]


def passing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Share of sums, column by column, where a carry that comes in goes out again and none starts: a + b = 9."""
    return ((a + b) == 9).double().mean(0)


def test_in_distribution_is_uniform() -> None:
    a, b = operands(20_000, 5, "in", source())
    assert (passing(a, b) - 0.1).abs().max() < 0.01
    assert (torch.bincount(a.flatten(), minlength=10) / a.numel() - 0.1).abs().max() < 0.01


def test_out_of_distribution_is_70_percent_nines_with_a_carry_to_pass_on() -> None:
    a, b = operands(20_000, 5, "out", source())
    expected = 0.7 + 0.3 * 0.1  # meant to be nines, and by chance
    assert (passing(a, b)[:-1] - expected).abs().max() < 0.015
    # The last column starts a carry in 70 % of the sums on purpose, and otherwise as the others do: by chance from two
    # uniform digits (45 in 100 start one) in 30 % of the columns.
    starts = ((a + b)[:, -1] >= 10).double().mean().item()
    assert starts == pytest.approx(0.7 + 0.3 * 0.3 * 0.45, abs=0.02)
    assert int(a.min()) == int(b.min()) == 0
    assert int(a.max()) == int(b.max()) == 9


def test_an_unknown_split() -> None:
    with pytest.raises(ConfigError, match="no split 'inn'; expected in or out"):
        operands(1, 2, "inn", source())


def carries_in(a: list[int], b: list[int]) -> list[int]:
    """What comes into each of the answer's digits from the right, on paper."""
    carry, found = 0, []
    for x, y in zip(a[::-1], b[::-1], strict=True):
        found.append(carry)
        carry = (x + y + carry) // 10
    return [carry, *found[::-1]]


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_mistakes_flip_a_carry_and_nothing_else(rate: float) -> None:
    a, b = operands(4_000, 5, "in", source(1))
    right = answers(a, b)
    wrong = with_mistakes(right, a, b, rate, source(2))
    assert torch.equal(wrong[:, -1], right[:, -1])
    flipped = (wrong != right)[:, :-1]
    assert (flipped.double().mean(0) - rate).abs().max() < 0.02
    for x, y, good, bad in zip(a.tolist(), b.tolist(), right.tolist(), wrong.tolist(), strict=True):
        for carry, ours, theirs in zip(carries_in(x, y), good, bad, strict=True):
            assert theirs in (ours, (ours + (-1 if carry else 1)) % 10)


def test_rows_depend_on_the_seed_alone() -> None:
    assert sums(50, "out", seed=4) == sums(50, "out", seed=4)
    rows = {seed: {row["prompt"] for row in sums(2000, split, seed=seed)} for seed in range(4) for split in ("in",)}
    for one, other in itertools.combinations(rows.values(), 2):
        assert not one & other
    for row in sums(50, "in", digits=3, seed=1):
        x, y = row["prompt"].removesuffix("=").split("+")
        assert (len(x), len(y), row["gold"]) == (3, 3, f"{int(x) + int(y):04d}")


# ---------------------------------------------------------------------- tokenizer and template


@given(st.text(ALPHABET, max_size=30))
def test_a_token_per_character_and_back(text: str) -> None:
    tokenizer = carry_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids]


def test_special_tokens_are_apart() -> None:
    tokenizer = carry_tokenizer()
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert special == {len(ALPHABET), len(ALPHABET) + 1, len(ALPHABET) + 2}
    assert len(tokenizer) == len(ALPHABET) + 3


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    carry_tokenizer().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("12+34=?")["input_ids"] == carry_tokenizer()("12+34=?")["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (carry_tokenizer().pad_token_id, carry_tokenizer().eos_token_id)


def test_a_revision_is_asked_for_with_one_mark() -> None:
    renderer = Renderer(carry_tokenizer(), TEMPLATE)
    six = renderer.six(Pair("12+34=", chosen="046", rejected="036"))
    shown = [renderer.tokenizer.decode(context) for context, _ in six]
    assert shown == ["<bos>12+34="] * 2 + ["<bos>12+34=046?"] * 2 + ["<bos>12+34=036?"] * 2


# ---------------------------------------------------------------------- pairs


def test_pairs_are_ordered_by_right_digits_and_ties_are_dropped() -> None:
    rows = [{"prompt": f"{i}=", "gold": "0811"} for i in range(5)]
    # three right digits each, one empty answer, none right at all
    first = ["0811", "0801", "0801", "", "9999"]
    second = ["0801", "0811", "0711", "0811", "7777"]
    assert label(rows, first, second) == [
        {"prompt": "0=", "chosen": "0811", "rejected": "0801", "gold": "0811"},
        {"prompt": "1=", "chosen": "0811", "rejected": "0801", "gold": "0811"},
    ]


def test_rows_on_disk(tmp_path: Path) -> None:
    rows = [{"prompt": "é", "n": 1}, {"prompt": "2", "n": None}]
    write_rows(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""


# ---------------------------------------------------------------------- the base


@pytest.fixture(scope="module")
def trained() -> tuple[list[float], dict[str, torch.Tensor]]:
    return finish(train_base(TINY))


def finish(steps: Iterator[tuple[int, float, torch.nn.Module]]) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = []
    for step, loss, model in steps:
        losses.append(loss)
        assert step == len(losses)
        weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    return losses, weights


def test_training_lowers_the_loss(trained: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    losses, _ = trained
    assert len(losses) == TINY.steps
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_training_depends_on_its_seed_alone(trained: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    torch.manual_seed(12345)  # whatever was drawn before
    losses, weights = finish(train_base(TINY))
    assert losses == trained[0]
    assert all(torch.equal(weight, trained[1][name]) for name, weight in weights.items())
    other = finish(train_base(BaseConfig(**{**vars(TINY), "seed": 4})))
    assert other[0] != trained[0]


def test_the_untrained_base_has_the_configured_shape() -> None:
    model = untrained_base(TINY)
    shape = model.config.hidden_size, model.config.num_hidden_layers, model.config.num_attention_heads
    assert shape == (24, 1, 2)
    assert model.config.vocab_size == len(carry_tokenizer())
    assert model.config.eos_token_id == carry_tokenizer().eos_token_id
