"""A nan or an infinity stops training before the optimiser can spread it, and says which rows it came from.

Left alone, one such number turns every weight into nan in one step, and a log that leaves nan out of its mean shows a
loss of 0.0 from then on. Here it is looked for where it can first be seen: in the log-probs and the loss of every
micro-batch before its backward pass, and in the gradients before every step. Several processes may have cut their
micro-batches into unlike numbers of pieces, so they ask each other once a step, and stop together.

Axes: B pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srpo.disk import write_file
from srpo.errors import ConfigError, NonFiniteError
from srpo.maths.objective import LossOutput, SixLogps
from srpo.sequences.tree import PrefixTree
from srpo.train.metrics import add_line

NONFINITE_FILE = "nonfinite.json"
_FIX = "no optimiser step was taken with it; lower the learning rate, or look at these rows with `srpo check`"


@dataclass(frozen=True)
class _Scored:
    """One micro-batch: rows of the data set, where they stand, their trees, and what was computed of them."""

    rows: list[int]
    where: list[str]
    trees: Sequence[PrefixTree]
    policy: SixLogps
    reference: SixLogps
    output: LossOutput


class Guard:
    """Watches one process's numbers.

    Args:
        folder: where the report of a stop goes.
        process: which of several this is; None for the only one.
        anywhere: whether a thing is so in any process; every process asks at the same points.

    Example:
        >>> guard = Guard(Path("/tmp"), None, lambda mine: mine)
        >>> guard.expect_finite_gradients(torch.nn.Linear(1, 1), 0.5, step=3)
    """

    def __init__(self, folder: Path, process: int | None, anywhere: Callable[[bool], bool]) -> None:
        self._folder, self._process, self._anywhere = folder, process, anywhere
        self._since_step: list[_Scored] = []
        self._found: tuple[str, _Scored, list[bool]] | None = None

    def expect_finite(
        self, inputs: dict[str, Any], policy: SixLogps, reference: SixLogps, output: LossOutput, *, step: int
    ) -> None:
        """Looks at a micro-batch before its backward pass.

        Args:
            inputs: the collated batch.
            step: the optimiser step it is for, from 1.

        Raises:
            NonFiniteError: here or in another process.
        """
        scored = _Scored(inputs["row"].tolist(), inputs["where"], inputs["trees"], policy.detach(), reference, output)
        if torch.is_grad_enabled():
            self._since_step.append(scored)
        bad = (~_finite(scored)).tolist()
        if any(bad) and self._found is None:
            what = f"the loss is {output.loss.item()} for {_listed(scored.where, bad)}"
            self._found = (what, scored, bad)
        if self._process is None:
            self.settle(step=step)

    def settle(self, *, step: int) -> None:
        """Stops if any process has found something; all of them come here equally often.

        Raises:
            NonFiniteError: one has.
        """
        found, self._found = self._found, None
        if self._anywhere(found is not None):
            what, scored, bad = found or ("", None, [])
            lost = {"loss": _plain(scored.output.loss.item())} if scored else {}
            self._stop(what, [scored] if scored else [], [bad], step, lost)

    def expect_finite_gradients(self, model: nn.Module, norm: float | Tensor | None, *, step: int) -> None:
        """Looks at the gradients before the optimiser does; their norm is finite exactly when they are, or too large
        to clip.

        Raises:
            NonFiniteError: they are not.
        """
        scored, self._since_step = self._since_step, []
        if self._process is not None:
            self.settle(step=step)
        size = math.nan if norm is None else float(norm)
        if math.isfinite(size) or norm is None:
            return
        named = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        names = [name for name, grad in named if not bool(torch.isfinite(grad).all())][:10]
        where = [each for batch in scored for each in batch.where]
        what = f"the gradient of {names[0] if names else 'all weights together'} is not finite after {_some(where)}"
        found = {"gradient_norm": _plain(size), "gradients": names}
        self._stop(what, scored, [[True] * len(batch.rows) for batch in scored], step, found)

    def forget(self, *, step: int) -> None:
        """In the place of looking at the gradients, where a scaler does.

        Raises:
            NonFiniteError: a process has found something before.
        """
        self._since_step = []
        if self._process is not None:
            self.settle(step=step)

    def _stop(self, what: str, scored: list[_Scored], bad: list[list[bool]], step: int, found: dict[str, Any]) -> None:
        if not self._process:
            add_line(self._folder, {"step": step, "loss" if torch.is_grad_enabled() else "eval_loss": math.nan})
        if not what:
            raise NonFiniteError("another process met a number that is not finite", where=f"step {step}", fix=_FIX)
        name = NONFINITE_FILE if self._process is None else f"process-{self._process}-{NONFINITE_FILE}"
        rows = [row for batch, marks in zip(scored, bad, strict=True) for row in _rows(batch, marks)]
        report = {"step": step, "what": what, **found, "rows": rows}
        write_file(self._folder / name, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        said = f"step {step}"
        raise NonFiniteError(f"{what}; details are in {self._folder / name}", where=said, fix=_FIX)


def expect_finite_weights(model: nn.Module, *, step: int) -> None:
    """What is committed can be gone on with: the optimiser's own step may have overflowed.

    Raises:
        NonFiniteError: a weight is not a number.
    """
    for name, p in model.named_parameters():
        # A sum is finite only if all are, and is had in one pass; one that is not may have overflowed.
        if p.requires_grad and not (p.detach().sum().isfinite() or p.detach().isfinite().all()):
            fix = "nothing was saved; resume from the checkpoint before with a lower learning rate"
            raise NonFiniteError(f"the weight {name} is not finite", where=f"step {step}", fix=fix)


def expect_vocabulary(policy: Any, reference: Any, largest: int) -> None:
    """Both models must know every id of the rows, and by the same rows of their tables.

    Args:
        largest: the largest id of the training rows.

    Raises:
        ConfigError: they do not.
    """
    for name, model in (("model", policy), ("ref_model", reference)):
        known = _vocabulary(model)
        if known is not None and largest >= known:
            problem = f"knows {known} tokens, and the rows hold the id {largest}"
            raise ConfigError(problem, where=name, expected="the model that the tokenizer belongs to")
    ours, theirs = _vocabulary(policy), _vocabulary(reference)
    if ours != theirs:
        problem = f"knows {theirs} tokens, and the model {ours}"
        raise ConfigError(problem, where="ref_model", expected="a reference with the model's own vocabulary")


def _vocabulary(model: Any) -> int | None:
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(table, "num_embeddings", None)


def _finite(scored: _Scored) -> Tensor:
    """[B], whether all that was computed of a row is a number; what an objective does not read may be nan."""
    read = 2 if len(scored.trees[0].answers) == 2 else 6
    columns = [*scored.policy[:read], *scored.reference[:read], scored.output.generation, scored.output.improvement]
    return torch.isfinite(torch.stack([column.detach() for column in columns])).all(0)


def _rows(batch: _Scored, marks: list[bool]) -> list[dict[str, Any]]:
    found = []
    for i, mark in enumerate(marks):
        if not mark:
            continue
        sequences = batch.trees[i].unpack()
        found.append(
            {
                "row": batch.rows[i],
                "where": batch.where[i],
                "policy": {name: _plain(column[i].item()) for name, column in batch.policy._asdict().items()},
                "reference": {name: _plain(column[i].item()) for name, column in batch.reference._asdict().items()},
                "tokens": {
                    "prompt": len(sequences[0].context),
                    "chosen": len(sequences[0].answer),
                    "rejected": len(sequences[1].answer),
                    "longest": max(len(each.context) + len(each.answer) for each in sequences),
                },
            }
        )
    return found


def _plain(value: float) -> float | str:
    """A number, or its name: JSON has no nan."""
    return value if math.isfinite(value) else str(value)


def _listed(where: list[str], bad: list[bool]) -> str:
    return _some([each for each, mark in zip(where, bad, strict=True) if mark])


def _some(where: list[str]) -> str:
    return ", ".join(where[:5]) + (f" and {len(where) - 5} more" if len(where) > 5 else "")
