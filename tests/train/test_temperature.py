"""β of each step: schedules by step, a controller that sees every micro-batch of a step, and settings that exclude."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srpo import SRPOTrainer
from srpo.errors import ConfigError
from srpo.maths.control import DriftController, scheduled_beta
from tests.train.plain import ROWS, ids_of, logged, settings, sharp_llama, trainer

FOUR = ROWS[:4]
BUDGET: dict[str, Any] = {"beta_schedule": "budget", "drift_budget": 0.4, "max_steps": 5}


def started(run: SRPOTrainer) -> DriftController:
    """A controller that starts where that of the run did: at β or, if larger, at a margin of one entropy per token."""
    tokens = [len(ids_of(row[key])) + 1 for row in FOUR for key in ("chosen", "rejected")]
    mean, entropy = sum(tokens) / len(tokens), logged(run, "entropy/reference")[0]
    return DriftController(max(run.args.beta, 1 / (2 * mean * entropy)), 0.4)


def test_a_schedule_sets_beta_of_every_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, FOUR, args={"beta_schedule": "exponential", "beta_end": 0.001, "max_steps": 5})
    run.train()
    expected = [scheduled_beta("exponential", 0.1, 0.001, step / 4) for step in range(5)]
    assert logged(run, "beta") == pytest.approx(expected, rel=1e-9)
    assert run.temperature.beta == pytest.approx(0.001)


def test_the_controller_takes_the_drift_of_the_role_that_drifts_more(tmp_path: Path) -> None:
    run = trainer(tmp_path, FOUR, ref_model=sharp_llama(seed=1), args=BUDGET)
    run.train()
    control = started(run)
    expected = [0.1, control.start]  # the first step measures the entropy
    for drafts, revisions in zip(logged(run, "kl/drafts")[1:], logged(run, "kl/revisions")[1:], strict=True):
        expected.append(control.update(max(drafts, revisions)))
    assert logged(run, "beta") == pytest.approx(expected[:-1], rel=1e-9)
    assert len(set(expected)) > 3
    other = started(run)
    wrong = [0.1, other.start]  # control: the smaller drift gives another β
    for drafts, revisions in zip(logged(run, "kl/drafts")[1:], logged(run, "kl/revisions")[1:], strict=True):
        wrong.append(other.update(min(drafts, revisions)))
    assert wrong[:-1] != pytest.approx(expected[:-1], rel=1e-9)


def test_a_beta_that_is_too_small_for_the_answers_starts_higher(tmp_path: Path) -> None:
    run = trainer(tmp_path, FOUR, ref_model=sharp_llama(seed=1), args={**BUDGET, "beta": 1e-4, "max_steps": 3})
    run.train()
    control = started(run)
    assert control.start > 1e-3
    betas = [1e-4, control.start, *(control.update(drift) for drift in logged(run, "kl/drafts")[1:])]
    assert logged(run, "beta") == pytest.approx(betas[:3], rel=1e-2)


def test_beta_rests_during_the_warm_up(tmp_path: Path) -> None:
    changes = {**BUDGET, "warmup_steps": 3, "lr_scheduler_type": "constant_with_warmup"}
    run = trainer(tmp_path, FOUR, ref_model=sharp_llama(seed=1), args=changes)
    run.train()
    first, *betas = logged(run, "beta")
    assert first == run.args.beta
    assert betas[:3] == pytest.approx([started(run).start] * 3)
    assert len({*betas}) > 1


def test_the_default_budget_is_half_of_the_reference_s_entropy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "srpo"):
        run = trainer(tmp_path, FOUR, args={"beta_schedule": "budget", "max_steps": 1})
        run.train()
    assert run.temperature.control is not None
    assert run.temperature.control.budget == pytest.approx(logged(run, "entropy/reference")[0] / 2)
    assert any("drift budget 2.6 nats per answer token" in each.getMessage() for each in caplog.records)


def test_beta_of_an_accumulated_step_is_that_of_one_large_batch(tmp_path: Path) -> None:
    found = []
    for name, size, pieces in (("one", 4, 1), ("four", 1, 4)):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces}
        run = trainer(tmp_path / name, FOUR, ref_model=sharp_llama(seed=1), args={**BUDGET, **changes})
        run.train()
        found.append(logged(run, "beta"))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert len(set(found[0])) > 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta_schedule": "cosine"}, "cosine without beta_end"),
        ({"beta_end": 0.1}, "no use with beta_schedule constant"),
        ({"beta_schedule": "budget", "beta_end": 0.1}, "no use with beta_schedule budget"),
        ({"beta_schedule": "budget", "objective": "sft"}, "which has no beta"),
        ({"beta_schedule": "budget", "reference_cache": "kept"}, "a cached reference keeps the log-probs"),
        ({"drift_budget": 0.1}, "no use with beta_schedule constant"),
        ({"beta_schedule": "step"}, "beta_schedule"),
        ({"beta_schedule": "budget", "drift_budget": 0.0}, "drift_budget"),
    ],
)
def test_settings_that_exclude_each_other(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, **wrong)
