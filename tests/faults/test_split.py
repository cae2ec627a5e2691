"""Runs whose weights FSDP 2 splits over processes: resumed by other numbers of processes, and killed at every write.

The short version resumes a run of two processes in one; everything else carries the marker `faults`.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.dying import Disk, End, during_save, make_base, make_trainer, together, weights_hash
from tests.faults.test_death import killer
from tests.train.plain import ROWS
from tests.train.split.processes import split_on_cpu

KILLED = -signal.SIGKILL
PARTS = {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}  # the default of FSDP 2, and of `--launch fsdp2`
WHOLE = {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
# Name → kind of training, accelerate's variables of FSDP 2; None for DDP.
RUNS: dict[str, tuple[str, dict[str, str] | None]] = {
    "FSDP 2 in parts": ("full", PARTS),
    "FSDP 2 and LoRA in parts": ("lora", PARTS),
    "FSDP 2 whole": ("full", WHOLE),
    "FSDP 2 and LoRA whole": ("lora", WHOLE),
    "DDP": ("full", None),
    "DDP and LoRA": ("lora", None),
}
EIGHT = [*ROWS, ROWS[0]]  # two steps of four pairs in an epoch
SETTINGS: dict[str, Any] = {
    **{"rows": EIGHT, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0, "ddp_backend": "gloo"},
    **{"save_steps": 1, "save_total_limit": 2},
}
ACCEPTED = {"accept_change": ["processes", "per_device_train_batch_size", "gradient_accumulation_steps"]}


def trained(place: Path, folder: Path, name: str, processes: int, *, stop: int | None = None, **settings: Any) -> Any:
    """Trains in steps of four pairs, without dropout; the losses, or None if killed after the save of step `stop`."""
    kind, variables = RUNS[name]
    resume = settings.pop("resume", False)

    def work(rank: int) -> list[float]:
        if variables is not None:
            split_on_cpu(**variables)
        changes = {**SETTINGS, "disable_dropout": True, "per_device_train_batch_size": 4 // processes, **settings}
        run = make_trainer(place / "base", folder, kind, callbacks=[killer(stop)] if stop else [], **changes)
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run.train(resume_from_checkpoint=resume)
        run.save_model()
        return [each["loss"] for each in run.state.log_history if "loss" in each]

    ends = together(work, processes=processes)
    assert [(end.code, end.error) for end in ends] == [(KILLED if stop else 0, "")] * processes
    return ends[0].value


def alone(place: Path, folder: Path, name: str, **settings: Any) -> list[float]:
    """The losses of an uninterrupted run in one process without FSDP."""
    losses: list[float] = trained(place, folder, "DDP and LoRA" if RUNS[name][0] == "lora" else "DDP", 1, **settings)
    return losses


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    return folder


def test_two_processes_then_one(place: Path, tmp_path: Path) -> None:
    """Logged every second step: the unlogged loss of both processes is part of the next log."""
    name, settings = "FSDP 2 in parts", {"max_steps": 2, "logging_steps": 2}
    trained(place, tmp_path / "run", name, 2, stop=1, **settings)
    losses = trained(place, tmp_path / "run", name, 1, resume=True, **settings, **ACCEPTED)
    assert losses == pytest.approx(alone(place, tmp_path / "alone", name, **settings), abs=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_then_four_then_one(name: str, every: int, place: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {"max_steps": 6, "logging_steps": every}
    trained(place, run, name, 2, stop=2, **settings)
    trained(place, run, name, 4, stop=4, resume=True, **settings, **ACCEPTED)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} if every == 3 else {}
    losses = trained(place, run, name, 1, resume=True, **settings, **halves, **ACCEPTED)
    assert len(losses) == 6 // every
    assert losses == pytest.approx(alone(place, tmp_path / "alone", name, **settings), abs=1e-6)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert [(each["key"], each["old"], each["new"]) for each in manifest["accepted"] if each["key"] == "processes"] == [
        ("processes", 2, 4),
        ("processes", 4, 1),
    ]


@pytest.mark.faults
def test_another_number_of_processes_is_refused_until_accepted(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "run", "DDP", 2, stop=1, max_steps=2)
    changes = {**SETTINGS, "disable_dropout": True, "per_device_train_batch_size": 4, "max_steps": 2}

    (end,) = together(lambda rank: make_trainer(place / "base", tmp_path / "run", **changes).train(True), processes=1)
    assert end.code == 78
    assert "--accept_change processes per_device_train_batch_size" in end.error


# ---------------------------------------------------------------------- killed at every write

STEPS, SAVE = 4, 3  # with two checkpoints kept, the save of step 3 deletes one


def killed(place: Path, folder: Path, kind: str, rank: int | None, at: int | None = None) -> list[End]:
    """A run with dropout, of two processes; that of this rank is killed at the nth write of the save."""
    shutil.rmtree(folder, ignore_errors=True)
    disk = Disk(at)

    def work(mine: int) -> Any:
        split_on_cpu(**PARTS)
        watch = [during_save(disk, SAVE)] if mine == rank else []
        changes = {**SETTINGS, "per_device_train_batch_size": 1, "max_steps": STEPS, "callbacks": watch}
        if mine != rank:
            return finished(make_trainer(place / "base", folder, kind, **changes), folder)
        with disk.watched():
            disk.pause()
            finished(make_trainer(place / "base", folder, kind, **changes), folder)
        return disk.names

    return together(work, dies=None if at is None else rank)


def finished(run: Any, folder: Path, *, resume: bool = False) -> str:
    run.train(resume_from_checkpoint=resume)
    run.save_model()
    return weights_hash(folder)


def resumed(place: Path, folder: Path, kind: str) -> list[str]:
    def work(rank: int) -> str:
        split_on_cpu(**PARTS)
        changes = {**SETTINGS, "per_device_train_batch_size": 1, "max_steps": STEPS}
        return finished(make_trainer(place / "base", folder, kind, **changes), folder, resume=True)

    ends = together(work)
    assert [(end.code, end.error) for end in ends] == [(0, ""), (0, "")]
    return [end.value for end in ends]


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_killed_at_every_write_of_a_save_in_parts(
    kind: str, rank: int, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = killed(place, tmp_path / "run", kind, rank)
    assert [(end.code, end.error) for end in ends] == [(0, ""), (0, "")]
    names, straight = ends[rank].value, ends[1 - rank].value
    assert any(f"__{rank}_0.distcp" in name for name in names)
    for at in range(1, len(names) + 1):
        assert killed(place, tmp_path / "run", kind, rank, at)[rank].code == KILLED, names[at - 1]
        assert resumed(place, tmp_path / "run", kind) == [straight, straight], names[at - 1]
    with capsys.disabled():
        print(f"\nFSDP 2, {kind}, process {rank}: {len(names)} of {len(names)} points end bit-identical")
