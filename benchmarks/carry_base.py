"""Trains a base of the carry task with any settings and prints its greedy exact answers on both splits.

python -m benchmarks.carry_base --batch 64 --steps 1600 --learning_rate 2e-3

`--write FILE --threads 1` writes the trained base as `srpo demo` ships it, instead of evaluating it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import fields
from pathlib import Path

import torch

from srpo.revise.reviser import Reviser
from srpo.tasks.carry import SPLITS, BaseConfig, sums, train_base
from srpo.tasks.carry_run import make_base
from srpo.tasks.shipped_base import write_base


def main() -> None:
    """Trains, draws greedily, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in fields(BaseConfig):
        parser.add_argument(f"--{each.name}", type=type(each.default), default=each.default)
    parser.add_argument("--prompts", type=int, default=1000, help="sums per split")
    parser.add_argument("--write", default="", help="file for the trained weights in float16")
    args = vars(parser.parse_args())
    prompts, file = args.pop("prompts"), args.pop("write")
    config = BaseConfig(**args)
    print(config)
    if file:
        write(Path(file), config)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder), config)
        reviser = Reviser(folder, batch_size=500)
        for split in SPLITS:
            rows = sums(prompts, split, digits=config.digits, seed=77)
            trails = reviser.revise(rows, 0, temperature=0.0, max_new_tokens=config.digits + 2)
            exact = sum(trail.after(0).text == trail.meta["gold"] for trail in trails) / prompts
            print(f"{split}: {100 * exact:.1f} % exact, greedy, {prompts} sums")


def write(file: Path, config: BaseConfig) -> None:
    """Trains a base and writes it as the package ships it."""
    torch.set_num_threads(config.threads)
    losses = []
    for step, loss, model in train_base(config):  # noqa: B007  the model of the last step is written
        losses.append(loss)
        if step % 200 == 0:
            print(f"step {step} of {config.steps}, loss {loss:.3f}", flush=True)
    write_base(file, model, config, losses)


if __name__ == "__main__":
    main()
