"""A reference that follows the policy: where it is after each move, and after a resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from srpo import SRPOTrainer
from srpo.errors import ConfigError
from srpo.model.reference.reference import MovingReference
from tests.train.plain import ROWS, logged, settings, sharp_llama, trainer, weights_of

FOUR = ROWS[:4]


def run(folder: Path, **keywords: Any) -> SRPOTrainer:
    args = {
        **{"sync_ref_model": True, "ref_model_mixup_alpha": 0.25, "ref_model_sync_steps": 2, "max_steps": 6},
        **{"per_device_train_batch_size": 2, "lr_scheduler_type": "constant", **keywords.pop("args", {})},
    }
    return trainer(folder, FOUR, args=args, **keywords)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten() for each in weights.values()])


def test_the_reference_moves_by_its_share_at_its_steps(tmp_path: Path) -> None:
    start = flat(weights_of(sharp_llama()))
    policies = []
    for steps in (2, 4):  # the policy on the way: the same run, ended earlier
        policies.append(flat(weights_of(_trained(run(tmp_path / str(steps), args={"max_steps": steps})).model)))
    whole = _trained(run(tmp_path / "whole", args={"max_steps": 5}))
    assert whole.reference.kind == "moving"
    expected = start
    for policy in policies:  # (1 − α) · reference + α · policy, after steps 2 and 4
        expected = 0.75 * expected + 0.25 * policy
    found = flat(weights_of(whole.reference.model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - start).abs().max() > 1e-4  # control: it has moved at all
    assert not any(p.requires_grad for p in whole.reference.model.parameters())


def _trained(made: SRPOTrainer) -> SRPOTrainer:
    made.train()
    return made


def test_a_share_of_one_is_the_policy(tmp_path: Path) -> None:
    made = _trained(run(tmp_path, args={"ref_model_mixup_alpha": 1.0, "max_steps": 2}))
    assert torch.equal(flat(weights_of(made.reference.model)), flat(weights_of(made.model)))


@pytest.mark.parametrize("given", [False, True])
def test_resuming_restores_a_moved_reference(given: bool, tmp_path: Path) -> None:
    def made(**args: Any) -> SRPOTrainer:
        own = {"ref_model": sharp_llama(seed=1)} if given else {}
        return run(tmp_path / "run", args={"save_strategy": "steps", "save_steps": 3, **args}, **own)

    whole = _trained(made())
    again = made()
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for part in ("model", "reference"):
        ours, theirs = (each.model if part == "model" else each.reference.model for each in (again, whole))
        assert torch.equal(flat(weights_of(ours)), flat(weights_of(theirs))), part
    assert logged(again, "loss")[-1] == logged(whole, "loss")[-1]
    # Control: a reference that began again from the model would be elsewhere.
    assert not torch.equal(flat(weights_of(again.reference.model)), flat(weights_of(made().reference.model)))


def test_a_reference_state_of_another_shape_is_refused() -> None:
    policy = sharp_llama()
    reference = MovingReference(policy)
    state = {name: 2 * tensor for name, tensor in reference.state_dict().items()}
    reference.load_state_dict(state)
    torch.testing.assert_close(flat(weights_of(reference.model)), 2 * flat(weights_of(policy)))
    state.pop("lm_head.weight")
    with pytest.raises(Exception, match="a reference with other weights"):
        reference.load_state_dict(state)


@pytest.mark.parametrize("other", [{"reference_cache": "kept"}, {"precompute_ref_log_probs": True}])
def test_a_moving_reference_and_a_cache_exclude_each_other(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sync_ref_model: log-probs of a moving reference cannot be cached"):
        settings(tmp_path, sync_ref_model=True, **other)


def test_an_adapter_s_reference_does_not_move(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sync_ref_model: the reference of an adapter cannot move"):
        run(tmp_path, peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"]))


def test_a_reference_of_another_shape_cannot_follow(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ref_model: has other weights than the policy"):
        run(tmp_path, ref_model=sharp_llama(seed=1, intermediate_size=48))


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("ref_model_mixup_alpha", 0.0, "ref_model_mixup_alpha: 0.0; expected above 0 and at most 1"),
        ("ref_model_mixup_alpha", 1.1, "ref_model_mixup_alpha: 1.1; expected above 0 and at most 1"),
        ("ref_model_sync_steps", 0, "ref_model_sync_steps: 0; expected 1 or more"),
        ("max_tokens_per_batch", 0, "max_tokens_per_batch: 0; expected 1 or more"),
        ("precompute_ref_batch_size", -1, "precompute_ref_batch_size: -1; expected 1 or more"),
    ],
)
def test_invalid_settings_of_a_moving_reference(name: str, value: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, **{name: value})
    assert str(caught.value) == line
