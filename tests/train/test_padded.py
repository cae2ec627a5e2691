"""Training on padded batches: the losses and weights of unpadded ones; settings that do not go with it are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.errors import ConfigError
from tests.train.plain import ROWS, logged, settings, sharp_llama, trainer, weights_of
from tests.train.test_adapter_settings import experts


def trained(folder: Path, **args: Any) -> Any:
    run = trainer(folder, model=sharp_llama(num_hidden_layers=1), eval_dataset=ROWS[:3], args={"max_steps": 3, **args})
    run.train()
    return run


@pytest.mark.parametrize("more", [{}, {"max_tokens_per_batch": 200}, {"backend": "flat"}], ids=str)
def test_padding_trains_the_same_model(more: dict[str, Any], tmp_path: Path) -> None:
    plain, padded = trained(tmp_path / "plain", **more), trained(tmp_path / "padded", pad_to_multiple_of=64, **more)
    for key in ("loss", "rewards/chosen", "entropy/revisions", "answer_tokens", "grad_norm"):
        assert logged(padded, key) == pytest.approx(logged(plain, key), abs=2e-6), key
    ours, theirs = weights_of(padded.model), weights_of(plain.model)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    assert padded.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=2e-6)


def test_every_batch_is_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from srpo.train import trainer as module

    lengths = []
    scored = module.six_logps

    def scoring(model: Any, forest: Any, backend: str) -> Any:
        lengths.append(forest.ids_1S.shape[1])
        return scored(model, forest, backend)

    monkeypatch.setattr(module, "six_logps", scoring)
    run = trained(tmp_path, pad_to_multiple_of=64, max_tokens_per_batch=200)
    run.evaluate()
    assert len(lengths) > 4
    assert [length % 64 for length in lengths] == [0] * len(lengths)


def test_a_cached_reference_is_padded_and_kept_apart(tmp_path: Path) -> None:
    """Padding rounds differently, so that cached log-probs of an unpadded run are other rows."""
    kept = {"reference_cache": str(tmp_path / "kept"), "precompute_ref_log_probs": True}
    plain, padded = trained(tmp_path / "plain", **kept), trained(tmp_path / "padded", pad_to_multiple_of=64, **kept)
    assert padded.reference.scored == plain.reference.scored > 0
    assert logged(padded, "loss") == pytest.approx(logged(plain, "loss"), abs=2e-6)
    assert trained(tmp_path / "again", pad_to_multiple_of=64, **kept).reference.scored == 0


def test_what_cannot_be_padded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the cache tree is not padded"):
        settings(tmp_path, pad_to_multiple_of=64, backend="cache")
    with pytest.raises(ConfigError, match="pad_to_multiple_of: 0; expected 1 or more"):
        settings(tmp_path, pad_to_multiple_of=0)
    balanced = {"pad_to_multiple_of": 64, "router_aux_loss_coef": 0.1}
    with pytest.raises(ConfigError, match="padded tokens would count in the loss that balances routed experts"):
        trainer(tmp_path, model=experts(), args=balanced)
    trainer(tmp_path, model=experts(), args={**balanced, "router_aux_loss_coef": 0.0}).train()
