"""The host waits for the GPU once a step: counted on a device without values that stands for the GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from benchmarks.waits import CARD, counted_waits, steps_on_the_stand_in
from srpo.errors import BackendError, NonFiniteError
from srpo.model.packed import head
from srpo.model.packed.deferred import Deferred
from srpo.model.packed.flex import tree_block_mask
from srpo.model.packed.forest import Forest
from srpo.train.dataset import collate
from srpo.train.end_of_step import read_step
from tests.model.zoo import forest_of
from tests.train.plain import sharp_llama, trainer

QUICK = {"max_steps": 2, "logging_steps": 100, "optim": "adamw_torch", "per_device_train_batch_size": 2}


def run(folder: Path, **changes: Any) -> Any:
    args = QUICK | changes.pop("args", {})
    return trainer(folder, model=changes.pop("model", sharp_llama(num_hidden_layers=1)), args=args, **changes)


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "TILED_ABOVE", 0)


@pytest.mark.parametrize("case", ["srpo", "dpo", "an adapter, two batches"])
def test_a_step_waits_once_and_copies_each_batch_once(case: str, tiled: None, tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if "adapter" in case else None
    args = {"gradient_accumulation_steps": 2} if adapter else {"objective": case}
    steps = steps_on_the_stand_in(run(tmp_path, args=args, peft_config=adapter))
    assert len(steps) == 2
    waits, copies, launches = steps[1]  # the first step compares layouts and heads, and reads the results
    assert [name for name, _ in waits.elements()] == ["_to_copy"]
    assert 1 <= copies <= 2  # batches are fetched ahead
    assert launches > 100


def test_a_cached_reference_adds_no_wait(tiled: None, tmp_path: Path) -> None:
    cached = {"reference_cache": str(tmp_path / "cache"), "precompute_ref_log_probs": True}
    waits, copies, _ = steps_on_the_stand_in(run(tmp_path, args=cached))[1]
    assert (waits.total(), copies) == (1, 2), waits  # a batch and its log-probs


def test_control_a_callback_that_reads_the_loss(tmp_path: Path) -> None:
    class Reader(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            next(model.parameters()).sum().item()

    steps = steps_on_the_stand_in(run(tmp_path, callbacks=[Reader()]))
    assert steps[1][0].total() == 2, steps[1]


def test_control_a_batch_from_ordinary_memory(tmp_path: Path) -> None:
    steps = steps_on_the_stand_in(run(tmp_path), page_locked=False)
    assert [line.split(":")[0] for _, line in steps[1][0].elements() if "metrics" not in line] == ["transfer.py"]


def test_every_way_to_wait_is_counted() -> None:
    there = torch.zeros(4, device=CARD)
    ways: list[Any] = [
        *(there.tolist, there.cpu, there[0].item, there.nonzero, there.unique, lambda: bool(there[0] > 0)),
        *(lambda: there[there > 0], lambda: torch.ones(3).to(CARD), lambda: torch.zeros(4).copy_(there)),
        *(
            lambda: torch.tensor([1.0], device=CARD),
            lambda: there.copy_(torch.ones(4)),
            lambda: there.numpy(force=True),
        ),
    ]
    for number, way in enumerate(ways):
        with counted_waits() as counted:
            try:
                way()
            except NotImplementedError:
                assert counted.waits
        assert sum(counted.waits.values()) == 1, number
    with counted_waits() as counted:
        torch.zeros(3, device=CARD).add_(1).sum()
        torch.ones(3).to(CARD, non_blocking=True)
    assert not counted.waits
    assert (counted.copies, counted.launches) == (1, 4)


def test_block_masks_of_flex_attention_are_made_without_a_wait() -> None:
    with counted_waits() as counted:
        forest = Forest.plant(forest_of(), CARD)
        for window in (None, 3):
            tree_block_mask(forest, window)
    assert not counted.waits
    assert counted.copies == 1


def test_the_collator_makes_the_plan(tmp_path: Path) -> None:
    made = run(tmp_path)
    batch = collate([made.pairs[0], made.pairs[1]])
    plain = Forest.plant([made.pairs[0][2], made.pairs[1][2]])
    assert torch.equal(batch["forest"].block, plain.block)
    assert next(iter(made.get_train_dataloader()))["forest"].trees
    assert "forest" not in next(iter(run(tmp_path, args={"backend": "flat"}).get_train_dataloader()))


def test_workers_make_the_same_batches(tmp_path: Path) -> None:
    here, theirs = (run(tmp_path, args={"dataloader_num_workers": n}).get_train_dataloader() for n in (0, 1))
    for one, other in zip(here, theirs, strict=True):
        assert torch.equal(one["forest"].block, other["forest"].block)
        assert one["row"].tolist() == other["row"].tolist()


def test_a_nan_is_named_first_and_no_check_is_left_for_the_next_step() -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise NonFiniteError("a nan", where="row 1")

    deferred = Deferred()
    deferred.add(torch.tensor(True), BackendError("of the nan, too", where="the head"))
    guard = SimpleNamespace(flags=lambda device: torch.ones(1), settle_step=stop)
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    measured = SimpleNamespace(read=lambda *others: ({}, [each.tolist() for each in others]))
    parts: Any = (None, torch.nn.Linear(1, 1), accelerator, guard, deferred, measured, None)
    with pytest.raises(NonFiniteError):
        read_step(*parts, step=1)
    assert not len(deferred.results(accelerator.device))


def test_a_check_that_failed_in_another_process_stops_this_one() -> None:
    guard = SimpleNamespace(flags=lambda device: torch.zeros(1), settle_step=lambda *args, **kwargs: None)
    both = {"num_processes": 2, "reduce": lambda counts, how: counts + torch.tensor([0.0, 1.0])}
    accelerator = SimpleNamespace(device=torch.device("cpu"), **both)
    measured = SimpleNamespace(read=lambda *others: ({}, [each.tolist() for each in others]))
    parts: Any = (None, torch.nn.Linear(1, 1), accelerator, guard, Deferred(), measured, None)
    with pytest.raises(BackendError, match="in this process or another one"):
        read_step(*parts, step=1)


def test_logits_that_change_after_the_first_batch_stop_the_step(tiled: None, tmp_path: Path) -> None:
    """A scale that no configuration names, from the second step on."""

    class Scaled(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.register_forward_hook(lambda module, given, out: setattr(out, "logits", 1.5 * out.logits))

    made = run(tmp_path, callbacks=[Scaled()])
    with pytest.raises(BackendError, match="no longer what its head and configuration give"):
        made.train()
    assert made.state.global_step == 1
