"""The loss that balances experts: the model's own weight, its value by hand, its gradient, and no effect elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.errors import ConfigError
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import packed_logps
from srpo.train.added_terms import Balance, balance_losses, balance_of
from tests.model.zoo import forest_of
from tests.train.plain import ROWS, logged, sharp_llama, trainer
from tests.train.test_adapter_settings import experts


def by_hand(model: Any, forest: Forest) -> float:
    """Number of experts · Σ over experts of (share of choices · mean probability), token by token."""
    config, probabilities = model.config, []
    gate = model.model.layers[0].mlp.gate
    watch = gate.register_forward_hook(lambda _m, inputs, _o: probabilities.append(inputs[0] @ gate.weight.T))
    with torch.no_grad():
        packed_logps(model, forest, backend="path")
    watch.remove()
    chosen, mass = [0.0] * config.num_experts, [0.0] * config.num_experts
    rows = probabilities[0].reshape(-1, config.num_experts).softmax(-1)
    for row in rows:
        for expert in row.topk(config.num_experts_per_tok).indices.tolist():
            chosen[expert] += 1 / len(rows)
        for expert, share in enumerate(row.tolist()):
            mass[expert] += share / len(rows)
    return config.num_experts * sum(c * m for c, m in zip(chosen, mass, strict=True))


def test_the_balance_loss_by_hand_and_its_gradient() -> None:
    model, forest = experts(), Forest.plant(forest_of())
    with balance_losses(model, Balance(0.5)) as found:
        packed_logps(model, forest, backend="path")
    assert [float(each) for each in found] == [pytest.approx(0.5 * by_hand(model, forest), rel=1e-4)]
    found[0].backward()
    gradient = model.model.layers[0].mlp.gate.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    with torch.no_grad(), balance_losses(model, Balance(0.5)) as found:  # as the evaluation and the reference
        packed_logps(model, forest, backend="path")
    assert found == []
    assert not model.config.output_router_logits


def test_weights() -> None:
    model = experts()
    assert balance_of(model, None) == (model.config.router_aux_loss_coef, False) == (0.001, False)
    assert (balance_of(model, 0.0).weight, balance_of(model, 0.25)) == (0.0, (0.25, True))
    assert balance_of(sharp_llama(num_hidden_layers=1), None).weight == 0.0
    with pytest.raises(ConfigError, match=r"router_aux_loss_coef: 0\.25, but LlamaForCausalLM has no routed experts"):
        balance_of(sharp_llama(num_hidden_layers=1), 0.25)


def test_a_model_without_that_loss_is_refused() -> None:
    model = sharp_llama(num_hidden_layers=1)
    model.config.output_router_logits = False
    message = "LlamaForCausalLM returns no loss that balances experts; set it to 0"
    with pytest.raises(ConfigError, match=message), balance_losses(model, Balance(0.5)):
        packed_logps(model, Forest.plant(forest_of()), backend="path")
    assert model.config.output_router_logits is False
    with balance_losses(model, Balance(0.5, required=False)) as found:  # some families only declare the weight
        packed_logps(model, Forest.plant(forest_of()), backend="path")
    assert found == []


def test_a_training_adds_it_and_an_evaluation_does_not(tmp_path: Path) -> None:
    first, evaluated = {}, {}
    for weight in (0.0, 0.5):
        run = trainer(tmp_path, model=experts(), args={"router_aux_loss_coef": weight, "alpha": 0.5}, eval_dataset=ROWS)
        evaluated[weight] = run.evaluate()["eval_loss"]
        run.train()
        first[weight] = logged(run, "loss")[0]
    assert first[0.0] == pytest.approx(0.75, abs=1e-6)
    assert first[0.5] > first[0.0] + 0.5  # the balance loss is at least 1 per choice
    assert evaluated[0.0] == pytest.approx(0.75, abs=1e-6) == evaluated[0.5]
