"""`srpo train`: settings file and flags → a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from srpo.cli.launch import launch, launched
from srpo.cli.output import quiet_transformers
from srpo.cli.training_flags import parse_training, training_groups
from srpo.errors import Interrupted

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from srpo.data.source import Source
    from srpo.train.arguments import RunArguments
    from srpo.train.trainer import SRPOTrainer

DESCRIPTION = """Train a model to draft and to revise from preference pairs.

srpo train --model_name_or_path my-sft-model --dataset_name pairs.jsonl --output_dir run
srpo train --config settings.yaml --beta 0.1
"""


def main(argv: list[str]) -> int:
    """Runs `srpo train`: starts or resumes a training, and prints its final loss; returns the exit code.

    Raises:
        Interrupted: stopped by a signal outside a training step; names the newest checkpoint.
    """
    found, _ = parse_training("train", DESCRIPTION, argv)
    if found["launch"] and not launched():
        return launch(found["launch"], found["processes"], ["train", *argv])
    quiet_transformers()
    config, model, data, run = training_groups(found)

    from srpo.signals import signals
    from srpo.train.run import train

    try:
        with signals.heard():
            final = train(config, model, data, run, command=["srpo", "train", *argv], watch=_watch)
    except KeyboardInterrupt:
        raise _interrupted(str(config.output_dir)) from None
    if "complete" in final:
        print(f"{config.output_dir}: already complete ({final['complete']} of {final['complete']})")
        return 0
    loss = f"train loss {final['train_loss']:.4f}" if "train_loss" in final else "all steps had been taken before"
    print(f"saved {config.output_dir} ({loss})")
    return 0


def _interrupted(folder: str) -> Interrupted:
    """The error to raise for an interruption outside the training loop; names the newest checkpoint in `folder`."""
    from srpo.train.durable.checkpoint import checkpoints

    if not (found := checkpoints(Path(folder))):
        return Interrupted(f"interrupted; no checkpoint is in {folder} yet", fix="run the same command again")
    message = f"interrupted; the newest checkpoint in {folder} is of step {found[0][0]}"
    return Interrupted(message, fix="the same command with --resume goes on from it")


def _watch(trainer: SRPOTrainer, source: Source, run: RunArguments) -> TrainerCallback:
    """Makes the callback that draws answers to evaluation prompts and judges them at every evaluation."""
    from srpo.evaluate.callback import RevisionEvaluation, Watch
    from srpo.judge.load import load_any_judge

    assert run.eval_revisions is not None  # checked by train, like the judge
    assert run.eval_judge
    watch = Watch(run.eval_revisions, run.eval_prompts, run.eval_temperature, run.eval_max_new_tokens)
    return RevisionEvaluation(trainer, source, load_any_judge(run.eval_judge), watch)
