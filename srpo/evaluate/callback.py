"""Drafts and revisions during training: at every evaluation some prompts are answered, judged and logged.

It must not disturb what it watches. Answers are drawn from numbers of their own (generate/sampling), the model is put
back into the mode each of its parts was in, and every global generator into the state it was in; a run with it has the
same weights, to the last bit, as one without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from srpo.data.read import PromptRow, Source, read
from srpo.data.values import last_message
from srpo.errors import ConfigError, DataError
from srpo.model.randomness import left_as_found
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.score.pooling import Resampling
from srpo.score.results import POOL, Results
from srpo.score.scores import score
from srpo.score.summary import summarise

PREFIX = "eval_revisions/"
DRAWS = 2000  # of the bootstrap: an interval to look at while training
SHOWN = 3  # prompts whose answers are logged


@dataclass(frozen=True)
class Watch:
    """What is answered at every evaluation.

    Attributes:
        revisions: how many at most.
        prompts: how many different prompts, from the head of the evaluation data.
        temperature, max_new_tokens: as in `RevisionSettings`.
        seed: of the drawing; the same at every evaluation, so that two of them differ by the model alone.
    """

    revisions: int
    prompts: int = 64
    temperature: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


class RevisionEvaluation(TrainerCallback):
    """Logs the score of drafts and revisions, with intervals, and a few of them in full.

    The chosen answer of each pair is the gold one. Logged for every revision k are `eval_revisions/k`, its `_low` and
    `_high`, `eval_revisions/k_gain` over the draft with its ends, and the share of answers changed; then
    `eval_revisions/sample_1`, … as text. They reach whatever the trainer reports to, metrics.jsonl, and, numbers only,
    the metrics of the evaluation, so that `metric_for_best_model` may name one.

    Args:
        trainer: an `SRPOTrainer`.
        source: what it evaluates on.
        judge: of single answers, or of two, which then holds each against the chosen one.
        watch: what is answered.

    Raises:
        ConfigError: weights that are split over processes, from which one alone cannot draw.
        DataError: no pair to take a prompt from.
    """

    def __init__(self, trainer: Any, source: Any, judge: Any, watch: Watch) -> None:
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            fix = "evaluate the checkpoints by `srpo evaluate` instead"
            raise ConfigError("weights are split over processes", where="eval_revisions", fix=fix)
        self.trainer, self.judge, self.watch = trainer, judge, watch
        self.rows = _rows(source, watch.prompts)
        self.settings = RevisionSettings(watch.revisions, watch.temperature, watch.seed, watch.max_new_tokens, "always")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Draws, judges and logs, on the main process."""
        if not state.is_world_process_zero:
            return
        trails = self.draw()
        found = numbers(trails, self.judge)
        if metrics is not None:
            metrics.update(found)
        self.trainer.log({**found, **{f"{PREFIX}sample_{i}": text for i, text in enumerate(_samples(trails), 1)}})

    def draw(self) -> list[Trail]:
        """Trails of the model as it is now, and nothing left changed."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with undisturbed(model):
            reviser = Reviser(
                model,
                self.trainer.processing_class,
                self.trainer.renderer.template,
                beta=self.trainer.args.beta,
                batch_size=self.trainer.args.per_device_eval_batch_size,
            )
            reviser.confidence = None  # an adapter would bring its base along, and each revision be weighed
            return list(reviser.trails(self.rows, self.settings))


def numbers(trails: list[Trail], judge: Any) -> dict[str, float]:
    """The averages of some trails under the names they are logged by."""
    scored = score({(0, "policy", "eval", None): trails}, {"judge": judge}, versus=())
    results: Results = summarise(scored, resampling=Resampling(DRAWS))
    logged: dict[str, float] = {}
    for row in results.curve("policy", "eval", None, POOL):
        name = f"{PREFIX}{row['revision']}"
        logged |= {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        if row["revision"]:
            ends = {f"{name}_gain_low": row["gain_low"], f"{name}_gain_high": row["gain_high"]}
            logged |= {f"{name}_gain": row["gain"], **ends, f"{name}_changed": float(row["changed"] or 0.0)}
        if row["unscored"]:
            logged[f"{name}_unscored"] = row["unscored"]
    return logged


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Puts every generator back to its state, and every part of the model into its mode."""
    training = [module for module in model.modules() if module.training]
    try:
        with left_as_found():
            yield
    finally:
        for module in training:  # not `train()`, which would wake the parts that had been put to rest
            module.training = True


def _rows(source: Any, limit: int) -> list[PromptRow]:
    """The first different prompts of the pairs, each with its chosen answer as `gold`."""
    rows: dict[str, PromptRow] = {}
    for pair in read(Source.of(source)).pairs:
        if len(rows) == limit:
            break
        meta = {"gold": pair.chosen}
        row = PromptRow(pair.prompt, pair.where, meta, pair.tools, pair.chat_template_kwargs)
        rows.setdefault(repr(pair.prompt), row)
    if not rows:
        raise DataError("no pair to take a prompt from", where="eval_revisions")
    return list(rows.values())


def _samples(trails: list[Trail]) -> list[str]:
    shown = []
    for trail in trails[:SHOWN]:
        lines = [
            last_message(trail.prompt),
            *(f"[{k or 'draft'}] {answer.text}" for k, answer in enumerate(trail.answers)),
        ]
        shown.append("\n".join([*lines, f"[chosen] {trail.meta['gold']}"]))
    return shown
