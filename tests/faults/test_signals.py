"""Fault 14: a signal in any phase ends a run with 75, what there was committed and nothing named final."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srpo.revise import engines
from srpo.revise.trail import Answer, Trail
from srpo.train.durable.checkpoint import checkpoints, read
from tests.faults.dying import forked, make_base, make_trainer, steps_logged, train
from tests.warm_command import srpo_in_a_fork

STEPS = 4
PHASES = ("train_begin", "step_begin", "substep_end", "step_end", "log", "prediction_step", "evaluate", "epoch_end")
SHORT = ("train_begin", "substep_end", "evaluate")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    end = forked(lambda: train(folder / "base", folder / "run", **settings()))
    assert end.code == 0, end.error
    (folder / "straight").write_text(end.value)
    return folder


def settings() -> dict[str, Any]:
    from tests.train.plain import ROWS

    return {"max_steps": STEPS, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, "eval_rows": ROWS[:2]}


def hit(phase: str, step: int, number: int, times: int = 1) -> Any:
    """Sends this process a signal when training is there."""
    from transformers import TrainerCallback

    class Hit(TrainerCallback):
        def __init__(self) -> None:
            self.left = times

    def there(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= step and self.left:
            while self.left:
                self.left -= 1
                os.kill(os.getpid(), number)

    setattr(Hit, f"on_{phase}", there)
    return Hit()


@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=[pytest.mark.faults] * (name not in SHORT)) for name in PHASES]
)
def test_a_signal_in_any_phase(phase: str, place: Path, tmp_path: Path) -> None:
    number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[PHASES.index(phase) % 3]
    begun = phase != "train_begin"
    end = forked(lambda: train(place / "base", tmp_path, callbacks=[hit(phase, 2 * begun, number)], **settings()))
    assert end.code == 75, end.error
    assert signal.Signals(number).name in end.error
    if begun:
        ((step, saved),) = checkpoints(tmp_path)
        assert read(saved).step == step <= STEPS
        assert f"stopped after step {step} of {STEPS}; checkpoint-{step} is saved" in end.error
        assert "--resume" in end.error
    assert not (tmp_path / "model.safetensors").exists()
    again = forked(lambda: train(place / "base", tmp_path, resume=True, **settings()))
    assert (again.code, again.error) == (0, "")
    assert again.value == (place / "straight").read_text()
    assert steps_logged(tmp_path) == list(range(1, STEPS + 1))


def test_control_keeping_half_a_step_changes_the_weights(place: Path, tmp_path: Path) -> None:
    def run() -> str:
        from srpo.train.durable import stop_and_resume

        stop_and_resume.set_generators = lambda found: None
        return train(place / "base", tmp_path, callbacks=[hit("substep_end", 2, signal.SIGTERM)], **settings())

    assert forked(run).code == 75
    again = forked(lambda: train(place / "base", tmp_path, resume=True, **settings()))
    assert again.code == 0
    assert again.value != (place / "straight").read_text()


def test_a_signal_in_the_last_step_saves_no_final_model(place: Path, tmp_path: Path) -> None:
    hits = [hit("step_end", STEPS, signal.SIGTERM)]
    assert forked(lambda: train(place / "base", tmp_path, callbacks=hits, **settings())).code == 75
    assert not (tmp_path / "model.safetensors").exists()
    again = forked(lambda: train(place / "base", tmp_path, resume=True, **settings()))
    assert again.value == (place / "straight").read_text()


def test_a_second_signal_exits_at_once(place: Path, tmp_path: Path) -> None:
    hits = [hit("substep_end", 2, signal.SIGTERM, times=2)]
    end = forked(lambda: train(place / "base", tmp_path, callbacks=hits, **settings()))
    assert (end.code, end.error) == (75, "")  # nothing was raised and nothing waited for
    assert checkpoints(tmp_path) == []


def test_handlers_are_restored(place: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    make_trainer(place / "base", tmp_path, max_steps=1, save_strategy="no").train()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.faults
def test_a_signal_before_training(place: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import srpo.train.trainer\n"
        "from srpo.cli.main import main\n"
        "srpo.train.trainer.SRPOTrainer.__init__ = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM)\n"
        "main()\n"
    )
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "utf-8")
    words = ["train", "--model_name_or_path", str(place / "base"), "--dataset_name", str(pairs), "--output_dir"]
    command = [sys.executable, "-c", code, *words, str(tmp_path / "run"), "--use_cpu", "true", "--report_to", "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    said = f"srpo: error: interrupted; no checkpoint is in {tmp_path / 'run'} yet; run the same command again"
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- verbs that do not train

STOPS = """
import os, signal, sys, time, types
from srpo.cli import main as command

def main(argv):
    number = getattr(signal, argv[0])
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    finally:
        if argv[1:]:
            os.kill(os.getpid(), number)
            time.sleep(60)

verb = types.ModuleType("srpo.cli.stop")
verb.main = main
sys.modules[verb.__name__] = verb
command.VERBS["stop"] = "stops"
command.main()
"""


def stopped(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, "--quiet", *words], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_any_verb_ends_with_75(name: str) -> None:
    done = stopped(STOPS, "stop", name)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", f"srpo: interrupted by {name}\n")
    at_once = stopped(STOPS, "stop", name, "twice")
    assert (at_once.returncode, at_once.stdout, at_once.stderr) == (75, "", "")


def test_control_without_the_guard_sigterm_kills() -> None:
    taken_away = "import srpo.signals as s; s.SIGNALS = ()\ncommand.main()"
    done = stopped(STOPS.replace("command.main()", taken_away), "stop", "SIGTERM")
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_forked_workers_die_by_the_signal_and_handlers_are_restored() -> None:
    from srpo.signals import signals

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with signals.heard(until_exit=True):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_file_of_trails_keeps_what_is_finished(tmp_path: Path) -> None:
    class Stopped:
        def trails(self, rows: list[Any], settings: Any, **how: Any) -> Iterator[Trail]:
            yield Trail(rows[0].prompt, (Answer("2", 1),))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    def stop() -> None:
        vars(engines)["make_reviser"] = lambda *args, **settings: Stopped()

    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "1+1="}\n{"prompt": "2+2="}\n', "utf-8")
    words = ["revise", "--model_name_or_path", "m", "--input", str(prompts), "--output", str(out)]
    done = srpo_in_a_fork(*words, before=stop)
    assert done.returncode == 75, done.stderr
    said = f"srpo: error: interrupted; finished trails are in {out}; the same command goes on\n"
    assert done.stderr.endswith(said)
    assert out.read_text("utf-8").count("\n") == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_during_imports(name: str, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "class Hit:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'transformers': os.kill(os.getpid(), signal.{name})\n"
        "sys.meta_path.insert(0, Hit())\n"
        "from srpo.cli.main import main\n"
        "main()\n"
    )
    words = ["train", "--model_name_or_path", "m", "--dataset_name", "d.jsonl", "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 75
    assert f"interrupted by {name}" in done.stderr or "interrupted; no checkpoint is in" in done.stderr


def test_the_error_names_the_newest_checkpoint(tmp_path: Path) -> None:
    from srpo.cli.train import _interrupted

    assert "no checkpoint is in" in str(_interrupted(str(tmp_path)))
    (tmp_path / "checkpoint-3").mkdir()
    assert "is of step 3; the same command with --resume goes on" in str(_interrupted(str(tmp_path)))
