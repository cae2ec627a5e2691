"""A save is committed in the background of the next steps; readers of the checkpoint wait for it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from srpo.errors import OutputError
from srpo.train.durable import checkpoint
from srpo.train.durable.background import Background
from srpo.train.durable.checkpoint import checkpoints, read
from tests.train.plain import ROWS, trainer, weights_of

SAVING: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def test_one_task_at_a_time_and_its_error_once() -> None:
    background, go, done = Background(), threading.Event(), []
    background.start("first", go.wait)
    background.settle(wait=False)
    threading.Timer(0, go.set).start()
    background.start("second", lambda: done.append(go.is_set()))
    background.settle()
    assert done == [True]

    def fails() -> None:
        raise OutputError("no room")

    background.start("third", fails)
    with pytest.raises(OutputError):
        background.settle()
    background.settle()


def test_steps_continue_while_a_save_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, go, there = checkpoint.finish, threading.Event(), [(0, tmp_path)]

    def held_up(*args: Any, **kwargs: Any) -> None:
        go.wait()
        finish(*args, **kwargs)

    class Stepping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                there.extend(checkpoints(tmp_path))
                go.set()

    monkeypatch.setattr(checkpoint, "finish", held_up)
    trainer(tmp_path, args=SAVING, callbacks=[Stepping()]).train()
    assert there == [(0, tmp_path)]  # looked for after the third step, and none was there
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 2]


def test_callbacks_find_the_checkpoint_after_a_save(tmp_path: Path) -> None:
    found = []

    class Looking(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append(read(tmp_path / f"checkpoint-{state.global_step}").step)

    trainer(tmp_path, args=SAVING, callbacks=[Looking()]).train()
    assert found == [2, 4]


def test_a_full_disk_is_reported_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OutputError("no room")

    class Waiting(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                wait([run.background._task])

    monkeypatch.setattr(checkpoint, "finish", full)
    run = trainer(tmp_path, args=SAVING, callbacks=[Waiting()])
    with pytest.raises(OutputError, match="no room"):
        run.train()
    assert run.state.global_step == 2


def test_a_save_before_an_error_becomes_a_checkpoint(tmp_path: Path) -> None:
    class Failing(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise LookupError

    with pytest.raises(LookupError):
        trainer(tmp_path, args=SAVING, callbacks=[Failing()]).train()
    assert [read(path).step for _, path in checkpoints(tmp_path)] == [2]


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kill of a process can show: the system outlives it, and a power cut does not spare what it holds back."""
    stage = tmp_path / ".staging" / "checkpoint-2"
    (stage / "inner").mkdir(parents=True)
    for path in (stage / "a", stage / "inner" / "b", tmp_path / "checkpoint-1"):
        path.mkdir() if path.name.startswith("checkpoint") else path.write_text("x")
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        done.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path).as_posix()))
        fsync(handle)

    def renamed(old: Any, new: Any) -> None:
        done.append(("rename", Path(old).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    manifest = checkpoint.Manifest(step=2, of=2, identity={})
    checkpoint.finish(tmp_path, "checkpoint-2", manifest, keep=1, spare=None)
    named = done.index(("rename", "checkpoint-2"))
    folder = ".staging/checkpoint-2"
    assert {name for _, name in done[:named]} == {
        *(folder, f"{folder}/a", f"{folder}/inner", f"{folder}/inner/b", f"{folder}/manifest.json")
    }
    assert done[named + 1 :] == [("fsync", "."), ("rename", "checkpoint-1")]


@pytest.mark.parametrize("keep", [None, 1])
def test_the_best_checkpoint_is_loaded_if_it_is_the_last(keep: int | None, tmp_path: Path) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": keep}
    run = trainer(tmp_path, args={**SAVING, **best}, eval_dataset=ROWS[:2])
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    step = min(losses, key=lambda each: losses[each])
    assert step == 4
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{step}")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    now = weights_of(run.model)
    assert saved
    assert all(torch.equal(now[name], weight) for name, weight in saved.items())
