"""Fault 7: a run does not go on under other conditions than it began with, unless that is asked for and recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from srpo.errors import ConfigError
from srpo.train.durable.checkpoint import newest, position
from srpo.train.durable.identity import accepted, changes, frozen_weights_hash
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.faults.dying import End, forked, make_trainer, train, whole_and_begun
from tests.train.plain import ROWS

STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_and_begun(tmp_path_factory.mktemp("place"), STEPS)


def resumed(place: Path, run: Path, **changed: Any) -> End:
    """Resumes the run that was stopped at step 2, with something changed."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place / "begun", run)
    base, rows, threads = changed.pop("base", place / "base"), changed.pop("rows", ROWS), changed.pop("threads", 1)

    def work() -> None:
        import torch

        import tests.faults.dying as dying

        dying.ROWS = rows
        torch.set_num_threads(threads)
        train(base, run, resume=True, **{"max_steps": STEPS, **changed})

    return forked(work)


def test_control_an_unchanged_run_resumes(place: Path, tmp_path: Path) -> None:
    assert resumed(place, tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta": 0.2}, "beta: 0.1 → 0.2"),
        ({"alpha": 0.4}, "alpha: 0.3 → 0.4"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size: 1 → 2"),
        ({"learning_rate": 0.02}, "learning_rate: 0.01 → 0.02"),
        ({"seed": 3}, "seed: 42 → 3"),
        ({"max_steps": 5}, "max_steps: 4 → 5"),
        ({"objective": "dpo"}, "objective: srpo → dpo"),
        ({"rows": ROWS[::-1]}, "data: "),
        ({"rows": [*ROWS[:-1], {**ROWS[-1], "chosen": "4 6"}]}, "data: "),
        ({"threads": 2}, "threads: 1 → 2"),
        ({"disable_dropout": True}, "disable_dropout: false → true"),
    ],
)
def test_a_changed_condition_exits_with_78(change: dict[str, Any], said: str, place: Path, tmp_path: Path) -> None:
    end = resumed(place, tmp_path / "run", **change)
    assert end.code == 78, end
    assert f"\n  {said}" in end.error
    assert "--accept_change" in end.error
    found = newest(tmp_path / "run")
    assert found is not None
    assert found[1].step == 2  # nothing was lost by asking


@pytest.mark.parametrize(
    ("change", "key", "line"),
    [({"kind": "lora"}, "adapter", "adapter: null → LORA"), ({"optim": "adafactor"}, "optim", " → adafactor")],
)
def test_a_change_that_no_checkpoint_fits_cannot_be_accepted(
    change: dict[str, Any], key: str, line: str, place: Path, tmp_path: Path
) -> None:
    for accept in (None, [key]):
        end = resumed(place, tmp_path / "run", accept_change=accept, **change)
        assert end.code == 78, end
        assert line in end.error
        assert f"restore {key} (no checkpoint can be loaded otherwise), or start a new run" in end.error
        assert "--accept_change" not in end.error
    end = resumed(place, tmp_path / "run", beta=0.2, **change)
    assert "; restore the others, or add `--accept_change beta`" in end.error


def test_only_changed_settings_of_an_adapter_are_listed() -> None:
    old = {"adapter": {"r": 8, "lora_alpha": 16, "peft_type": "LORA"}}
    new = {"adapter": {"r": 4, "lora_alpha": 16, "peft_type": "LORA"}}
    with pytest.raises(ConfigError) as caught:
        accepted(old, new, [], step=1, where="here")
    assert "conditions:\n  adapter.r: 8 → 4\nrestore adapter (" in str(caught.value)


@pytest.mark.parametrize("change", [{"logging_steps": 2}, {"save_steps": 3}, {"per_device_eval_batch_size": 1}])
def test_settings_without_effect_on_numbers_may_change(change: dict[str, Any], place: Path, tmp_path: Path) -> None:
    assert resumed(place, tmp_path / "run", **change).code == 0


def test_another_model_tokenizer_or_template_is_refused(place: Path, tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = make_tiny_llama(seed=1, initializer_range=0.15, attention_dropout=0.1, num_key_value_heads=1, **small)
    other.save_pretrained(tmp_path / "other")
    make_byte_tokenizer().save_pretrained(tmp_path / "other")
    end = resumed(place, tmp_path / "run", base=tmp_path / "other")
    assert end.code == 78
    assert "\n  reference: " in end.error
    shutil.copytree(place / "base", tmp_path / "said")
    make_byte_tokenizer(bos=False).save_pretrained(tmp_path / "said")
    end = resumed(place, tmp_path / "run", base=tmp_path / "said")
    assert end.code == 78
    assert "\n  tokenizer: " in end.error
    template = tmp_path / "mine.json"
    template.write_text(
        '{"name": "mine", "form": "text", "draft": "{{ prompt }}", "revision": "{{ prompt }}{{ draft }}?"}'
    )
    end = resumed(place, tmp_path / "run", revision_template=str(template))
    assert end.code == 78
    assert "\n  template: plain " in end.error
    shutil.copytree(place / "base", tmp_path / "moved")
    assert resumed(place, tmp_path / "run", base=tmp_path / "moved").code == 0


def test_one_change_can_be_accepted_and_is_recorded(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    end = resumed(place, run, beta=0.2, alpha=0.4, accept_change=["beta"])
    assert end.code == 78
    assert "alpha: 0.3 → 0.4" in end.error
    assert "beta:" not in end.error
    assert resumed(place, run, beta=0.2, accept_change=["beta"]).code == 0
    found = newest(run)
    assert found is not None
    assert found[1].accepted == [{"step": 2, "key": "beta", "old": 0.1, "new": 0.2}]
    assert found[1].identity["beta"] == 0.2
    again = forked(lambda: train(place / "base", run, resume=True, max_steps=STEPS, beta=0.2))  # needs no flag any more
    assert again.code == 0, again.error


def test_an_unknown_accepted_key_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        accepted({"beta": 1}, {"beta": 2}, ["beat"], step=1, where="x")


def test_a_step_of_other_pairs_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    old: dict[str, Any] = {"processes": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    same = {**old, "processes": 1, "per_device_train_batch_size": 4}
    grouped = [{**each, "group_by_prompt": True} for each in (old, same)]
    for was, now, warned in ((old, same, False), (old, {**same, "processes": 2}, True), (*grouped, True)):
        caplog.clear()
        accepted(was, now, ["processes", "per_device_train_batch_size"], step=1, where="x")
        assert ("may repeat some pairs" in caplog.text) is warned


@pytest.mark.parametrize(("split", "fits"), [("FSDP 2", True), ("ZeRO-2", False), ("ZeRO-3", False)])
def test_a_checkpoint_of_deepspeed_fits_one_number_of_processes(split: str, fits: bool) -> None:
    old, new = ({"processes": count, "weights_split_by": split} for count in (2, 4))
    if fits:
        assert len(accepted(old, new, ["processes"], step=1, where="x")) == 1
        return
    with pytest.raises(ConfigError, match=r"restore processes \(no checkpoint can be loaded otherwise\)"):
        accepted(old, new, ["processes"], step=1, where="x")


def test_other_processes_share_the_unlogged_loss(tmp_path: Path) -> None:
    for rank, loss in enumerate((1.0, 3.0)):
        (tmp_path / f"position-{rank}.json").write_text(json.dumps({"loss": loss, "last_logged": 4}))
    assert [position(tmp_path, rank, 2)["loss"] for rank in (0, 1)] == [1.0, 3.0]
    for processes in (1, 4):  # transformers logs the mean over processes, which stays 2
        assert [position(tmp_path, rank, processes) for rank in range(processes)] == [
            {"loss": 2.0, "last_logged": 4}
        ] * processes
    assert position(tmp_path / "none", 0, 1) is None


def test_added_and_removed_keys_are_changes() -> None:
    assert changes({"a": 1, "b": 2}, {"a": 1, "c": 3}) == [("b", 2, None), ("c", None, 3)]


def test_control_two_references_have_two_identities(place: Path, tmp_path: Path) -> None:
    from srpo.model.weights.load import load_model

    before = frozen_weights_hash(make_trainer(place / "base", tmp_path))
    assert before == frozen_weights_hash(make_trainer(place / "base", tmp_path / "again"))
    shutil.copytree(place / "base", tmp_path / "other")
    other = load_model(str(place / "base"))
    next(other.parameters()).data.view(-1)[0] += 1e-6
    other.save_pretrained(tmp_path / "other")
    assert frozen_weights_hash(make_trainer(tmp_path / "other", tmp_path / "run")) != before
