"""Packed and flat agree along a whole training run: at every weight state it visits, not at random weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from srpo.maths.objective import srpo_loss
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.model.reference.reference import Reference
from srpo.sequences.tree import PrefixTree
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, label, sums, train_base
from srpo.train.config import SRPOConfig
from srpo.train.trainer import SRPOTrainer

BETA, ALPHA = 0.1, 0.5
STATES = 200


def with_slips(gold: str, generator: torch.Generator) -> str:
    """The sum with some of its digits one too high, as a missed carry leaves them."""
    slips = torch.rand(len(gold), generator=generator) < 0.3
    return "".join(str((int(digit) + bool(slip)) % 10) for digit, slip in zip(gold, slips, strict=True))


def pairs(n: int) -> list[dict[str, str]]:
    rows, generator = sums(n, "in", seed=3), torch.Generator().manual_seed(0)
    first, second = ([with_slips(row["gold"], generator) for row in rows] for _ in range(2))
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in label(rows, first, second)]


def loss_and_gradient(model: Any, reference: Reference, trees: list[PrefixTree], backend: str) -> tuple[float, Tensor]:
    forest = Forest.plant(trees)
    policy, frozen = six_logps(model, forest, backend), reference.six_logps(forest, backend)
    loss = srpo_loss(policy, frozen, beta=BETA, alpha=ALPHA).loss
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


class Compares(TrainerCallback):
    """Holds packed against flat after every optimiser step, on the pairs of that step's epoch in turn."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.loss_off: list[float] = []
        self.gradient_off: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        rows = self.trainer.train_dataset
        trees = [rows[(8 * state.global_step + n) % len(rows)][2] for n in range(8)]
        packed, packed_gradient = loss_and_gradient(model, self.trainer.reference, trees, "path")
        flat, flat_gradient = loss_and_gradient(model, self.trainer.reference, trees, "flat")
        self.loss_off.append(abs(packed - flat) / abs(flat))
        self.gradient_off.append(((packed_gradient - flat_gradient).norm() / flat_gradient.norm()).item())


@pytest.mark.sweep
def test_at_every_state_of_a_run_on_the_carry_task(tmp_path: Path) -> None:
    *_, (_, _, base) = train_base(BaseConfig(steps=300, batch=64))
    TEMPLATE.save(tmp_path)
    args = SRPOConfig(
        output_dir=str(tmp_path),
        beta=BETA,
        alpha=ALPHA,
        learning_rate=2e-4,
        max_steps=STATES,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        revision_template=str(tmp_path),
    )
    compares = Compares()
    start = [p.detach().clone() for p in base.parameters()]
    trainer = SRPOTrainer(
        base, args=args, train_dataset=pairs(1500), processing_class=carry_tokenizer(), callbacks=[compares]
    )
    compares.trainer = trainer
    trainer.train()
    moved = sum((a - b).square().sum() for a, b in zip(base.parameters(), start, strict=True)) ** 0.5
    print(f"loss {max(compares.loss_off):.1e}, gradient {max(compares.gradient_off):.1e}, weights moved {moved:.2f}")
    assert len(compares.loss_off) == STATES
    assert moved > 0.5
    assert max(compares.loss_off) < 1e-5
    assert max(compares.gradient_off) < 1e-5
