"""Runs that die on purpose: a training run in a fork of this warm process, killed at the nth thing it does to the disk.

A fork costs a tenth of a second where a command costs ten. What counts as a thing done to the disk: opening a file to
write, renaming, making and removing, as Python's own audit reports them; and before, halfway and after each file that
is written from outside Python, by torch and safetensors.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.train.plain import ROWS, settings

SETTINGS: dict[str, Any] = {
    "max_steps": 8,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "learning_rate": 0.01,
    "disable_dropout": False,
}


def make_base(folder: Path) -> Path:
    """A model of one layer with dropout in its attention."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_tiny_llama(initializer_range=0.15, attention_dropout=0.1, num_key_value_heads=1, **small).save_pretrained(
        folder
    )
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def make_trainer(base: Path, folder: Path, kind: str = "full", **changes: Any) -> Any:
    """A trainer of all weights, or of a LoRA adapter with dropout."""
    from srpo import SRPOTrainer

    adapter = None
    if kind == "lora":
        from peft import LoraConfig

        adapter = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, task_type="CAUSAL_LM", target_modules=["q_proj"])
    callbacks, eval_rows = changes.pop("callbacks", None), changes.pop("eval_rows", None)
    rows = changes.pop("rows", ROWS)
    args = settings(folder, **{**SETTINGS, **changes})
    return SRPOTrainer(
        str(base), args=args, train_dataset=rows, eval_dataset=eval_rows, peft_config=adapter, callbacks=callbacks
    )


def train(base: Path, folder: Path, kind: str = "full", *, resume: bool = False, **changes: Any) -> str:
    """Trains to the end and saves; sha256 of the weights that it ends with."""
    trainer = make_trainer(base, folder, kind, **changes)
    trainer.train(resume_from_checkpoint=resume)
    if not trainer.start.complete:
        trainer.save_model()
    return weights_hash(folder)


def weights_hash(folder: Path) -> str:
    import hashlib

    (file,) = folder.glob("*model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def steps_logged(folder: Path) -> list[int]:
    """The step of every logged loss, in the order of the file."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["step"] for line in lines if "loss" in line]


# ---------------------------------------------------------------------- forks


@dataclass(frozen=True)
class End:
    """How a fork ended.

    Attributes:
        code: its exit code; the negative number of the signal that killed it.
        value: what its work returned.
        error: the kind and message of what it raised; "" for nothing.
    """

    code: int
    value: Any
    error: str


def forked(work: Callable[[], Any], *, say: Path | None = None) -> End:
    """Does the work in a fork; its output goes to the file `say` or nowhere."""
    return ended(*started(work, say=say))


def whole_and_begun(folder: Path, steps: int) -> Path:
    """Makes in a folder: `base`; `whole`, a whole run; `straight`, the hash of what it ends with; and `begun`, the same
    run stopped after its save of step 2."""
    make_base(folder / "base")
    end = forked(lambda: train(folder / "base", folder / "whole", max_steps=steps))
    assert end.code == 0, end.error
    (folder / "straight").write_text(end.value)
    shutil.copytree(folder / "whole" / "checkpoint-2", folder / "begun" / "checkpoint-2")
    return folder


def started(work: Callable[[], Any], *, say: Path | None = None) -> tuple[int, int]:
    """Begins the work in a fork; its process id, and where its answer is read from."""
    from srpo.errors import SRPOError

    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code, answer = 0, {"value": None, "error": ""}
    gc.callbacks.clear()  # hypothesis sets one, and would swallow a Ctrl-C that arrives during a pass
    try:
        os.close(read)
        sink = os.open(say or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        answer["value"] = work()
    except SRPOError as error:
        code, answer["error"] = error.exit_code, f"{type(error).__name__}: {error}"
    except BaseException as error:
        import traceback

        code, answer["error"] = 1, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    finally:
        sys.stdout.flush()
        os.write(write, json.dumps(answer).encode())
        os._exit(code)


def ended(pid: int, read: int) -> End:
    """Waits for a fork."""
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answer = json.loads(text) if text else {"value": None, "error": ""}
    return End(code, answer["value"], answer["error"])


def together(work: Callable[[int], Any], *, dies: int | None = None, processes: int = 2) -> list[End]:
    """Runs it in two processes or more, given their rank; when the one of two that dies is dead, so is the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ranked(rank: int) -> Any:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        assert PartialState._shared_state == {}
        return work(rank)

    running = [started(lambda rank=rank: ranked(rank)) for rank in range(processes)]  # type: ignore[misc]
    if dies is None:
        return [ended(*each) for each in running]
    first = ended(*running[dies])
    os.kill(running[1 - dies][0], signal.SIGKILL)
    other = ended(*running[1 - dies])
    return [first, other] if dies == 0 else [other, first]


# ---------------------------------------------------------------------- events


class Disk:
    """Counts what is done to the disk, and does something at the nth time.

    Attributes:
        names: what was done, in order.
        behind: how the name of a thread begins that counts all the time; the main thread can pause.
    """

    def __init__(self, at: int | None = None, then: str = "die") -> None:
        self.names: list[str] = []
        self.behind = "checkpoint-"
        self._at, self._then, self._live = at, then, False
        self._one_by_one = threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Counts inside; once in a process, for an audit hook cannot be taken off."""
        import peft.peft_model
        import safetensors.torch
        import torch
        import transformers.modeling_utils

        sys.addaudithook(self._heard)
        for module, name in (
            (torch, "save"),
            (safetensors.torch, "save_file"),
            (transformers.modeling_utils, "safe_save_file"),
            (peft.peft_model, "safe_save_file"),
        ):
            setattr(module, name, self._around(getattr(module, name), name))
        self._live = True
        try:
            yield
        finally:
            self._live = False

    def pause(self) -> None:
        self._live = False

    def go_on(self) -> None:
        self._live = True

    def _counts(self) -> bool:
        thread = threading.current_thread()
        return self._live if thread is threading.main_thread() else thread.name.startswith(self.behind)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._counts():
            return
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path, mode, flags = os.fsdecode(args[0]), args[1], args[2]
            writes = (
                any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))
            )
            if writes and "/dev/" not in path:
                self._happens(f"open {os.path.basename(path)}")
        elif event == "os.mkdir" and self._then != "die" and os.path.isdir(args[0]):
            pass  # it is there, and takes no room; a process that dies may die here, whoever made it first
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            self._happens(f"{event} {os.path.basename(os.fsdecode(args[0]))}")

    def _around(self, save: Callable[..., Any], name: str) -> Callable[..., Any]:
        def saved(*args: Any, **kwargs: Any) -> Any:
            place = args[1] if len(args) > 1 else kwargs.get("f", kwargs.get("filename"))
            self._happens(f"before {name} {os.path.basename(str(place))}")
            result = save(*args, **kwargs)
            in_part = isinstance(place, str | os.PathLike)  # otherwise an open file, whose buffer a kill loses
            if in_part and self._live and len(self.names) + 1 == self._at and self._then == "die":
                os.truncate(place, os.path.getsize(place) // 2)
            self._happens(f"halfway {name} {os.path.basename(str(place))}")
            self._happens(f"after {name} {os.path.basename(str(place))}")
            return result

        return saved

    def _happens(self, name: str) -> None:
        if not self._counts():
            return
        with self._one_by_one:
            self.names.append(name)
            if len(self.names) == self._at:
                if self._then == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def during_save(disk: Disk, step: int) -> Any:
    """A callback that has the disk watched while that step's checkpoint is made, rotation included: what the run does
    from the end of the step to the next step, and all that is done behind it."""
    from transformers import TrainerCallback

    disk.behind = f"checkpoint-{step}_"

    class Watching(TrainerCallback):  # has no on_save: for one that had, the run would wait
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                disk.go_on()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            disk.pause()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            disk.pause()

    return Watching()
