"""Fault 8: a nan or an infinity stops the run before the optimiser, and says where it came from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SixLogps
from srpo.cli.main import run as srpo
from srpo.errors import NonFiniteError
from srpo.maths.objective import OBJECTIVES
from tests.faults.dying import make_base, make_trainer
from tests.train.plain import weights_of

STEPS = 4


class Poison:
    """Spoils one number of the nth micro-batch.

    Args:
        place: logits, one of the six by its name, reference, loss or gradient.
        batch: which micro-batch, from 0.
        value: what the number becomes.
    """

    def __init__(self, trainer: Any, place: str, batch: int, value: float) -> None:
        self._batch, self._value, self._seen = batch, value, -1
        loss = trainer.objective.loss

        def spoilt(policy: SixLogps, reference: SixLogps, **settings: Any) -> Any:
            if place in SixLogps._fields:
                policy = policy._replace(**{place: self._spoil(getattr(policy, place))})
            if place == "reference":
                reference = reference._replace(w=self._spoil(reference.w))
            output = loss(policy, reference, **settings)
            if place == "loss":
                output = dataclasses.replace(output, per_pair=self._spoil(output.per_pair))
            return output

        def layer(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            return self._spoil(output) if module.training else output

        if place == "logits":
            trainer.model.get_input_embeddings().register_forward_hook(layer)
        elif place == "gradient":
            next(trainer.model.parameters()).register_hook(self._spoil)
        else:
            trainer.objective = dataclasses.replace(trainer.objective, loss=spoilt)
        inner = trainer.training_step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._seen += 1
            return inner(*args, **kwargs)

        trainer.training_step = counted

    def _spoil(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers * self._value if self._seen == self._batch else numbers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def stopped(base: Path, folder: Path, place: str, batch: int, value: float = math.nan, **changes: Any) -> Any:
    """A run that was poisoned, its error, and its weights after the last whole step."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        weights: Any = None

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.weights = weights_of(model)

    keeper = Keeper()
    trainer = make_trainer(base, folder, max_steps=STEPS, save_strategy="no", callbacks=[keeper], **changes)
    Poison(trainer, place, batch, value)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    return trainer, caught.value, keeper.weights


def expect_stopped(base: Path, folder: Path, place: str, batch: int, value: float = math.nan) -> None:
    trainer, error, before = stopped(base, folder, place, batch, value)
    step = batch // 2 + 1
    after = weights_of(trainer.model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert error.exit_code == 70
    assert error.where == f"step {step}"
    report = json.loads((folder / "nonfinite.json").read_text("utf-8"))
    assert report["step"] == step
    assert report["rows"], place
    for row in report["rows"]:
        assert row["where"] == f"row {row['row'] + 1}"
        assert row["where"] in str(error)
        assert set(row["policy"]) == set(row["reference"]) == set(SixLogps._fields)
        assert set(row["tokens"]) == {"prompt", "chosen", "rejected", "longest"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, step + 1))
    assert math.isnan(losses[-1])
    assert all(math.isfinite(loss) and loss != 0.0 for loss in losses[:-1])


@pytest.mark.parametrize(
    "place",
    [
        *("logits", "w_given_l", "reference", "loss", "gradient"),
        *(pytest.param(name, marks=pytest.mark.faults) for name in SixLogps._fields if name != "w_given_l"),
    ],
)
def test_nonfinite_numbers_from_every_source(place: str, base: Path, tmp_path: Path) -> None:
    expect_stopped(base, tmp_path, place, batch=3)  # the second micro-batch of the second step


@pytest.mark.parametrize("batch", [0, 1, 6])
def test_nonfinite_numbers_at_every_step(
    batch: int, base: Path, tmp_path: Path
) -> None:  # 6: the last, alone in its step
    expect_stopped(base, tmp_path, "logits", batch)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_numbers(value: float, base: Path, tmp_path: Path) -> None:
    expect_stopped(base, tmp_path, "l", 2, value)


def test_an_infinite_log_ratio_that_leaves_the_loss_of_dpo_at_0(base: Path, tmp_path: Path) -> None:
    _, error, _ = stopped(
        base, tmp_path, "l", 2, math.inf, objective="dpo"
    )  # log σ(∞) = 0: the loss alone says nothing
    assert error.exit_code == 70
    policy = OBJECTIVES["dpo"].loss(
        SixLogps(*torch.tensor([[0.0], [-math.inf], *[[0.0]] * 4])), SixLogps(*torch.zeros(6, 1)), beta=0.1, alpha=0.0
    )
    assert policy.loss == 0.0


def test_control_without_the_guard_every_weight_is_nan(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, max_steps=STEPS, save_strategy="no")
    Poison(trainer, "logits", 3, math.nan)
    trainer.guard.expect_finite = lambda *args, **kwargs: None
    trainer.guard.expect_finite_gradients = lambda *args, **kwargs: None
    trainer.train()
    assert all(p.isnan().any() for p in trainer.model.parameters())


def test_nonfinite_weights_are_not_saved(base: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Spoiler(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == STEPS:
                next(model.parameters()).data.view(-1)[0] = math.inf

    trainer = make_trainer(base, tmp_path, max_steps=STEPS, save_steps=2, callbacks=[Spoiler()])
    with pytest.raises(NonFiniteError, match=r"the weight .* is not finite"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(NonFiniteError):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_through_the_command(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2, "utf-8")
    words = ["train", "--model_name_or_path", str(base), "--dataset_name", str(pairs), "--output_dir"]
    quick = ["--report_to", "none", "--use_cpu", "true", "--save_strategy", "no", "--max_grad_norm", "0"]
    with pytest.raises(NonFiniteError, match=r"nonfinite\.json"):
        srpo(
            [
                *words,
                str(tmp_path / "run"),
                *quick,
                "--learning_rate",
                "1e38",
                "--max_steps",
                "3",
                "--logging_steps",
                "1",
            ]
        )
    assert not (tmp_path / "run" / "model.safetensors").exists()
    last = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[-1]
    assert math.isnan(json.loads(last)["loss"])
