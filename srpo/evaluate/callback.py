"""Evaluation of drafts and revisions during training: some prompts are answered, judged and logged.

The evaluation does not change the training. Answers are drawn from random numbers of their own (generate/sampling);
afterwards every module is back in its mode and every global generator in its state. A run with this callback has the
same weights, to the last bit, as a run without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.data.read import PromptRow, Source, read
from srpo.data.source import AnySource
from srpo.data.values import last_message
from srpo.errors import ConfigError, DataError, LengthError
from srpo.judge.load import AnyJudge
from srpo.model.randomness import left_as_found
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.score.pooling import Resampling, grouped
from srpo.score.results import POOL
from srpo.score.scores import score
from srpo.score.summary import summarise
from srpo.sequences.render import options_of

if TYPE_CHECKING:
    from srpo.train.trainer import SRPOTrainer

log = logging.getLogger("srpo")
PREFIX = "eval_revisions/"
DRAWS = 2000  # bootstrap draws: enough for an interval to look at during training
SHOWN = 3  # prompts whose answers are logged in full


@dataclass(frozen=True)
class Watch:
    """Settings of the answers that `RevisionEvaluation` draws at every evaluation during training.

    Attributes:
        revisions: largest number of revisions.
        prompts: number of different prompts, from the start of the evaluation data.
        temperature: sampling temperature; 0 decodes greedily.
        max_new_tokens: largest number of tokens per answer.
        seed: seed of the answers; the same at every evaluation, so that evaluations differ by the model alone.
    """

    revisions: int
    prompts: int = 64
    temperature: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


class RevisionEvaluation(TrainerCallback):
    """A callback for transformers' Trainer: logs scores of drafts and revisions with intervals, and a few answers.

    The chosen answer of each pair is the gold answer. The logged metrics are, for revision k (0 is the draft):

        eval_revisions/k               mean score after k revisions; with `_low` and `_high`, the ends of its interval
        eval_revisions/k_gain          that score minus the draft's; with `_low` and `_high`
        eval_revisions/k_changed       share of answers that revision k changed
        eval_revisions/greedy          mean score of one greedy draft of each prompt; with `_low` and `_high`
        eval_revisions/greedy_copied   share of greedy revisions equal to their draft
        eval_revisions/failed          number of prompts that failed, if any
        eval_revisions/k_unscored      number of prompts without a readable verdict, if any
        eval_revisions/sample_1, …     texts of a few drafts and revisions

    They go to the trainer's reporters and metrics.jsonl. The numbers are also metrics of the evaluation, so that
    `metric_for_best_model` can name one. A warning is logged if the greedy score falls while the evaluation loss
    improves.

    Args:
        trainer: the trainer that evaluates.
        source: pairs to take prompts from.
        judge: of single answers, or a pair judge, which compares each answer with the chosen one.
        watch: settings of the answers.

    Raises:
        ConfigError: the weights are split over processes; one process cannot draw alone.
        DataError: the source has no pair.
        LengthError: no prompt leaves room for its answer; fewer than all are left out with a warning.
    """

    def __init__(self, trainer: SRPOTrainer, source: AnySource, judge: AnyJudge, watch: Watch) -> None:
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            fix = "evaluate the checkpoints by `srpo evaluate` instead"
            raise ConfigError("weights are split over processes", where="eval_revisions", fix=fix)
        self.trainer, self.judge = trainer, judge
        self.settings = RevisionSettings(watch.revisions, watch.temperature, watch.seed, watch.max_new_tokens, "always")
        self.rows = self._with_room(_rows(source, watch.prompts))
        self.best: tuple[float, float | None] | None = None  # best greedy score so far, and the evaluation loss then
        self.warned = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Draws answers, judges them and logs the scores, on the main process only; called after each evaluation."""
        if not state.is_world_process_zero:
            return
        drawn = self.draw()
        trails = [trail for trail in drawn if not trail.failed]
        failed = {f"{PREFIX}failed": float(len(drawn) - len(trails))} if len(trails) < len(drawn) else {}
        if not trails:
            log.warning("srpo: eval_revisions: every prompt failed: %s", drawn[0].failed)
        found = failed | (numbers(trails, self.judge) if trails else {}) | self._greedy(metrics or {})
        if metrics is not None:
            metrics.update(found)
        samples: Any = {f"{PREFIX}sample_{i}": text for i, text in enumerate(_samples(trails), 1)}
        self.trainer.log({**found, **samples})

    def _greedy(self, metrics: dict[str, float]) -> dict[str, float]:
        """Scores one greedy draft of each prompt, and counts greedy revisions that copy it.

        A warning is logged once if scores fell while the evaluation loss improved. That can happen because a preference
        loss compares two answers, and the likeliest answer of all may become a wrong one.
        """
        # A draft counts even if its revision has no room.
        trails = [trail for trail in self.draw(greedy=True) if trail.answers]
        if not trails:
            return {}
        drafts = [replace(trail, answers=trail.answers[:1], stopped="revisions") for trail in trails]
        scored = numbers(drafts, self.judge)
        names = {f"{PREFIX}0{end}": f"{PREFIX}greedy{end}" for end in ("", "_low", "_high")}
        found = {names[name]: scored[name] for name in names}
        if copied := [trail.answers[1].text == trail.answers[0].text for trail in trails if len(trail.answers) > 1]:
            found[f"{PREFIX}greedy_copied"] = sum(copied) / len(copied)
        now, loss = found[f"{PREFIX}greedy"], next((metrics[n] for n in metrics if n.endswith("loss")), None)
        if self.best is None or now > self.best[0]:
            self.best = (now, loss)
        best, then = self.best
        fell = found[f"{PREFIX}greedy_high"] < best
        if fell and not self.warned and loss is not None and then is not None and loss < then:
            self.warned = True
            message = "srpo: greedy answers fell from %.1f to %.1f %% of %d prompts while the evaluation loss improved "
            message += "from %.3g to %.3g: lower the learning rate, raise beta, or try chosen_nll_weight"
            log.warning(message, 100 * best, 100 * now, len(trails), then, loss)
        return found

    def draw(self, *, greedy: bool = False) -> list[Trail]:
        """Returns one trail (a prompt with draft and revisions) per evaluation prompt, drawn from the current model.

        Failed trails are included. The state of the training stays unchanged.

        Args:
            greedy: draws one greedy draft of each prompt instead and, if answers are revised, one revision of it.
        """
        once = replace(self.settings, revisions=min(1, self.settings.revisions), temperature=0.0)
        settings = once if greedy else self.settings
        with undisturbed(self.trainer.accelerator.unwrap_model(self.trainer.model)):
            return list(self._reviser().trails(self.rows, settings))

    def _reviser(self) -> Reviser:
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        batch_size, beta = trainer.args.per_device_eval_batch_size, trainer.temperature.last
        reviser = Reviser(model, renderer=trainer.renderer, beta=beta, batch_size=batch_size)
        reviser.confidence = None  # without this, an adapter's base would become the reference and score every revision
        return reviser

    def _with_room(self, rows: list[PromptRow]) -> list[PromptRow]:
        """The prompts whose draft fits into the model's context; the others are counted in a warning.

        Raises:
            LengthError: no prompt fits.
        """
        with undisturbed(self.trainer.accelerator.unwrap_model(self.trainer.model)):
            limit = self._reviser().engine.max_length
        contexts = self.trainer.renderer.drafts([row.prompt for row in rows], [options_of(row) for row in rows])
        lengths, new = [len(context) for context in contexts], self.settings.max_new_tokens
        fit = [row for row, length in zip(rows, lengths, strict=True) if limit is None or length + new <= limit]
        if len(fit) < len(rows):
            longest = rows[lengths.index(max(lengths))].where
            what = f"{len(rows) - len(fit)} of {len(rows)} evaluation prompts leave no room for {new} tokens"
            within = f"room in the model's {limit} tokens; the longest prompt is {longest}"
            if not fit:
                fix = "shorten the prompts or lower eval_max_new_tokens"
                raise LengthError(what, where="eval_revisions", expected=within, fix=fix)
            log.warning("srpo: eval_revisions: %s and are left out; expected %s", what, within)
        return fit


def numbers(trails: list[Trail], judge: AnyJudge) -> dict[str, float]:
    """Returns metric → value for trails: mean score, gain over the draft and share of changed answers per revision.

    Scores are in [0, 1]; names are those in `RevisionEvaluation`, such as "eval_revisions/1".
    """
    scored = score({(0, "policy", "eval", None): trails}, {"judge": judge}, versus=())
    results = summarise(grouped(scored), resampling=Resampling(DRAWS))
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
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Context that restores every global random generator and every module's training mode when it ends."""
    training = [module for module in model.modules() if module.training]
    try:
        with left_as_found():
            yield
    finally:
        for module in training:  # `model.train()` would also switch modules that were in evaluation mode before
            module.training = True


def _rows(source: AnySource, limit: int) -> list[PromptRow]:
    """The first `limit` different prompts of the pairs in `source`, each with its chosen answer as `gold`."""
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
        answers = [f"[{k or 'draft'}] {answer.text}" for k, answer in enumerate(trail.answers)]
        shown.append("\n".join([last_message(trail.prompt), *answers, f"[chosen] {trail.meta['gold']}"]))
    return shown
