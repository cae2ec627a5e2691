"""Stops training at a nan or an infinity before the optimiser uses it, and names the rows it came from.

One such number turns every weight into nan in one step, and a log that leaves nan out of its mean then shows a loss of
0.0. The guard checks the log-probs and the loss of every micro-batch, and the gradients, before the optimiser steps.
The checks of training stay on the device until the end of the step (end_of_step.py); those of evaluation are read at
once. Processes compare their findings once a step and stop together.

Axes: B pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srpo.disk import write_file
from srpo.errors import ConfigError, NonFiniteError
from srpo.maths.objective import LossOutput, SixLogps
from srpo.sequences.tree import PrefixTree
from srpo.train.first_steps import FirstStep
from srpo.train.metrics import add_line

NONFINITE_FILE = "nonfinite.json"
_FIX = "the optimiser did not step; lower the learning rate, or inspect these rows with `srpo check`"


@dataclass(frozen=True)
class _MicroBatch:
    """One micro-batch of the current step, kept for the report in case a number is not finite.

    Attributes:
        rows, where: row numbers of the pairs in the data set, and their places in its file.
        trees: their token sequences.
        policy, reference, output: their log-probs and losses.
        bad_B: True for pairs with a nan or an infinity.
    """

    rows: list[int]
    where: list[str]
    trees: Sequence[PrefixTree]
    policy: SixLogps
    reference: SixLogps
    output: LossOutput
    bad_B: Tensor


class Guard:
    """Checks the log-probs, losses and gradients of one process for nan and infinity.

    Args:
        folder: run folder; the report of a stop is written here.
        process: index of this process; None if there is only one.
        anywhere: returns whether its argument is true in any process; all processes call it at the same points.
        defers: True reads the checks of training once, at the end of a step. False is for DeepSpeed, whose backward
            pass includes the optimiser's step.

    Attributes:
        first: further checks of the run's first step; None once that is over.

    Example:
        >>> guard = Guard(Path("/tmp"), None, lambda mine: mine)
        >>> guard.expect_finite_gradients(torch.nn.Linear(1, 1), 0.5, step=3)
    """

    def __init__(
        self, folder: Path, process: int | None, anywhere: Callable[[bool], bool], *, defers: bool = True
    ) -> None:
        self._folder, self._process, self._anywhere, self._defers = folder, process, anywhere, defers
        self._since_step: list[_MicroBatch] = []
        self._found: tuple[str, _MicroBatch, list[bool]] | None = None
        self.first: FirstStep | None = None

    def expect_finite(
        self, inputs: dict[str, Any], policy: SixLogps, reference: SixLogps, output: LossOutput, *, step: int
    ) -> None:
        """Checks a micro-batch for nan and infinity.

        The result is read later, by `settle_step`, in training if `defers` is True. In all other cases it is read here;
        with several processes `settle` then raises the error, so that they stop together.

        Args:
            inputs: the collated batch.
            policy, reference: log-probs of the batch.
            output: losses of the batch.
            step: the coming optimiser step, from 1.

        Raises:
            NonFiniteError: a number is not finite; only for a result that is read here, with one process.
        """
        rows = [int(row) for row in inputs["row"]]
        logps = (policy.detach(), reference)
        batch = _MicroBatch(rows, inputs["where"], inputs["trees"], *logps, output, _bad(inputs, *logps, output))
        if torch.is_grad_enabled():
            self._since_step.append(batch)
            if self.first is not None and step == 1:
                self.first.add(inputs["trees"], policy, reference)
            if self._defers:
                return
        self._note(batch, batch.bad_B.tolist())
        if self._process is None:
            self.settle(step=step)

    def _note(self, batch: _MicroBatch, bad: list[bool]) -> None:
        """Remembers a micro-batch for the report if it is the first with a non-finite number (`bad`, by pair)."""
        if any(bad) and self._found is None:
            what = f"the loss is {batch.output.loss.item()} for {_some(list(compress(batch.where, bad)))}"
            self._found = (what, batch, bad)

    def flags(self, device: torch.device) -> Tensor:
        """Returns the results of this step's checks, not read yet, as one tensor on `device`; True means not finite.

        It has an element per pair, if `defers` is True, and a last one for the checks that were read before.
        """
        unread = [batch.bad_B.to(device) for batch in self._since_step] if self._defers else []
        return torch.cat([*unread, torch.full((1,), self._found is not None, device=device)])

    def settle_step(self, flags: list[bool], anywhere: bool, *, step: int) -> None:
        """Stops the training, by an error and a report, if any process has found a nan or an infinity in this step.

        Args:
            flags: the results that the method `flags` returned, read.
            anywhere: True if a result of any process is.
            step: the optimiser step, from 1.

        Raises:
            NonFiniteError: `anywhere` is True.
        """
        marks = iter(flags[:-1])
        for batch in self._since_step if self._defers else []:
            self._note(batch, list(islice(marks, len(batch.rows))))
        if anywhere:
            self._stop_at_found(step)

    def settle(self, *, step: int) -> None:
        """Stops training or evaluation if a micro-batch of any process had a nan or an infinity.

        Asks all processes, so all must call it equally often.

        Raises:
            NonFiniteError: a process has found one.
        """
        if self._anywhere(self._found is not None):
            self._stop_at_found(step)

    def _stop_at_found(self, step: int) -> None:
        found, self._found = self._found, None
        self._since_step = []
        what, batch, bad = found or ("", None, [])
        details = {"loss": _plain(batch.output.loss.item())} if batch else {}
        self._stop(what, [batch] if batch else [], [bad], step, details)

    def expect_finite_gradients(self, model: nn.Module, norm: float | Tensor | None, *, step: int) -> None:
        """Checks the gradients for nan and infinity before the optimiser steps.

        Args:
            norm: norm of all gradients; not finite if a gradient is not, or if the norm overflows. None checks nothing.

        Raises:
            NonFiniteError: the norm is not finite.
        """
        batches, self._since_step = self._since_step, []
        size = math.nan if norm is None else float(norm)
        if math.isfinite(size) or norm is None:
            return
        named = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        names = [name for name, grad in named if not bool(torch.isfinite(grad).all())][:10]
        where = [each for batch in batches for each in batch.where]
        what = f"the gradient of {names[0] if names else 'all weights together'} is not finite after {_some(where)}"
        found = {"gradient_norm": _plain(size), "gradients": names}
        self._stop(what, batches, [[True] * len(batch.rows) for batch in batches], step, found)

    def forget(self) -> None:
        """Ends the checks of a step without a check of its gradients.

        It is for training with a loss scaler, which itself skips steps with infinite gradients.
        """
        self._since_step = []

    def _stop(
        self, what: str, batches: list[_MicroBatch], bad: list[list[bool]], step: int, found: dict[str, Any]
    ) -> None:
        if not self._process:
            add_line(self._folder, {"step": step, "loss" if torch.is_grad_enabled() else "eval_loss": math.nan})
        if not what:
            raise NonFiniteError("a number in another process is not finite", where=f"step {step}", fix=_FIX)
        name = NONFINITE_FILE if self._process is None else f"process-{self._process}-{NONFINITE_FILE}"
        rows = [row for batch, marks in zip(batches, bad, strict=True) for row in _rows(batch, marks)]
        report = {"step": step, "what": what, **found, "rows": rows}
        write_file(self._folder / name, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        raise NonFiniteError(f"{what}; details are in {self._folder / name}", where=f"step {step}", fix=_FIX)


def expect_finite_weights(model: nn.Module, *, step: int) -> None:
    """Checks that all weights are finite before a save: the optimiser's own step may have overflowed.

    Raises:
        NonFiniteError: a weight is not finite.
    """
    for name, p in model.named_parameters():
        # One pass: a finite sum means that all are finite; an infinite sum may be an overflow of finite ones.
        if p.requires_grad and not (p.detach().sum().isfinite() or p.detach().isfinite().all()):
            fix = "nothing was saved; resume from the previous checkpoint with a lower learning rate"
            raise NonFiniteError(f"the weight {name} is not finite", where=f"step {step}", fix=fix)


def expect_vocabulary(policy: nn.Module, reference: nn.Module, largest: int) -> None:
    """Checks that both models have an embedding for every token id, and vocabularies of one size.

    Args:
        largest: the largest id of the training rows.

    Raises:
        ConfigError: an id is too large for a model, or the sizes differ.
    """
    for name, model in (("model", policy), ("ref_model", reference)):
        known = _vocabulary(model)
        if known is not None and largest >= known:
            problem = f"its vocabulary has {known} tokens, but the rows contain token id {largest}"
            raise ConfigError(problem, where=name, expected="the model that the tokenizer belongs to")
    ours, theirs = _vocabulary(policy), _vocabulary(reference)
    if ours != theirs:
        problem = f"its vocabulary has {theirs} tokens, the model's has {ours}"
        raise ConfigError(problem, where="ref_model", expected="a reference with the same vocabulary as the model")


def _vocabulary(model: nn.Module) -> int | None:
    embeddings: Any = getattr(model, "get_input_embeddings", None)
    return getattr(embeddings(), "num_embeddings", None) if embeddings else None


def _bad(inputs: dict[str, Any], policy: SixLogps, reference: SixLogps, output: LossOutput) -> Tensor:
    """Returns booleans [B]: True for a pair with a log-prob or loss that is not finite, among those that are used."""
    read = 2 if len(inputs["trees"][0].answers) == 2 else 6
    columns = [*policy[:read], *reference[:read], output.generation, output.improvement]
    return ~torch.isfinite(torch.stack([column.detach() for column in columns])).all(0)


def _rows(batch: _MicroBatch, marks: list[bool]) -> list[dict[str, Any]]:
    """Returns the report on those rows of a micro-batch that `marks` selects: place, log-probs, lengths in tokens."""
    found = []
    for i in compress(range(len(marks)), marks):
        chosen, rejected, *_ = sequences = batch.trees[i].unpack()
        numbers = {
            name: {key: _plain(column[i].item()) for key, column in six._asdict().items()}
            for name, six in (("policy", batch.policy), ("reference", batch.reference))
        }
        tokens = {
            "prompt": len(chosen.context),
            "chosen": len(chosen.answer),
            "rejected": len(rejected.answer),
            "longest": max(len(each.context) + len(each.answer) for each in sequences),
        }
        found.append({"row": batch.rows[i], "where": batch.where[i], **numbers, "tokens": tokens})
    return found


def _plain(value: float) -> float | str:
    """A finite number unchanged, or the name of a nan or an infinity, which JSON cannot hold."""
    return value if math.isfinite(value) else str(value)


def _some(where: list[str]) -> str:
    """Returns text for messages that names the first five places of rows and counts the others."""
    return ", ".join(where[:5]) + (f" and {len(where) - 5} more" if len(where) > 5 else "")
