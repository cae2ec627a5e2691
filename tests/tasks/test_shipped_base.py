"""The base of the package is the one that its command makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.carry_base import write
from srpo import Reviser
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, sums, train_base
from srpo.tasks.carry_run import make_base
from srpo.tasks.shipped_base import FILE, FIRST_LOSSES, SHIPPED, facts, is_shipped, shipped_base


def greedy_exact(model: torch.nn.Module, split: str, prompts: int) -> float:
    reviser = Reviser(model, carry_tokenizer(), TEMPLATE, batch_size=prompts)
    trails = reviser.revise(sums(prompts, split, seed=77), 0, temperature=0.0, max_new_tokens=7)
    return sum(trail.after(0).text == trail.meta["gold"] for trail in trails) / prompts


def test_the_file_is_small_and_knows_its_settings() -> None:
    assert FILE.stat().st_size <= 2**20
    settings, losses = facts()
    assert settings == SHIPPED
    assert len(losses) == FIRST_LOSSES


def test_the_command_starts_the_same_training() -> None:
    """The first losses are the same; `make sweep` trains to the end."""
    _, expected = facts()
    losses = [loss for _, (_, loss, _) in zip(range(8), train_base(SHIPPED), strict=False)]
    assert losses == pytest.approx(expected[:8], rel=1e-3)
    other = [loss for _, (_, loss, _) in zip(range(8), train_base(BaseConfig(seed=1)), strict=False)]
    assert other != pytest.approx(expected[:8], rel=1e-3)


@pytest.mark.sweep
def test_the_command_makes_the_same_file(tmp_path: Path) -> None:
    write(tmp_path / "base.safetensors", SHIPPED)
    if (tmp_path / "base.safetensors").read_bytes() == FILE.read_bytes():
        return
    # Another processor rounds differently, and 3,200 steps later weights differ; answers must be as good.
    from safetensors.torch import load_file

    model = shipped_base()
    ours = [greedy_exact(model, split, 500) for split in ("in", "out")]
    model.load_state_dict(load_file(tmp_path / "base.safetensors"))
    theirs = [greedy_exact(model, split, 500) for split in ("in", "out")]
    assert theirs == pytest.approx(ours, abs=0.1)


def test_it_adds(tmp_path: Path) -> None:
    assert greedy_exact(shipped_base(), "in", 100) > 0.95


def test_only_its_own_settings_get_it(tmp_path: Path) -> None:
    assert is_shipped(BaseConfig())
    assert is_shipped(BaseConfig(threads=4))
    assert not is_shipped(BaseConfig(seed=1))
    assert not is_shipped(BaseConfig(steps=3))
    make_base(tmp_path, BaseConfig())
    reviser = Reviser(str(tmp_path))
    assert all(
        torch.equal(ours, saved)
        for ours, saved in zip(shipped_base().parameters(), reviser.model.parameters(), strict=True)
    )
