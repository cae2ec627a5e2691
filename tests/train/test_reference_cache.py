"""The reference is computed once, ever: what is kept is found exactly when nothing that decides it has changed."""

from __future__ import annotations

import copy
import gc
import logging
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from srpo import SRPOTrainer
from srpo.errors import ConfigError, NonFiniteError
from srpo.model.reference.cached import CachedReference
from srpo.train.dataset import TreeDataset
from srpo.train.prepare_reference import _missing
from tests.train.plain import ROWS, flat_six, logged, sharp_llama, trainer, weights_of

FOUR = ROWS[:4]


class Counting(LlamaForCausalLM):
    """A Llama that counts: its forwards together with those of all others, and how many there are."""

    forwards = 0
    alive: ClassVar[WeakSet[Any]] = WeakSet()

    def __new__(cls, *args: Any, **kwargs: Any) -> Counting:
        model = super().__new__(cls)
        cls.alive.add(model)
        return model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        Counting.forwards += 1
        return super().forward(*args, **kwargs)


def counting(seed: int = 0) -> Counting:
    """The tiny model, counted."""
    plain = sharp_llama(seed)
    model = Counting(LlamaConfig(**plain.config.to_dict()))
    model.load_state_dict(plain.state_dict())
    return model.eval()


def run(folder: Path, *, rows: Any = None, **keywords: Any) -> SRPOTrainer:
    """A trainer at rest that keeps reference log-probs in `folder`; rows scored beforehand if `precompute`."""
    ahead = keywords.pop("precompute", False)
    args = {"reference_cache": str(folder), "precompute_ref_log_probs": ahead, **keywords.pop("args", {})}
    return trainer(folder / "run", FOUR if rows is None else rows, args=args, **keywords)


def cached(made: SRPOTrainer) -> CachedReference:
    assert isinstance(made.reference, CachedReference)
    return made.reference


def missing(made: SRPOTrainer) -> int:
    """Rows of the run that are not kept."""
    return len(_missing(cached(made), made.train_dataset, made._backends[False]))


def scored(made: SRPOTrainer) -> Tensor:
    """[B, 6] reference log-probs of the run's rows."""
    return torch.stack(list(made.reference.six_logps(made.train_dataset.trees[:], made._backends[False])), 1)


@torch.no_grad()
def plain(model: Any, rows: Any = None) -> Tensor:
    """The same, a row at a time, with every logit."""
    return torch.stack(list(flat_six(model, FOUR if rows is None else rows)), 1)


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})


def adapted(alpha: int = 8) -> Any:
    """The tiny model under an adapter that has been trained before."""
    torch.manual_seed(0)
    return edited(get_peft_model(sharp_llama(), lora(lora_alpha=alpha)), "lora_B")


@torch.no_grad()
def edited(model: Any, name: str = "layers.0.mlp.up_proj") -> Any:
    """The model with one number of one weight changed."""
    weight = next(p for n, p in model.named_parameters() if name in n)
    weight.view(-1)[0] += 1.0
    return model


# ---------------------------------------------------------------------- once


@pytest.mark.parametrize("kind", ["frozen copy", "adapter off", "given"])
def test_a_second_epoch_and_a_second_run_do_no_reference_forward(kind: str, tmp_path: Path) -> None:
    def forwards(**changes: Any) -> tuple[int, SRPOTrainer]:
        keywords: dict[str, Any] = {"given": {"ref_model": counting(1)}, "adapter off": {"peft_config": lora()}}
        args = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, "backend": "flat", **changes}
        made = run(tmp_path, model=counting(), args=args, **keywords.get(kind, {}))
        assert made.reference.kind == kind
        Counting.forwards = 0
        made.train()
        return Counting.forwards, made

    # Two epochs of two steps; flat rows go in two forwards, drafts and revisions, without a self-check.
    first, made = forwards()
    assert first == 2 * (4 + 2)
    assert (cached(made).scored, cached(made).found) == (4, 4)
    second, again = forwards()
    assert second == 2 * 4
    assert (again.state.log_history[0]["loss"], cached(again).scored) == (made.state.log_history[0]["loss"], 0)
    assert torch.equal(*(torch.cat([p.flatten() for p in weights_of(each.model).values()]) for each in (made, again)))
    # Control: without a cache the reference is scored at every step.
    assert forwards(reference_cache=None)[0] == 2 * (4 + 4)


def test_no_reference_model_is_kept_if_every_row_is_cached(tmp_path: Path) -> None:
    def models() -> int:
        gc.collect()
        return len(Counting.alive)

    made = run(tmp_path, model=counting(), precompute=True, eval_dataset=ROWS[4:])
    assert (made.reference.model, cached(made).scored, models()) == (None, 7, 1)
    before = weights_of(made.model)
    made.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in made.model.named_parameters())
    made.evaluate()
    torch.testing.assert_close(scored(made), plain(sharp_llama()), rtol=0, atol=1e-4)  # what the policy was
    del made
    warm = run(tmp_path, model=counting(), eval_dataset=ROWS[4:])  # without asking for it ahead
    assert (warm.reference.model, models()) == (None, 1)
    del warm
    # Control: with one row that is not kept there has to be a copy.
    other = run(tmp_path, model=counting(), rows=[*FOUR, {"prompt": "N", "chosen": "e", "rejected": "w"}])
    assert (other.reference.model is not None, models()) == (True, 2)


def test_new_rows_are_refused_by_name_without_a_reference_model(tmp_path: Path) -> None:
    made = run(tmp_path, precompute=True)
    made.train()
    others = TreeDataset.build(ROWS[4:], made.renderer, max_length=None)
    with pytest.raises(ConfigError, match=r"reference_cache: new rows, .*eval_dataset"):
        made.evaluate(others)
    # With an adapter the reference is always at hand.
    switched = run(tmp_path, precompute=True, peft_config=lora())
    switched.train()
    assert switched.evaluate(others)["eval_loss"] > 0


def test_one_missing_row_scores_the_whole_micro_batch(tmp_path: Path) -> None:
    run(tmp_path, rows=FOUR[:3], precompute=True)
    made = run(tmp_path)
    made.train()
    assert (cached(made).scored, cached(made).found) == (4, 0)
    assert logged(made, "revision/margins/chosen") == [0.0]  # bit for bit, as every live reference is
    apart = run(tmp_path / "b", rows=FOUR[:3], precompute=True, args={"reference_cache": str(tmp_path / "b")})
    apart = run(tmp_path / "b", args={"per_device_train_batch_size": 1, "max_steps": 4, "learning_rate": 0.0})
    apart.train()
    assert (cached(apart).scored, cached(apart).found) == (1, 3)


@pytest.mark.parametrize("policy", ["full", "adapter off", "frozen adapter", "given"])
def test_cached_numbers_equal_the_plain_ones(policy: str, tmp_path: Path) -> None:
    def made(**keywords: Any) -> SRPOTrainer:
        model = adapted() if policy == "frozen adapter" else sharp_llama()
        extra: dict[str, Any] = {"adapter off": {"peft_config": lora()}, "given": {"ref_model": sharp_llama(1)}}
        return run(tmp_path, model=model, **extra.get(policy, {}), **keywords)

    ahead = made(precompute=True)
    expected = {
        "given": lambda: plain(sharp_llama(1)),
        "frozen adapter": lambda: plain(adapted()),
    }
    found = scored(ahead)
    torch.testing.assert_close(found, expected.get(policy, lambda: plain(sharp_llama()))(), rtol=0, atol=1e-4)
    warm = made()
    assert torch.equal(scored(warm), found)
    assert cached(warm).scored == 0
    warm.train()
    assert torch.equal(scored(warm), found)
    first = warm.state.log_history[0]["revision/margins/chosen"]
    assert abs(first) < 1e-5 if policy != "given" else abs(first) > 1e-3


# ---------------------------------------------------------------------- what is found, and what is not


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that knows the rows under the tiny model."""
    folder = tmp_path_factory.mktemp("kept")
    run(folder, precompute=True)
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "kept")
    return tmp_path / "kept"


HITS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "beta": {"args": {"beta": 0.7}},
    "alpha": {"args": {"alpha": 0.9}},
    "learning rate": {"args": {"learning_rate": 1e-5}},
    "batch size": {"args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}},
    "seed": {"args": {"seed": 5, "data_seed": 6}},
    "reduction": {"args": {"logps_reduction": "mean"}},
    "pieces": {"args": {"max_tokens_per_batch": 50}},
    "epochs": {"args": {"num_train_epochs": 4, "max_steps": -1}},
    "order": {"rows": FOUR[::-1]},
    "subset": {"rows": FOUR[1:3]},
    "a limit that cuts nothing": {"args": {"max_length": 120, "truncate": "prompt"}},
    "a fresh adapter on it": {"peft_config": lora()},
    "another fresh adapter": {"peft_config": lora(r=2, target_modules=["k_proj", "down_proj"])},
}


@pytest.mark.parametrize("change", HITS)
def test_settings_without_effect_are_not_in_the_key(change: str, folder: Path) -> None:
    made = run(folder, **HITS[change])
    assert missing(made) == 0
    torch.testing.assert_close(scored(made), plain(sharp_llama(), HITS[change].get("rows")), rtol=0, atol=1e-4)
    assert cached(made).scored == 0


def renamed(folder: Path) -> dict[str, Any]:
    template = folder / "template.json"
    template.write_text(
        '{"name": "t", "form": "text", "draft": "{{ prompt }}", "revision": "{{ prompt }}{{ draft }}?"}'
    )
    return {"args": {"revision_template": str(template)}}


MISSES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "one number of one weight": lambda _: {"model": edited(sharp_llama())},
    "two rows of an embedding changed places": lambda _: {"model": swapped(sharp_llama())},
    "other weights": lambda _: {"model": sharp_llama(seed=1)},
    "an epsilon of the configuration": lambda _: {"model": sharp_llama(rms_norm_eps=1e-3)},
    "a buffer that is not saved": lambda _: {"model": turned(sharp_llama())},
    "dtype": lambda _: {"model": sharp_llama().to(torch.bfloat16)},
    "precision": lambda _: {"args": {"bf16": True}},
    "back-end": lambda _: {"args": {"backend": "flat"}},
    "template": renamed,
    "objective": lambda _: {"args": {"objective": "dpo"}},
    "texts": lambda _: {"rows": [{**row, "prompt": row["prompt"] + "!"} for row in FOUR]},
    "chosen and rejected changed places": lambda _: {
        "rows": [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in FOUR]
    },
    "a trained adapter": lambda _: {"model": adapted()},
    "a reference of its own": lambda _: {"ref_model": sharp_llama(seed=1)},
}


@torch.no_grad()
def swapped(model: Any) -> Any:
    table = model.get_input_embeddings().weight
    table[[65, 66]] = table[[66, 65]]
    return model


def turned(model: Any) -> Any:
    model.model.rotary_emb.inv_freq *= 1.01
    return model


@pytest.mark.parametrize("change", MISSES)
def test_everything_that_changes_numbers_is_in_the_key(change: str, folder: Path) -> None:
    made = run(folder, **MISSES[change](folder))
    assert missing(made) == 4


def test_only_rows_that_a_limit_cuts_are_scored_again(folder: Path) -> None:
    made = run(folder, args={"max_length": 58, "truncate": "prompt"})
    assert 0 < len(made.train_dataset.cut) < 4
    assert missing(made) == len(made.train_dataset.cut)


def test_the_scale_of_an_adapter_is_in_the_key(tmp_path: Path) -> None:
    def made(alpha: int) -> SRPOTrainer:
        return run(tmp_path, model=adapted(alpha))

    made(8).train()
    assert missing(made(8)) == 0
    assert missing(made(16)) == 4


def test_a_model_edited_in_memory_is_its_own_reference(folder: Path, tmp_path: Path) -> None:
    sharp_llama().save_pretrained(tmp_path / "saved")
    model = edited(LlamaForCausalLM.from_pretrained(tmp_path / "saved"))
    assert model.config._name_or_path  # there is a path that it could wrongly be read from again
    made = run(folder, model=model, precompute=True)
    torch.testing.assert_close(scored(made), plain(edited(sharp_llama())), rtol=0, atol=1e-4)
    assert (scored(made) - plain(sharp_llama())).abs().max() > 1e-2
    # The same weights unedited, read from disk, are those that were in memory when the folder was filled.
    assert missing(run(folder, model=LlamaForCausalLM.from_pretrained(tmp_path / "saved"))) == 0


# ---------------------------------------------------------------------- what can go wrong


def forged(segment: Path, row: int = 0, by: float = 1.0) -> None:
    """Changes a kept number and makes the checksum right again."""
    data = bytearray(segment.read_bytes())
    record = 16 + 48 + 4
    start = len(data) - 4 * record + row * record
    struct.pack_into("<d", data, start + 16, struct.unpack_from("<d", data, start + 16)[0] + by)
    struct.pack_into("<I", data, start + record - 4, zlib.crc32(data[start : start + record - 4]))
    segment.write_bytes(data)


def test_wrong_cached_rows_are_discarded_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]

    (segment,) = folder.glob("*/*.logps")
    forged(segment, by=1e-5)  # control: what rounding may do
    assert missing(run(folder)) == 0
    assert not warnings()
    forged(segment)
    made = run(folder)
    assert any("differ from those of this reference: a row is off by 1 nats" in line for line in warnings())
    assert missing(made) == 4
    assert not segment.exists()
    assert len(list(folder.glob("*.wrong-*/*.logps"))) == 1
    made.train()
    assert missing(run(folder)) == 0
    torch.testing.assert_close(scored(run(folder)), plain(sharp_llama()), rtol=0, atol=1e-4)


def test_a_torn_tail_costs_one_row(folder: Path) -> None:
    (segment,) = folder.glob("*/*.logps")
    segment.write_bytes(segment.read_bytes()[:-10])
    made = run(folder, precompute=True)
    assert cached(made).scored == 1
    assert missing(run(folder)) == 0


def test_a_nan_is_not_cached(tmp_path: Path) -> None:
    broken = sharp_llama(seed=1)
    made = run(tmp_path, ref_model=broken, args={"backend": "flat"})
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    with pytest.raises(NonFiniteError):
        made.train()
    assert not list(tmp_path.glob("*/*.logps"))


def test_an_unwritable_cache_warns_and_training_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    args = {"reference_cache": str(tmp_path / "file"), "max_steps": 2}
    made = run(tmp_path, args=args)
    made.train()
    said = [each.getMessage() for each in caplog.records if "cannot be stored" in each.getMessage()]
    assert len(said) == 1
    assert (cached(made).scored, cached(made).found) == (4, 4)  # it knows them for as long as it lives


def test_two_concurrent_runs_share_the_cache(tmp_path: Path) -> None:
    one, two = run(tmp_path), run(tmp_path)
    one.train()
    two.train()
    assert (cached(one).scored, cached(two).scored, cached(two).found) == (4, 0, 4)


def test_checkpointed_runs_resume_to_the_same_weights(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2}
    whole = run(tmp_path, args=args)
    whole.train()
    again = run(tmp_path, args=args)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert cached(again).scored == 0
    for name, weight in whole.model.named_parameters():
        assert torch.equal(copy.deepcopy(again.model).get_parameter(name), weight)


def test_a_reference_model_is_moved_before_it_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It stands where it was loaded; scored there, its log-probs would be kept as those of the device that trains.
    given, order, place = sharp_llama(seed=1), [], Accelerator.prepare_model

    def noted(self: Any, model: Any, *args: Any, **keywords: Any) -> Any:
        if model is given:
            order.append("placed")
        return place(self, model, *args, **keywords)

    monkeypatch.setattr(Accelerator, "prepare_model", noted)
    given.register_forward_pre_hook(lambda *_: order.append("scored"))
    args = {"reference_cache": str(tmp_path / "kept"), "precompute_ref_log_probs": True}
    trainer(tmp_path / "run", ref_model=given, args=args)
    assert order[0] == "placed"
    assert order.count("placed") == 1
    assert "scored" in order
