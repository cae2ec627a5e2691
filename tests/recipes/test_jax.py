"""The JAX recipe gives srpo's loss and gradients, and its rows hold the six sequences; skips without jax."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srpo import Renderer, SixLogps
from srpo.data.read import Pair
from srpo.maths.objective import srpo_loss
from tests.conftest import make_byte_tokenizer
from tests.recipes.test_recipes import RECIPES
from tests.train.plain import ROWS

jax = pytest.importorskip("jax")
jnp = jax.numpy
spec = importlib.util.spec_from_file_location("srpo_loss", RECIPES / "jax" / "srpo_loss.py")
assert spec is not None
assert spec.loader is not None
recipe: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)

BETA, ALPHA = 0.1, 0.8


def random_six(seed: int) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 3.0


@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 0.8), (0.5, 0.0), (0.01, 1.0)])
def test_losses_and_gradients_are_ours(beta: float, alpha: float) -> None:
    policy, reference = random_six(0).requires_grad_(), random_six(1)
    ours = srpo_loss(SixLogps(*policy), SixLogps(*reference), beta=beta, alpha=alpha)
    ours.loss.backward()

    def mean(six: Any) -> Any:
        theirs = recipe.SixLogps(*jnp.asarray(reference.numpy()))
        return recipe.srpo_loss(recipe.SixLogps(*six), theirs, beta=beta, alpha=alpha).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean))(jnp.asarray(policy.detach().numpy()))
    assert float(value) == pytest.approx(ours.loss.item(), abs=1e-6)
    assert policy.grad is not None
    assert torch.allclose(torch.tensor(gradient.tolist()), policy.grad, atol=1e-6)


def sixes() -> list[Any]:
    renderer = Renderer(make_byte_tokenizer())
    return [renderer.six(Pair(row["prompt"], row["chosen"], row["rejected"])) for row in ROWS[:4]]


def bigrams() -> torch.Tensor:
    """Log-probs [V, V] of a token after the one before it: a model without attention, for both libraries."""
    return torch.randn(300, 300, generator=torch.Generator().manual_seed(2)).log_softmax(-1)


def flat(table: torch.Tensor) -> SixLogps:
    """The six log-probs of each pair, one sequence and one token at a time."""

    def logp(context: Any, answer: Any) -> float:
        ids = [*context, *answer]
        return sum(float(table[ids[i - 1], ids[i]]) for i in range(len(context), len(ids)))

    return SixLogps(*(torch.tensor([logp(*six[k]) for six in sixes()]) for k in range(6)))


def from_rows(table: Any, rows: Any) -> Any:
    """Sums of chosen and of rejected rows, [R] each, as Tunix's compute_logps splits them."""
    sums = []
    for name in ("chosen", "rejected"):
        ids = jnp.concatenate([rows["prompt_ids"], rows[f"{name}_ids"]], axis=1)
        start = rows["prompt_ids"].shape[1]
        logps = table[ids[:, start - 1 : -1], ids[:, start:]]
        sums.append((logps * rows[f"{name}_mask"]).sum(axis=1))
    return tuple(sums)


def test_rows_hold_the_six_sequences() -> None:
    rows = recipe.rows_of(sixes(), prompt_length=96, answer_length=24, pad=0)
    assert {name: array.shape for name, array in rows.items()} == {
        **{f"prompt_{kind}": (12, 96) for kind in ("ids", "mask")},
        **{f"{name}_{kind}": (12, 24) for name in ("chosen", "rejected") for kind in ("ids", "mask")},
    }
    found = recipe.six_of(*from_rows(jnp.asarray(bigrams().numpy()), rows))
    for name, wanted in flat(bigrams())._asdict().items():
        assert getattr(found, name).tolist() == pytest.approx(wanted.tolist(), rel=1e-6), name
    swapped = recipe.six_of(*from_rows(jnp.asarray(bigrams().numpy()), rows)[::-1])  # control
    assert swapped.w.tolist() != pytest.approx(found.w.tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="chosen: 12 tokens, expected at most 9"):
        recipe.rows_of(sixes(), prompt_length=96, answer_length=9, pad=0)


def test_the_loss_for_tunix_is_ours() -> None:
    """With a stand-in for Tunix's example and its compute_logps; Tunix itself is not run."""
    rows = recipe.rows_of(sixes(), prompt_length=96, answer_length=24, pad=0)
    table, other = bigrams(), bigrams().T.log_softmax(-1)
    chosen, rejected = from_rows(jnp.asarray(other.numpy()), rows)
    example = SimpleNamespace(
        **{"input_ids": rows, "positions": 0, "attention_mask": 0, "logits_to_keep": 24, "completion_mask": 0},
        **{"ref_chosen_logps": chosen, "ref_rejected_logps": rejected},
    )
    loss = recipe.tunix_loss(lambda model, rows, *rest: from_rows(model, rows), beta=BETA, alpha=ALPHA)
    value, measured = loss(jnp.asarray(table.numpy()), example)
    ours = srpo_loss(flat(table), flat(other), beta=BETA, alpha=ALPHA)
    assert float(value) == pytest.approx(ours.loss.item(), rel=1e-5)
    margin = BETA * (flat(table).w - flat(other).w - flat(table).l + flat(other).l)
    assert float(measured["rewards/margin"]) == pytest.approx(float(margin.mean()), rel=1e-5)
