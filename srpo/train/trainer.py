"""`SRPOTrainer`: transformers' Trainer with a loss computed from six log-probs per pair.

Keywords have the order of TRL's DPOTrainer. `compute_loss` and its inputs are ours, the rest is transformers'.

Axes: B pairs, K sequences.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from srpo.data.read import Source
from srpo.errors import ConfigError
from srpo.maths.objective import OBJECTIVES, Objective, SixLogps, length_averaged
from srpo.model.gathered import split_by_fsdp
from srpo.model.packed.adapter_sum import adding_by_product
from srpo.model.packed.attention import serving
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.deferred import Deferred, deferring
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.model.packed.spread import Spread, watched
from srpo.model.packed.tiles import one_cast
from srpo.model.reference.cached import CachedReference
from srpo.model.reference.reference import MovingReference
from srpo.model.weights.card import CARD_FILE, read_card, write_card
from srpo.model.weights.load import context_of, load_config
from srpo.model.weights.quantised import TRAINING_FILE, quantisation_of
from srpo.model.weights.stopping import stop_at
from srpo.sequences.tree import PrefixTree
from srpo.sequences.tree_store import cache_folder
from srpo.train.added_terms import balance_losses, balance_of, with_added_terms
from srpo.train.compiled import compile_layers, staying_compiled
from srpo.train.config import SRPOConfig
from srpo.train.dataset import FOREST, TreeDataset, collator, first_rows, warn_of_shared_prompts
from srpo.train.durable.nonfinite import Guard, expect_vocabulary
from srpo.train.durable.stop_and_resume import StopsAndResumes
from srpo.train.durable.trainer import DurableTrainer
from srpo.train.end_of_step import read_evaluation, read_step
from srpo.train.first_steps import HALF, FirstStep, disable_noise, expect_batch
from srpo.train.free_memory import FreeMemory
from srpo.train.load_models import load_policy, load_reference, name_of, renderer_for
from srpo.train.log_lines import LogLines
from srpo.train.metrics import Measured, MetricsFile, metrics, spread_metrics
from srpo.train.microbatches import SHARE, pieces, share_out, tokens_of
from srpo.train.prepare_reference import Following, make_ready, make_reference, sets_of
from srpo.train.prompts import PromptSampler
from srpo.train.run_record import card_of
from srpo.train.temperature import Temperature
from srpo.train.transformers_settings import expect_served, named, settings_in
from srpo.train.validation import expect_even_processes, expect_one_device

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger("srpo")
Rows = str | Source | Iterable[Mapping[str, Any]]


class SRPOTrainer(DurableTrainer):
    """transformers' Trainer that trains one model to draft and to revise, from preference pairs.

    Args:
        model: a model, or the path or hub name of one.
        ref_model: the reference, or the path or hub name of one; None takes the policy before training.
        args: settings.
        data_collator: function that makes a batch of rows, instead of `srpo.train.dataset.collate`.
        train_dataset: rows with `prompt`, `chosen` and `rejected`, or the path of a JSONL file of them.
        eval_dataset: rows for evaluation, or a dict of such by name.
        processing_class: the tokenizer; None loads the tokenizer saved with the model.
        compute_metrics: not supported; callbacks see every metric.
        callbacks, optimizers: as in transformers' Trainer.
        quantization_config: used to load a model that is given by name.
        peft_config: adds a new adapter to the model; the reference is then the model with the adapter disabled.

    Attributes:
        reference: source of the reference log-probs.
        temperature: β of the coming step.
        renderer: turns rows into token ids; its template is saved with the model.
        source, command: file or rows of training data, and words of the command line, for the model card.

    Raises:
        ConfigError, DataError: unusable settings or rows; found before weights are read wherever possible.

    Example:
        >>> from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, untrained_base
        >>> rows = [{"prompt": "1+2=", "chosen": "03", "rejected": "13"}]
        >>> args = SRPOConfig(output_dir="/tmp/srpo-example", report_to="none", use_cpu=True)
        >>> trainer = SRPOTrainer(untrained_base(BaseConfig(hidden=24)), args=args, train_dataset=rows,
        ...                       processing_class=carry_tokenizer())
        >>> trainer.reference.kind
        'frozen copy'
    """

    args: SRPOConfig
    objective: Objective
    kept_files = (CARD_FILE,)
    loss_is_scaled_for_ga = False  # the loss is a mean over the micro-batch, so Trainer divides by accumulation steps

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: str | nn.Module | None = None,
        args: SRPOConfig | None = None,
        data_collator: Callable[..., dict[str, Any]] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: object = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        args = args or SRPOConfig(output_dir="srpo_output")
        expect_one_device(args, model)
        expect_even_processes(args)
        expect_served(args)
        if compute_metrics is not None:
            fix = "leave it out: rewards/*, logps/* and revision/* are measured, and callbacks get them in on_evaluate"
            raise ConfigError("no predictions are passed on, only log-probs", where="compute_metrics", fix=fix)
        self.objective = OBJECTIVES[args.objective]
        options = args.loading_options() if isinstance(model, str) else {}
        where: dict[str, Any] = {key: options[key] for key in ("revision", "base_model") if key in options}
        where["trust_remote_code"] = args.trust_remote_code
        processing_class, self.renderer = renderer_for(processing_class, name_of(model), where, args)
        self.source = train_dataset.name if isinstance(train_dataset, Source) else train_dataset
        self.command: Sequence[str] = ()
        context = context_of(load_config(model, **where) if isinstance(model, str) else model.config)
        self._limit = min(filter(None, (args.max_length, context)), default=None)
        trees, eval_trees = self._read(train_dataset, eval_dataset, args)  # mistakes in them cost no weights
        set_seed(args.seed)  # before an adapter is initialised, so that a restarted run is the same run
        args.data_seed = args.seed if args.data_seed is None else args.data_seed  # independent of the global generator
        args.logging_nan_inf_filter = False  # the filter would log the mean of the other steps instead of a nan
        policy = load_policy(model, args, quantization_config, peft_config)
        self._original_config = disable_noise(policy) if args.disable_dropout else nullcontext
        self._balance = balance_of(policy, args.router_aux_loss_coef, padded=bool(args.pad_to_multiple_of))
        given = load_reference(ref_model, args)
        self.reference = make_reference(policy, given, args)
        if args.compile_layers:
            compile_layers(policy)  # after the reference has copied the policy
        self._measured, self.temperature = Measured(), Temperature(args)
        self._backends: dict[bool, str] = {}  # for trees without pictures and with them
        following = [Following(self.reference, args)] if isinstance(self.reference, MovingReference) else []
        with named(settings_in(args)):
            super().__init__(
                model=policy,
                args=args,
                data_collator=data_collator or collator(args),
                train_dataset=trees,
                eval_dataset=eval_trees,
                processing_class=processing_class,
                callbacks=[*(callbacks or []), *following, MetricsFile(), StopsAndResumes(self), self.temperature],
                optimizers=optimizers,
            )
        self.model_accepts_loss_kwargs = False
        for data in sets_of(self):
            expect_vocabulary(policy, given or policy, data.largest_id)
        make_ready(self, self.settled_backend)
        process = args.process_index if args.world_size > 1 else None
        self._deferred = Deferred()
        self.guard = Guard(Path(str(args.output_dir)), process, self.anywhere, defers=not self.is_deepspeed_enabled)
        self.guard.first = FirstStep(
            own_reference=given is None and args.disable_dropout,
            cached=isinstance(self.reference, CachedReference),
            mean=args.logps_reduction == "mean",
            half=bool(args.bf16 or args.fp16) or any(p.dtype in HALF for p in policy.parameters()),
            anywhere=self.anywhere,
        )
        self.add_callback(FreeMemory)
        self.lines = LogLines(self)
        if log.level or log.isEnabledFor(logging.INFO):  # a level of its own may ask for silence: print nothing then
            self.lines.take_over(self)

    @property
    def pairs(self) -> TreeDataset:
        """The training pairs, as a data set of trees."""
        assert self.train_dataset is not None, "no training data was given"
        return self.train_dataset

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains the model as `DurableTrainer.train` does, and ends the progress bar."""
        try:
            result = super().train(*args, **kwargs)
        finally:
            self.lines.close()
        return result._replace(training_loss=result.metrics.get("train_loss", result.training_loss))

    # ------------------------------------------------------------------ the method

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the mean loss of a batch of pairs, from their six log-probs under policy and reference (`SixLogps`).

        `inputs` has the pairs as `trees`; with `return_outputs`, the result is (loss, {"loss": loss}).
        """
        backend = self.settled_backend(model, inputs["trees"])
        multiple = self.args.pad_to_multiple_of
        forest = (inputs.get(FOREST) or Forest.plant(inputs["trees"], multiple=multiple)).to(self.args.device)
        with watched() as ours, balance_losses(model, self._balance) as balance:
            summed = six_logps(model, forest, backend)
        cached = isinstance(self.reference, CachedReference)  # no distributions, not even of a row scored now
        with nullcontext(Spread()) if cached else watched() as theirs:
            summed_reference = self.reference.six_logps(forest, backend)
        shape = (len(forest.trees), 2 if self.objective.drafts_only else 6)
        tokens_BK = ours.tokens(shape)
        policy, reference = (self._reduced(six, tokens_BK) for six in (summed, summed_reference))
        beta = self.temperature.beta
        output = self.objective.loss(policy, reference, beta=beta, alpha=self.args.alpha)
        weight, drafts = self.args.chosen_nll_weight, self.objective.drafts_only
        output = with_added_terms(output, summed, tokens_BK[:, 0], weight, balance, drafts=drafts)
        self.guard.expect_finite(inputs, policy, reference, output, step=self.state.global_step + 1)
        columns = spread_metrics(summed.detach(), summed_reference, ours, theirs, shape)
        self._measured.add(metrics(policy.detach(), reference, output, beta=beta, drafts_only=shape[1] == 2) | columns)
        loss = output.loss.float().to(self.args.device) * inputs.get(SHARE, 1.0)
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Runs forward and backward pass of a batch in pieces of `max_tokens_per_batch` tokens; returns the loss."""
        backend = self.settled_backend(model, inputs["trees"])
        *others, last = pieces(inputs, self.args.max_tokens_per_batch, backend, self.accelerator)
        loss = torch.zeros((), device=self.args.device)
        passes = adding_by_product(model), serving(model, backend)  # activation checkpointing runs layers again
        with deferring(self._deferred), one_cast(), passes[0], passes[1], staying_compiled(self.args):
            with self.accelerator.no_sync(model) if others else nullcontext():
                for piece in others:
                    loss += super().training_step(model, piece, num_items_in_batch)
            loss += super().training_step(model, last, num_items_in_batch)
        self._measured.gather(self.accelerator, "train")
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Returns the batches of one optimiser step, each with its weight in the step, and transformers' item count."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        share_out(batches, self.accelerator)
        return batches, items

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Collects the metrics of an evaluation batch; returns its loss and two None, as transformers expects."""
        inputs = self._prepare_inputs(inputs)
        backend = self.settled_backend(model, inputs["trees"])
        later = deferring(self._deferred) if split_by_fsdp(model) else nullcontext()  # processes must stop together
        with later, torch.no_grad(), one_cast(), staying_compiled(self.args):
            parts = pieces(inputs, self.args.max_tokens_per_batch, backend, self.accelerator)
            loss = torch.stack([self.compute_loss(model, piece).detach() for piece in parts]).sum()
        self._measured.gather(self.accelerator, "eval")
        self._measured.read()
        return loss, None, None

    def settled_backend(self, model: nn.Module, trees: list[PrefixTree]) -> str:
        """Returns the run's attention back-end, checked for `model`; the reference uses the same, to round alike."""
        # Every time, because a wrapped model needs its own self-check, which must not run inside `serving`.
        kind = any(tree.pictures for tree in trees)  # a model may serve text in a layout, and pictures not
        asked = self._backends.get(kind, self.args.backend)
        return self._backends.setdefault(kind, settle_backend(model, trees, asked, self.args.pad_to_multiple_of))

    def _reduced(self, six: SixLogps, tokens_BK: Tensor) -> SixLogps:
        return six if self.args.logps_reduction == "sum" else length_averaged(six, tokens_BK[:, 0], tokens_BK[:, 1])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Any:
        """Returns the norm of the gradients; reads it with losses and metrics from the device, and stops at a nan."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        parts = (self.guard, self._deferred, self._measured, self.temperature)
        return read_step(norm, model, self.accelerator, *parts, step=self.state.global_step + 1)

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Creates optimizer and schedule as transformers does; errors name the setting that caused them."""
        with named(settings_in(self.args)):
            super().create_optimizer_and_scheduler(num_training_steps)

    # ------------------------------------------------------------------ data

    def _trees(self, rows: Rows | None, args: SRPOConfig) -> TreeDataset | None:
        if rows is None or isinstance(rows, TreeDataset):
            return rows
        with args.main_process_first(desc="tokenising"):  # the other processes read the first one's cache
            return TreeDataset.build(
                rows,
                self.renderer,
                max_length=self._limit,
                bad_rows=args.bad_rows,
                drafts_only=self.objective.drafts_only,
                truncate=args.truncate,
                num_proc=args.dataset_num_proc,
                cache=cache_folder(),
            )

    def _read(self, rows: Rows | None, eval_rows: Any, args: SRPOConfig) -> tuple[TreeDataset | None, Any]:
        """Reads training and evaluation rows into trees; checks that training keeps at least one batch."""
        most = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        trees = self._trees(first_rows(rows, most), args)
        eval_trees = self._evaluation_trees(eval_rows, args)
        warn_of_shared_prompts(trees, eval_trees)
        if trees is not None and args.dataloader_drop_last:
            expect_batch(len(trees), args.train_batch_size, args.world_size)
        return trees, eval_trees

    def _evaluation_trees(self, rows: Any, args: SRPOConfig) -> Any:
        """Reads an evaluation set, or each set of a dict, into trees."""
        if isinstance(rows, dict):
            return {name: self._trees(each, args) for name, each in rows.items()}
        return self._trees(rows, args)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """Returns the sampler that orders the training pairs: by prompt under `group_by_prompt`, else transformers'."""
        if not self.args.group_by_prompt:
            return super()._get_train_sampler(train_dataset)
        assert self.args.data_seed is not None, "set before transformers' own constructor runs"
        sampler = PromptSampler(self.pairs, self.args.train_batch_size, self.args.data_seed)
        message = "srpo: %d pairs of %d prompts, drawn by prompt: those of a batch are one tree per prompt"
        log.info(message, len(sampler), len(sampler.groups))
        return sampler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates on the given rows or data sets, or on those of the constructor; returns mean metrics by name."""
        known = isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict)
        if eval_dataset is not None and not (known and eval_dataset in self.eval_dataset):
            eval_dataset = self._evaluation_trees(eval_dataset, self.args)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # ------------------------------------------------------------------ metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluates on a data set as transformers does, and adds the means of SRPO's metrics to the result."""
        self._measured.means("eval")  # discards metrics of an earlier `predict`
        loop = super().evaluation_loop
        output = loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        self.guard.settle(step=self.state.global_step)
        read_evaluation(self._deferred, self.accelerator)
        assert output.metrics is not None
        # Also the loss: transformers' mean counts the rows that pad the last batch of several processes.
        output.metrics.update(self._measured.means("eval", f"{metric_key_prefix}_"))
        return output

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Adds the tokens of a batch, of all processes, to the run's count of tokens, if that setting is on."""
        if self.args.include_num_input_tokens_seen != "no":
            tokens = tokens_of(inputs["trees"], self._backends.get(any(t.pictures for t in inputs["trees"]), "auto"))
            counts = self.accelerator.gather(torch.tensor([tokens], device=self.args.device))
            self.state.num_input_tokens_seen += int(counts.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs as transformers does, and adds mean metrics since the last log; the final loss is that of all steps."""
        if "train_loss" in logs:  # transformers counts the steps since a resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if not any(key.startswith("eval_") for key in logs):
            logs |= {name: mean for name, mean in self._measured.means("train").items() if name != "loss"}
        super().log(logs, start_time)

    # ------------------------------------------------------------------ saving

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        card = read_card(folder)
        with self._original_config():
            super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        # Deleted, because nothing reads this pickle of the arguments and it contains the hub token.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        self.renderer.pictures.save(folder, self.renderer.tokenizer)
        self.renderer.template.save(folder, self.renderer.fingerprint)
        stop_at(self.model, self.renderer.stop_ids, folder)
        settings = {name: getattr(self.args, name) for name in ("objective", "beta", "alpha", "logps_reduction")}
        settings["beta"] = self.temperature.last  # Eq. 9 and 14 hold at the β of the last step
        record = {"format": 1, **settings, "reference": self.reference.kind, **quantisation_of(self.model)}
        (folder / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        write_card(folder, card_of(self), card)
