"""A user of TRL finds what he knows: the keywords of the trainer in their order, shared settings with their defaults.

Every departure is listed here with its reason, and a listed one that no longer departs fails too.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Settings of DPOConfig that SRPOConfig has with another default.
OTHER_DEFAULT = {
    "beta": "arXiv 2406.01660, appendix, TL;DR; TRL's is DPO's",
    "learning_rate": "the same table",
    "max_length": "the model's own context; 1024 turns away rows the model can take",
    "remove_unused_columns": "rows are trees, which have no columns to match",
    "gradient_checkpointing": "off, as in the paper",
    "pad_to_multiple_of": "none; TRL's auto pads on Neuron alone, which is not supported",
}
# Settings of DPOConfig that SRPOConfig does not have.
ABSENT = {
    "truncation_mode": "no row is cut silently",
    "padding_free": "packed trees have no padding to free",
    "pad_token": "the tokenizer's own",
    "loss_type": "`objective` names the loss",
    "loss_weights": "`alpha` mixes the two terms (Eq. 17)",
    "label_smoothing": "a variant of DPO's sigmoid",
    "ld_alpha": "a variant of DPO",
    "f_divergence_type": "a variant of DPO",
    "f_alpha_divergence_coef": "a variant of DPO",
    "use_weighting": "a variant of DPO",
    "discopop_tau": "a variant of DPO",
    "activation_offloading": "not offered",
}


@pytest.fixture(scope="module")
def trl() -> Any:
    return pytest.importorskip("trl")


def keywords(init: Callable[..., None]) -> list[tuple[str, Any]]:
    """Names and defaults in order, `self` left out."""
    return [(each.name, each.default) for each in inspect.signature(init).parameters.values()][1:]


def defaults(config: Any) -> dict[str, Any]:
    """Field → default of a dataclass."""
    return {
        each.name: each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        for each in dataclasses.fields(config)
    }


def departures(ours: Any, theirs: Any) -> tuple[set[str], set[str]]:
    """Settings of theirs that ours has with another default, and those that it does not have."""
    we, they = defaults(ours), defaults(theirs)
    return {name for name in we.keys() & they.keys() if we[name] != they[name]}, they.keys() - we.keys()


def test_the_trainer_takes_the_same_keywords_in_the_same_order(trl: Any) -> None:
    from srpo import SRPOTrainer

    assert keywords(SRPOTrainer.__init__) == keywords(trl.DPOTrainer.__init__)


def test_settings_differ_from_trl_only_where_listed(trl: Any) -> None:
    from srpo import SRPOConfig

    other_default, absent = departures(SRPOConfig, trl.DPOConfig)
    assert other_default == set(OTHER_DEFAULT)
    assert absent == set(ABSENT)


def test_bf16_is_settled_by_the_device(tmp_path: Path) -> None:
    """The same default, None; TRL makes it True on a CPU too, which ends the run."""
    from srpo import SRPOConfig

    assert SRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True).bf16 is False


def test_every_setting_explains_itself() -> None:
    from srpo import SRPOConfig

    assert [each.name for each in dataclasses.fields(SRPOConfig) if not each.metadata.get("help")] == []


def test_a_departure_from_trl_is_found() -> None:
    @dataclasses.dataclass
    class Theirs:
        beta: float = 0.1
        steps: list[int] = dataclasses.field(default_factory=lambda: [1])
        epochs: int = 3

        def start(self, model: str, args: int | None = None) -> None: ...

    @dataclasses.dataclass
    class Ours:
        beta: float = 0.2
        steps: list[int] = dataclasses.field(default_factory=lambda: [1])

        def start(self, args: int | None = None, *, model: str) -> None: ...

    assert departures(Ours, Theirs) == ({"beta"}, {"epochs"})
    assert departures(Theirs, Theirs) == (set(), set())
    assert keywords(Ours.start) != keywords(Theirs.start)
