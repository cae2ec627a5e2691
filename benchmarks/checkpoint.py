"""Cost of safety: a save that survives kills against a stock save, and the check for nan against a step.

    python -m benchmarks.checkpoint [--saves N] [--steps N] [--folder DIR]

A model of 25.5M weights in float32 with its optimiser's two moments: 0.3 GB a save. Both kinds of save go to the same
disk in turn, each first every other time, so that other work on the machine affects both. The output is the time for
which training waits, the time until a power cut can undo nothing, which continues behind the next steps, and the time
of a step with and without that work behind it. Medians with their quartiles; one thread computes; the background
work has threads of its own.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTHS = (350, 40)  # tokens of prompt and answer, as TL;DR's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=9, help="saves of each kind")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps under the guard")
    parser.add_argument("--folder", type=Path, default=None, help="where to save; default: the temporary folder")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=words.folder) as folder:
        measure(Path(folder), words.saves, words.steps)


def measure(folder: Path, saves: int, steps: int) -> None:
    import torch
    from transformers import PrinterCallback, Trainer

    torch.set_num_threads(1)
    trainer = make_trainer(folder / "run", steps)
    trainer.remove_callback(PrinterCallback)
    guard = Timed(trainer.guard, "expect_finite", "expect_finite_gradients")
    started = time.process_time()
    trainer.train()
    step = (time.process_time() - started) / steps
    watched = sum(guard.seconds) / steps
    print(f"guard: {1e3 * watched:.2f} ms of a step's {1e3 * step:.0f} ms of computing: {100 * watched / step:.2f} %")

    inner = Timed(Trainer, "_save_checkpoint", clock=time.perf_counter)
    found = [save_both(trainer, inner, 1000 + i, ours_first=i % 2 == 0) for i in range(saves)]
    stock, waits, added, whole, behind, alone = (list(column) for column in zip(*found, strict=True))
    size = 12 * sum(p.numel() for p in trainer.model.parameters())
    print(f"stock save of {size / 1e9:.2f} GB: {spread(stock)} s")
    print(f"ours, training waits: {spread(waits)} s; {spread(shares(waits, stock), 0)} % of the stock save")
    print(f"of it besides transformers' own saving: {spread(added, 3)} s; {spread(shares(added, stock), 1)} %")
    print(f"until it is on the disk: {spread(whole)} s; {spread(shares(whole, stock), 0)} %")
    print(f"a step with that behind it: {spread(behind)} s, without: {spread(alone)} s")


def save_both(trainer: Any, inner: Timed, step: int, *, ours_first: bool) -> tuple[float, ...]:
    """Saves a checkpoint with transformers' trainer and with srpo's, and returns six times in seconds.

    They are: the stock save; the time that training waits for srpo's save; the part of it that srpo adds to
    transformers' own; the time until srpo's save is on the disk; a step while srpo writes in the background; a step
    without that.
    """
    from transformers import Trainer

    run = Path(str(trainer.args.output_dir))
    trainer.state.global_step = step
    found: dict[str, float] = {}

    def stock() -> None:
        found["stock"] = seconds(lambda: Trainer._save_checkpoint(trainer, trainer.model, None))
        shutil.rmtree(run / f"checkpoint-{step}")

    def ours() -> None:
        found["waits"] = seconds(lambda: trainer._save_checkpoint(trainer.model, None))
        found["added"] = found["waits"] - inner.seconds[-1]
        found["whole"] = found["waits"] + seconds(trainer.background.settle)
        shutil.rmtree(run / f"checkpoint-{step}")

    for save in (ours, stock) if ours_first else (stock, ours):
        save()
    trainer._save_checkpoint(trainer.model, None)
    found["behind"] = seconds(lambda: one_step(trainer))
    trainer.background.settle()
    found["alone"] = seconds(lambda: one_step(trainer))
    shutil.rmtree(run / f"checkpoint-{step}")
    return tuple(found[name] for name in ("stock", "waits", "added", "whole", "behind", "alone"))


def one_step(trainer: Any) -> None:
    """Runs the forward and backward pass of one pair."""
    trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    trainer.model.zero_grad()


def shares(values: list[float], of: list[float]) -> list[float]:
    return [100 * value / whole for value, whole in zip(values, of, strict=True)]


class Timed:
    """Replaces functions of an object by ones that add the duration of each call to `seconds`."""

    def __init__(self, owner: Any, *names: str, clock: Callable[[], float] = time.process_time) -> None:
        self.seconds: list[float] = []
        for name in names:
            setattr(owner, name, self._around(getattr(owner, name), clock))

    def _around(self, work: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = clock()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds.append(clock() - before)

        return timed


def seconds(work: Callable[[], Any]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def make_trainer(folder: Path, steps: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from srpo import SRPOConfig, SRPOTrainer
    from srpo.tasks.carry import carry_tokenizer

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    prompt, answer = LENGTHS
    rows = [
        {
            "prompt": ("0123456789" * prompt)[: prompt + i],
            "chosen": "12" * (answer // 2),
            "rejected": "34" * (answer // 2),
        }
        for i in range(8)
    ]
    args = SRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=steps,
        per_device_train_batch_size=1,
        revision_template="plain",
    )
    return SRPOTrainer(LlamaForCausalLM(config), args=args, train_dataset=rows, processing_class=carry_tokenizer())


if __name__ == "__main__":
    main()
