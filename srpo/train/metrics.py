"""Metrics of training and evaluation batches, and metrics.jsonl, the file they are logged to.

Axes: B pairs, M metrics.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.disk import write_file, writing
from srpo.maths.objective import LossOutput, Objective, SixLogps
from srpo.model.packed.spread import Spread
from srpo.model.packed.sums import wide

METRICS_FILE = "metrics.jsonl"
SAMPLED = ("kl/", "entropy/")  # prefixes of metrics that are nan for pairs without a sampled token


def metrics(
    policy: SixLogps, reference: SixLogps, output: LossOutput, *, beta: float, drafts_only: bool
) -> dict[str, Tensor]:
    """Computes the metrics of a batch of B pairs; returns each metric's values, [B], by name.

    `rewards/*` (β times log-ratio) and `logps/*` (nats) are TRL's. `revision/margins/*` is β times each of the six
    log-ratios. `revision/improvement_accuracy` is the share of a pair's two drafts for which the model prefers the
    chosen answer as revision. `*/reached` is the share of margins of at least 1/(2β) nats, the target of a pair without
    doubt. `revision/residual` is the signed residual of Eq. 16.

    Args:
        policy, reference: log-probs, summed over answer tokens or averaged, as the loss reads them.
        output: the losses of the batch.
        drafts_only: True leaves `revision/*` out.
    """
    ratios = policy.minus(reference)
    columns = {
        "rewards/chosen": beta * ratios.w,
        "rewards/rejected": beta * ratios.l,
        "rewards/accuracies": (ratios.w > ratios.l).double(),
        "rewards/margins": beta * (ratios.w - ratios.l),
        "rewards/reached": (beta * (ratios.w - ratios.l) >= 0.5).double(),
        "logps/chosen": policy.w,
        "logps/rejected": policy.l,
        "loss": output.per_pair.detach(),
        "beta": torch.full_like(policy.w, beta),
    }
    if drafts_only:
        return columns
    right = (ratios.w_given_l > ratios.l_given_l).double() + (ratios.w_given_w > ratios.l_given_w).double()
    columns["revision/improvement_accuracy"] = right / 2
    kept, corrected = (ratios.w_given_w - ratios.l_given_w, ratios.w_given_l - ratios.l_given_l)
    columns["revision/reached"] = ((beta * kept >= 0.5).double() + (beta * corrected >= 0.5).double()) / 2
    columns["revision/residual"] = beta * (ratios.w_given_l + ratios.w - ratios.l_given_w - ratios.l) - 1.0  # Eq. 16
    columns["revision/generation_loss"] = output.generation
    columns["revision/improvement_loss"] = output.improvement
    for name, ratio_B in ratios._asdict().items():
        answers = ["chosen" if letter == "w" else "rejected" for letter in name.split("_given_")]
        columns[f"revision/margins/{'_given_'.join(answers)}"] = beta * ratio_B
    return columns


def spread_metrics(
    policy: SixLogps, reference: SixLogps, ours: Spread, theirs: Spread, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Computes metrics of the next-token distributions of B pairs; returns each metric's values, [B], by name.

    `drift/chosen` and `drift/rejected` are log-ratios of drafts, `drift/chosen_revised` of both revisions to the chosen
    answer. `entropy/*` and `kl/*`, KL(policy ‖ reference), are means over the sampled tokens of a pair, or nan if none
    of its tokens was sampled. All these are in nats per answer token. `answer_tokens` is the mean length of the two
    answers.

    Args:
        policy, reference: log-probs summed over answer tokens.
        ours, theirs: next-token distributions of policy and reference on the same batch. `theirs` is empty for a cached
            reference; then `entropy/reference` and `kl/*` are left out.
        shape: number of pairs, and of sequences of a pair: 6, or 2 without revisions.
    """
    roles = {"drafts": slice(0, 2), "revisions": slice(2, 6)} if shape[1] == 6 else {"drafts": slice(0, 2)}
    count_BK, (entropy_BK, seen_BK) = ours.tokens(shape), ours.entropy(shape)
    columns = {
        "answer_tokens": count_BK[:, :2].mean(1),
        "drift/chosen": (policy.w - reference.w) / count_BK[:, 0],
        "drift/rejected": (policy.l - reference.l) / count_BK[:, 1],
    }
    if "revisions" in roles:
        gain_B = policy.w_given_w + policy.w_given_l - reference.w_given_w - reference.w_given_l
        columns["drift/chosen_revised"] = gain_B / (count_BK[:, 2] + count_BK[:, 4])
    for role, part in roles.items():
        columns[f"entropy/{role}"] = entropy_BK[:, part].sum(1) / seen_BK[:, part].sum(1)
    if not theirs.empty:
        columns["entropy/reference"] = theirs.entropy(shape)[0].sum(1) / seen_BK.sum(1)
        kl_BK, sampled_BK = ours.divergence(theirs, shape)
        for role, part in roles.items():
            columns[f"kl/{role}"] = kl_BK[:, part].sum(1) / sampled_BK[:, part].sum(1)
    return columns


def names_of(objective: Objective, *, cached: bool = False) -> set[str]:
    """Returns the names, without "eval_", of all metrics of an evaluation; any of them can choose the best checkpoint.

    Args:
        objective: the objective of the training.
        cached: True if the reference's log-probs are read from a cache; then `entropy/reference` and `kl/*` are absent.
    """
    zero_B, none_B = torch.zeros(1), torch.full((1,), torch.nan)
    given_B = none_B if objective.drafts_only else zero_B
    six = SixLogps(zero_B, zero_B, given_B, given_B, given_B, given_B)
    drafts = objective.drafts_only
    columns = metrics(six, six, objective.loss(six, six, beta=1.0, alpha=0.5), beta=1.0, drafts_only=drafts)
    roles = ("drafts",) if drafts else ("drafts", "revisions")
    spread = {f"entropy/{role}" for role in roles} | {"answer_tokens", "drift/chosen", "drift/rejected"}
    spread |= set() if cached else {"entropy/reference", *(f"kl/{role}" for role in roles)}
    spread |= set() if objective.drafts_only else {"drift/chosen_revised"}
    return {*columns, *spread, "runtime", "samples_per_second", "steps_per_second"}


class Measured:
    """Collects the metrics of the pairs of training and of evaluation, from all processes, until they are logged."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Tensor]] = []
        self._unread: list[tuple[str, list[str], Tensor]] = []  # mode, names and values of batches on the device
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, columns: dict[str, Tensor]) -> None:
        """Adds the metrics of a piece of a batch, of B pairs.

        The values stay in this process until `gather` is called for the whole batch: processes may cut their batches
        into different numbers of pieces, and gathering waits for all processes.

        Args:
            columns: name of a metric → its values, [B].
        """
        self._waiting.append(columns)

    def gather(self, accelerator: Accelerator, mode: str) -> None:
        """Gathers the metrics of a whole batch from all processes; they stay on the device until `read` is called.

        Args:
            mode: "train" or "eval", which are collected apart.
        """
        waiting, self._waiting = self._waiting, []
        # gather_for_metrics cuts a padded last batch; in training it would also cut every micro-batch fetched with the
        # last one. Rows that pad a training batch are trained on, so there they count.
        gather = accelerator.gather if mode == "train" else accelerator.gather_for_metrics
        values_BM = gather(torch.cat([torch.stack(list(columns.values()), 1) for columns in waiting]).detach())
        self._unread.append((mode, list(waiting[0]), values_BM))

    def read(self, *others: Tensor) -> tuple[dict[str, list[float]], list[list[float]]]:
        """Reads all gathered metrics and other tensors from the device at once, so that the host waits once.

        Returns:
            The values of training batches by metric name, and those of each other tensor.
        """
        unread, self._unread = self._unread, []
        tensors = [*others, *(values_BM.T for _, _, values_BM in unread)]
        numbers: list[float] = torch.cat([wide(each).flatten() for each in tensors]).tolist() if tensors else []
        found: dict[str, list[float]] = defaultdict(list)
        last = sum(each.numel() for each in others)
        for mode, names, values_BM in unread:
            into = self._values.setdefault(mode, defaultdict(list))
            for name in names:
                first, last = last, last + len(values_BM)
                into[name] += numbers[first:last]
                if mode == "train":
                    found[name] += numbers[first:last]
        ends = accumulate((each.numel() for each in others), initial=0)
        return dict(found), [numbers[start:stop] for start, stop in pairwise(ends)]

    def means(self, mode: str, prefix: str = "") -> dict[str, float]:
        """Returns the mean of each metric over all pairs since the last call, by name with `prefix` before it.

        `mode` is "train" or "eval". Values of nan, of pairs without a sampled token, do not count.
        """
        self.read()
        found = {name: self._counted(name, values) for name, values in self._values.pop(mode, {}).items()}
        return {prefix + name: math.fsum(values) / len(values) for name, values in found.items() if values}

    def _counted(self, name: str, values: list[float]) -> list[float]:
        return [value for value in values if not math.isnan(value)] if name.startswith(SAMPLED) else values

    def state(self, mode: str) -> dict[str, list[float]]:
        """Returns the values read since the last log by metric name, for a checkpoint; `mode` is "train" or "eval"."""
        return {name: list(values) for name, values in self._values.get(mode, {}).items()}

    def restore(self, mode: str, state: dict[str, list[float]]) -> None:
        """Restores the values that `state` returned for this mode, "train" or "eval"; drops values not read yet."""
        self._unread = [each for each in self._unread if each[0] != mode]
        self._values[mode] = defaultdict(list, {name: list(values) for name, values in state.items()})


class MetricsFile(TrainerCallback):
    """Callback that writes every log to metrics.jsonl in the run folder; resuming cuts it to the checkpoint's step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        file = Path(str(args.output_dir)) / METRICS_FILE
        if state.is_world_process_zero and (state.log_history or file.exists()):
            write_file(file, "".join(_before(file, state)).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if state.is_world_process_zero and logs:
            add_line(Path(str(args.output_dir)), {"step": state.global_step, **logs})


def add_line(folder: Path, record: dict[str, Any]) -> None:
    """Appends a record as one line to metrics.jsonl in the folder of a run.

    Raises:
        OutputError: the file cannot be written.
    """
    file = folder / METRICS_FILE
    with writing(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def _before(file: Path, state: TrainerState) -> list[str]:
    """Returns the lines that a metrics file must hold when a run starts or resumes: those up to that step.

    They are the logs in the checkpoint's state, even if the file is gone. Logs of the same step after the checkpoint's
    save, such as the evaluation at the end of an epoch, come from the file.
    """
    remembered = [{"step": each["step"], **each} for each in state.log_history]
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.exists() and remembered else []
    later = [line for line in lines[len(remembered) :] if _step_of(line) == state.global_step]
    return [json.dumps(each) + "\n" for each in remembered] + [f"{line}\n" for line in later]


def _step_of(line: str) -> int:
    """Returns the step in a line of metrics.jsonl with evaluation metrics; −1 for any other or incomplete line."""
    try:
        record = json.loads(line)
        return int(record["step"]) if any(key.startswith("eval_") for key in record) else -1
    except (ValueError, KeyError, TypeError):
        return -1
