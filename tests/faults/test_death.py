"""Faults 11 and 12: a run killed at any write of any save, or at any moment, ends with the weights of one never killed.

The short versions take a point here and there; the whole sweeps carry the marker `faults`.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.dying import (
    SETTINGS,
    Disk,
    End,
    during_save,
    forked,
    make_base,
    make_trainer,
    steps_logged,
    train,
    weights_hash,
)

STEPS = 7
KILLED = -signal.SIGKILL
SAVES = {"first": 2, "later": 4, "rotating": 6}  # with two checkpoints kept


class Runs:
    """Runs of one kind: the uninterrupted one, and beginnings of it to kill.

    Attributes:
        straight: sha256 of the weights it ends with.
    """

    def __init__(self, base: Path, folder: Path, kind: str) -> None:
        self.base, self.folder, self.kind = base, folder, kind
        whole = forked(lambda: train(base, folder / "whole", kind, max_steps=STEPS))
        assert whole.code == 0, whole.error
        self.straight = whole.value
        assert steps_logged(folder / "whole") == list(range(1, STEPS + 1))

    def before(self, save: str, place: Path) -> None:
        """Puts at that place what a run leaves that is killed after the save before this one."""
        step = SAVES[save] - 2
        kept = self.folder / f"at-{step}"
        if step and not kept.exists():

            def run() -> None:
                train(self.base, kept, self.kind, max_steps=STEPS, callbacks=[killer(step)])

            assert forked(run).code == KILLED
            assert (kept / f"checkpoint-{step}").is_dir()
        shutil.rmtree(place, ignore_errors=True)
        if step:
            shutil.copytree(kept, place)

    def killed(self, save: str, place: Path, at: int | None) -> End:
        """Has it killed at the nth write of the save; None for no write, which tells what the writes are."""
        self.before(save, place)
        disk = Disk(at)

        def run() -> list[str]:
            with disk.watched():
                disk.pause()
                watch = during_save(disk, SAVES[save])
                trainer = make_trainer(self.base, place, self.kind, max_steps=STEPS, callbacks=[watch])
                trainer.train(resume_from_checkpoint=True)
            return disk.names

        return forked(run)

    def resumed(self, place: Path) -> End:
        return forked(lambda: train(self.base, place, self.kind, max_steps=STEPS, resume=True))

    def expect_whole(self, place: Path) -> None:
        """A resumed run ends as the uninterrupted one, with every step logged once and nothing left over."""
        end = self.resumed(place)
        assert (end.code, end.error) == (0, "")
        assert end.value == self.straight
        assert steps_logged(place) == list(range(1, STEPS + 1))
        assert not [path.name for path in place.iterdir() if path.name in (".staging", ".replaced")]
        assert {path.name for path in place.glob("checkpoint-*")} == {"checkpoint-6", f"checkpoint-{STEPS}"}


def killer(step: int) -> Any:
    """Ends the process for good as that step's save is done."""
    import os

    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    return Killer()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Runs]:
    made: dict[str, Runs] = {}
    base = make_base(tmp_path_factory.mktemp("base"))

    def of(kind: str) -> Runs:
        if kind not in made:
            made[kind] = Runs(base, tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return of


def sweep(runs: Runs, save: str, place: Path, points: Callable[[int], list[int]]) -> int:
    names = runs.killed(save, place, None).value
    assert any("manifest.json" in name for name in names)
    assert any(name.startswith("os.rename") for name in names)
    for at in points(len(names)):
        assert runs.killed(save, place, at).code == KILLED, (at, names[at - 1])
        runs.expect_whole(place)
    return len(names)


def test_killed_at_some_writes_of_a_rotating_save(runs: Callable[[str], Runs], tmp_path: Path) -> None:
    sweep(runs("full"), "rotating", tmp_path / "run", lambda n: [n // 3, n - 6])


@pytest.mark.faults
@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_killed_at_every_write_of_a_save(
    kind: str, save: str, runs: Callable[[str], Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = sweep(runs(kind), save, tmp_path / "run", lambda n: list(range(1, n + 1)))
    with capsys.disabled():
        print(f"\n{kind}, {save} save: {count} of {count} points end bit-identical")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_killed_at_every_write_of_the_finished_model(
    kind: str, runs: Callable[[str], Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, place = runs(kind), tmp_path / "run"

    def run(at: int | None) -> list[str]:
        disk = Disk(at)
        trainer = make_trainer(whole.base, place, kind, max_steps=STEPS)
        trainer.train(resume_from_checkpoint=True)
        with disk.watched():
            trainer.save_model()
        return disk.names

    whole.before("rotating", place)
    names = forked(lambda: run(None)).value
    for at in range(1, len(names) + 1):
        whole.before("rotating", place)
        assert forked(lambda at=at: run(at)).code == KILLED  # type: ignore[misc]
        whole.expect_whole(place)
    with capsys.disabled():
        print(f"\n{kind}, finished model: {len(names)} of {len(names)} points end bit-identical")


def test_control_saves_of_transformers_do_not_survive_a_kill(runs: Callable[[str], Runs], tmp_path: Path) -> None:
    whole, place = runs("full"), tmp_path / "run"

    def stock(at: int | None) -> Any:
        from transformers import Trainer
        from transformers.trainer_utils import get_last_checkpoint

        from srpo.train.durable.trainer import DurableTrainer, Start

        def starting_point(self: Any, resume: Any) -> Start:
            last = get_last_checkpoint(str(place)) if resume else None
            return Start(Path(last) if last else None)

        DurableTrainer._save_checkpoint = Trainer._save_checkpoint  # type: ignore[method-assign]
        DurableTrainer._starting_point = starting_point  # type: ignore[method-assign]
        DurableTrainer.load_extra_state = lambda self, folder: None  # type: ignore[method-assign]
        if at is None:
            return train(whole.base, place, max_steps=STEPS, resume=True)
        disk = Disk(at or 10**9)
        with disk.watched():
            disk.pause()
            watch = during_save(disk, 4)
            train(whole.base, place, max_steps=STEPS, resume=True, callbacks=[watch])
        return disk.names

    names = forked(lambda: stock(0)).value
    halves = [i + 1 for i, name in enumerate(names) if name.startswith("halfway") or "trainer_state" in name]
    survived = []
    for at in halves[:3]:
        shutil.rmtree(place, ignore_errors=True)
        assert forked(lambda at=at: stock(at)).code == KILLED  # type: ignore[misc]
        survived.append(forked(lambda: stock(None)).value == whole.straight)
    assert survived == [False, False, False]


# ---------------------------------------------------------------------- at any moment


def killed_now_and_then(whole: Runs, place: Path, seed: int, kills: int) -> None:
    draw = random.Random(seed)

    def run(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, which nobody handles, after this much computing
        train(whole.base, place, whole.kind, max_steps=STEPS, resume=True)

    for _ in range(kills):
        end = forked(lambda: run(draw.uniform(0.1, 1.5)))
        assert end.code in (0, -signal.SIGPROF), end.error
    if not (place / "model.safetensors").exists() or whole.kind == "lora":
        whole.expect_whole(place)
    assert weights_hash(place) == whole.straight
    assert steps_logged(place) == list(range(1, STEPS + 1))


def test_killed_at_a_random_moment_or_two(runs: Callable[[str], Runs], tmp_path: Path) -> None:
    killed_now_and_then(runs("full"), tmp_path / "run", seed=0, kills=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_moments(seed: int, runs: Callable[[str], Runs], tmp_path: Path) -> None:
    killed_now_and_then(runs("lora" if seed % 2 else "full"), tmp_path / "run", seed, kills=3)


def test_the_killed_runs_have_dropout_and_accumulation() -> None:
    assert SETTINGS["gradient_accumulation_steps"] == 2
    assert SETTINGS["disable_dropout"] is False
