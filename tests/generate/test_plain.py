"""Completions by `generate`: draws from the model whatever the batch, and the greedy answers of transformers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from srpo.errors import ConfigError
from srpo.generate import plain, speculative
from srpo.generate.engine import Completion, Decoding
from srpo.generate.plain import HFEngine
from srpo.generate.sampling import choose, inverse_sample, uniforms
from srpo.generate.speculative import SpeculativeEngine
from tests.conftest import EOS, PAD, make_tiny_llama
from tests.model.zoo import SERVED, build

CONTEXTS = [
    [65],
    [66, 67, 68],
    [70, 71],
    [65, 66, 67, 68, 69, 70, 71, 72, 73],
    [65],
    [90, 91, 92, 93],
    [1, 2],
    [7] * 20,
]
KEYS = [f"row {i}" for i in range(len(CONTEXTS))]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_tiny_llama(initializer_range=0.3)


def complete(model: Any, contexts: Any = CONTEXTS, keys: Any = KEYS, **options: Any) -> list[Completion]:
    engine = HFEngine(model, pad_id=PAD, batch_size=options.pop("batch_size", 32))
    return engine.complete(contexts, keys, Decoding(**{"max_new_tokens": 12, "stop_ids": (EOS,), **options}))


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


@torch.no_grad()
def next_logits(model: Any, context: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([context])).logits[0, -1].double()
    return logits


def by_hand(model: Any, context: list[int], key: str, *, temperature: float, seed: int, tokens: int) -> list[int]:
    """One row, one token at a time, without a cache: walk down the distribution until the number is used up."""
    written: list[int] = []
    for uniform in uniforms(seed, key, tokens).tolist():
        logits = next_logits(model, context + written)
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token, left = -1, uniform
            for share in (logits / temperature).softmax(-1).tolist():
                token += 1
                left -= share
                if left < 0:
                    break
        written.append(token)
        if token == EOS:
            break
    return written


# ---------------------------------------------------------------------- inverse sampling


def walked(probabilities: list[float], uniform: float) -> int:
    """The plain way: add up until the sum passes the number."""
    total, reach = 0.0, uniform * math.fsum(probabilities)
    for token, share in enumerate(probabilities):
        total += share
        if total > reach:
            return token
    return max(token for token, share in enumerate(probabilities) if share > 0)


@pytest.mark.parametrize("seed", range(4))
def test_inverse_sampling_equals_a_walk_over_the_sums(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    weights = torch.rand(200, 9, generator=source, dtype=torch.float64)
    weights[torch.rand(200, 9, generator=source) < 0.4] = 0.0
    weights[:, seed] += 0.01
    probabilities = weights / weights.sum(1, keepdim=True)
    uniform = torch.rand(200, generator=source, dtype=torch.float64)
    expected = [walked(p, u) for p, u in zip(probabilities.tolist(), uniform.tolist(), strict=True)]
    assert inverse_sample(probabilities, uniform).tolist() == expected
    # Control: other numbers fall on other tokens.
    assert inverse_sample(probabilities, 1 - uniform).tolist() != expected


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("total", [1.0, 1 - 2.0**-52, 1 + 2.0**-52, 1 + 2.0**-51])
def test_inverse_sampling_never_selects_probability_zero(uniform: float, total: float) -> None:
    probabilities = torch.tensor([[0.0, total / 4, 0.0, total - total / 4, 0.0, 0.0]], dtype=torch.float64)
    assert probabilities.sum() == total
    taken = inverse_sample(probabilities, torch.tensor([uniform], dtype=torch.float64)).item()
    assert taken == (1 if uniform < 0.25 else 3)


def test_uniform_numbers_depend_on_seed_and_key_only() -> None:
    assert torch.equal(uniforms(3, "a", 5), uniforms(3, "a", 9)[:5])
    different = {tuple(uniforms(seed, key, 5).tolist()) for seed in (0, 1) for key in ("a", "b", "a/0")}
    assert len(different) == 6
    numbers = uniforms(0, "many", 20_000)
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert abs(numbers.mean().item() - 0.5) < 0.01


def chi_squared(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_first_tokens_follow_the_model_s_distribution(model: Any) -> None:
    rows = 4000
    drawn = complete(
        model, [[65]] * rows, [str(i) for i in range(rows)], max_new_tokens=1, temperature=0.7, batch_size=1000
    )
    counts = torch.bincount(torch.tensor([tokens[0] for tokens in ids(drawn)]), minlength=259).double()
    logits = next_logits(model, [65])
    order = logits.argsort(descending=True)
    bins = [order[i : i + 1] for i in range(20)] + [order[20:60], order[60:]]

    def binned(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values[tokens].sum() for tokens in bins])

    found = chi_squared(binned(counts), rows * binned((logits / 0.7).softmax(-1)))
    assert found < 46.8  # the 99.9 % quantile of χ² with 21 degrees of freedom
    # Control: at another temperature the same draws are impossible.
    assert chi_squared(binned(counts), rows * binned(logits.softmax(-1))) > 200


# ---------------------------------------------------------------------- completions


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_a_completion_equals_a_loop_written_out(model: Any, temperature: float) -> None:
    done = complete(model, temperature=temperature, seed=5)
    for completion, context, key in zip(done, CONTEXTS, KEYS, strict=True):
        plain = by_hand(model, context, key, temperature=temperature, seed=5, tokens=12)
        assert list(completion.ids) == plain
        assert completion.finished == (plain[-1] == EOS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_does_not_depend_on_its_batch(model: Any, temperature: float) -> None:
    alone = ids(complete(model, temperature=temperature, batch_size=1))
    for size in (3, 8):
        assert ids(complete(model, temperature=temperature, batch_size=size)) == alone
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    turned = complete(
        model, [CONTEXTS[i] for i in order], [KEYS[i] for i in order], temperature=temperature, batch_size=3
    )
    assert ids(turned) == [alone[i] for i in order]
    # Rows 0 and 4 have one context: their keys tell them apart, unless nothing is drawn.
    assert (alone[0] == alone[4]) == (temperature == 0)
    # Control: another seed draws otherwise, and decides nothing under greedy decoding.
    assert (ids(complete(model, temperature=temperature, seed=1)) == alone) == (temperature == 0)


def test_greedy_decoding_equals_that_of_transformers(model: Any) -> None:
    for completion, context in zip(complete(model, temperature=0.0), CONTEXTS, strict=True):
        out = model.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        assert list(completion.ids) == out[0, len(context) :].tolist()


@pytest.mark.parametrize(
    "brought_along",
    [
        {"do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.3, "min_p": 0.2},
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(0, 259, 2))},
        {"begin_suppress_tokens": list(range(1, 259, 2)), "min_new_tokens": 12},
        {"bad_words_ids": [[i] for i in range(60, 100)]},
        {"forced_eos_token_id": 3, "min_length": 40},
        {"exponential_decay_length_penalty": (1, 3.0)},
        {"num_beams": 3},
        {"max_length": 4, "max_time": 0.0},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_s_generation_defaults_are_ignored(
    model: Any, temperature: float, brought_along: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [*CONTEXTS, [EOS - 1, 65]]
    keys = [*KEYS, "last"]
    expected = ids(complete(model, contexts, keys, temperature=temperature))
    for name, value in brought_along.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert ids(complete(model, contexts, keys, temperature=temperature)) == expected


def test_a_stop_id_ends_a_completion_and_is_part_of_it(model: Any) -> None:
    free = complete(model, temperature=1.0, stop_ids=[EOS])
    stop = [free[0].ids[3], free[1].ids[5]]
    stopped = complete(model, temperature=1.0, stop_ids=stop)
    assert any(completion.finished for completion in stopped)
    for short, long in zip(stopped, free, strict=True):
        at = [i for i, token in enumerate(long.ids) if token in stop]
        if at:
            assert short.ids == long.ids[: at[0] + 1]
            assert short.finished
    assert stopped[0].ids[-1] in stop


@pytest.mark.parametrize("tokens", [1, 4])
def test_max_new_tokens_limits_the_answer(model: Any, tokens: int) -> None:
    done = complete(model, max_new_tokens=tokens, stop_ids=[PAD])
    longer = complete(model, max_new_tokens=tokens + 3, stop_ids=[PAD])
    assert [len(completion.ids) for completion in done] == [tokens] * len(CONTEXTS)
    assert not any(completion.finished for completion in done)
    assert ids(done) == [completion.ids[:tokens] for completion in longer]
    assert all(completion.seconds > 0 for completion in done)


def test_no_contexts_give_no_completions(model: Any) -> None:
    assert complete(model, [], []) == []


@pytest.mark.parametrize("temperature", [-0.5, math.nan, math.inf])
def test_an_invalid_temperature_is_rejected(model: Any, temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"temperature: .*expected 0 \(greedy\) or more"):
        complete(model, temperature=temperature)


def test_an_answer_without_a_token_is_rejected(model: Any) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens: 0; expected at least 1"):
        complete(model, max_new_tokens=0)


def test_an_invalid_batch_size_is_rejected(model: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size: 0; expected at least 1"):
        HFEngine(model, pad_id=PAD, batch_size=0)


@pytest.mark.parametrize("temperature", [1e-4, 1e-8, 1e-40, 1e-320])
def test_near_zero_temperatures_select_the_most_probable_token(temperature: float) -> None:
    logits = torch.tensor([[3.0, 80.0, -2.0, 79.0], [-50.0, -60.0, -50.5, float("-inf")]])
    for number in (0.0, 0.5, 0.999999):
        assert choose(logits, torch.full((2,), number, dtype=torch.float64), temperature).tolist() == [1, 0]
    if temperature < 1e-38:  # control: the plain quotient overflows
        assert (logits / temperature).double().softmax(-1).isnan().any()


@pytest.mark.parametrize("kind", [HFEngine, SpeculativeEngine])
@pytest.mark.parametrize("family", ["llama tied", "gemma3, mixed windows", "phi3", "granite"])
def test_no_linear_layer_reads_strided_states(
    kind: type[HFEngine], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strided input and a frozen weight make torch copy the weight for every row of the batch."""

    def strided_layers() -> set[str]:
        model_type, settings = SERVED[family]
        model, found = build(model_type, **settings), set[str]()
        names = {module: name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}

        def look(module: torch.nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
            if not inputs[0].is_contiguous():
                found.add(names[module])

        for module in names:
            module.register_forward_hook(look)
        engine = kind(model, pad_id=0)
        how = Decoding(5, (2,), 0.0)
        drafts = engine.complete([[5, 6, 7, 8, 9], [7, 8]], ["a", "b"], how)
        contexts = [[5, 6, 7, 8, 9, *drafts[0].ids, 3], [7, 8, *drafts[1].ids, 3]]
        engine.complete(contexts, ["a", "b"], how, guesses=[list(draft.ids) for draft in drafts])
        return found

    assert strided_layers() == set()
    for module in (plain, speculative):  # control
        monkeypatch.setattr(module, "contiguous_head", lambda _: nullcontext())
    assert strided_layers() == {"lm_head"}
