"""What training measures of a batch, and the file it is logged to.

Axes: B pairs, M metrics.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from srpo.disk import write_file, writing
from srpo.maths.objective import LossOutput, Objective, SixLogps

METRICS_FILE = "metrics.jsonl"


def metrics(policy: SixLogps, reference: SixLogps, output: LossOutput, *, beta: float) -> dict[str, Tensor]:
    """[B] values by the name they are logged under.

    `rewards/*` and `logps/*` are TRL's: β times log-ratio, and log-probs in nats. Under `revision/` stand β times each
    of the six log-ratios, and the share of drafts, chosen or rejected, whose better revision the model prefers.
    Objectives that draft only have no `revision/`.
    """
    ratios = policy.minus(reference)
    columns = {
        "rewards/chosen": beta * ratios.w,
        "rewards/rejected": beta * ratios.l,
        "rewards/accuracies": (ratios.w > ratios.l).double(),
        "rewards/margins": beta * (ratios.w - ratios.l),
        "logps/chosen": policy.w,
        "logps/rejected": policy.l,
    }
    if policy.w_given_l.isnan().all():
        return columns
    right = (ratios.w_given_l > ratios.l_given_l).double() + (ratios.w_given_w > ratios.l_given_w).double()
    columns["revision/improvement_accuracy"] = right / 2
    columns["revision/generation_loss"] = output.generation
    columns["revision/improvement_loss"] = output.improvement
    for name, ratio_B in ratios._asdict().items():
        said = name.replace("w", "chosen", 1) if name[0] == "w" else name.replace("l", "rejected", 1)
        said = said.replace("given_w", "given_chosen").replace("given_l", "given_rejected")
        columns[f"revision/margins/{said}"] = beta * ratio_B
    return columns


def names_of(objective: Objective) -> set[str]:
    """What evaluations with an objective are measured by, without the data set's prefix: what a best checkpoint can be
    chosen by."""
    zero_B, none_B = torch.zeros(1), torch.full((1,), torch.nan)
    given_B = none_B if objective.drafts_only else zero_B
    six = SixLogps(zero_B, zero_B, given_B, given_B, given_B, given_B)
    columns = metrics(six, six, objective.loss(six, six, beta=1.0, alpha=0.5), beta=1.0)
    return {*columns, "loss", "runtime", "samples_per_second", "steps_per_second"}


class Measured:
    """What was measured since it was last asked for, apart for training and for evaluation."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Tensor]] = []
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, columns: dict[str, Tensor]) -> None:
        """[B] values of a piece of a batch, which stay where they are until all of it has been measured: processes
        may have cut theirs into unlike numbers of pieces, and gathering waits for all."""
        self._waiting.append(columns)

    def gather(self, accelerator: Any, mode: str) -> None:
        """Takes up a whole batch, from all processes."""
        waiting, self._waiting = self._waiting, []
        # gather_for_metrics cuts a padded last batch, and with it, in training, every micro-batch fetched together
        # with the last one; what pads a training batch is trained on, so there it counts.
        gather = accelerator.gather if mode == "train" else accelerator.gather_for_metrics
        values_BM = gather(torch.cat([torch.stack(list(columns.values()), 1) for columns in waiting]).detach())
        into = self._values.setdefault(mode, defaultdict(list))
        for name, values_B in zip(waiting[0], values_BM.T.tolist(), strict=True):
            into[name] += values_B

    def means(self, mode: str, prefix: str = "") -> dict[str, float]:
        """Means over rows of what was measured since the last call."""
        return {prefix + name: sum(values) / len(values) for name, values in self._values.pop(mode, {}).items()}

    def state(self, mode: str) -> dict[str, list[float]]:
        """What has not been asked for yet, as it can be written down."""
        return {name: list(values) for name, values in self._values.get(mode, {}).items()}

    def restore(self, mode: str, state: dict[str, list[float]]) -> None:
        """Goes back to what `state` told."""
        self._values[mode] = defaultdict(list, {name: list(values) for name, values in state.items()})


class MetricsFile(TrainerCallback):
    """Writes every log to metrics.jsonl in the run folder; a resumed run takes up where its checkpoint stands."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = Path(args.output_dir) / METRICS_FILE
        if state.is_world_process_zero and (state.log_history or file.exists()):
            write_file(file, "".join(_before(file, state)).encode())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            add_line(Path(args.output_dir), {"step": state.global_step, **logs})


def add_line(folder: Path, record: dict[str, Any]) -> None:
    """Adds to the metrics of a run.

    Raises:
        OutputError: it cannot be written.
    """
    file = folder / METRICS_FILE
    with writing(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def _before(file: Path, state: Any) -> list[str]:
    """The lines of everything before the step a run begins with: those its checkpoint remembers, whatever has become
    of the file, and what was logged of that same step after it was saved, such as the evaluation of its epoch."""
    remembered = [{"step": each["step"], **each} for each in state.log_history]
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.exists() and remembered else []
    later = [line for line in lines[len(remembered) :] if _step_of(line) == state.global_step]
    return [json.dumps(each) + "\n" for each in remembered] + [f"{line}\n" for line in later]


def _step_of(line: str) -> int:
    """The step of an evaluation's line; −1 for one that was torn when its run was killed, and for other lines."""
    try:
        record = json.loads(line)
        return int(record["step"]) if any(key.startswith("eval_") for key in record) else -1
    except (ValueError, KeyError, TypeError):
        return -1
