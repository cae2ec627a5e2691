"""A transformers Trainer that can be killed at any moment and resumes to bit-identical weights.

transformers decides when to save which files. Its saves are redirected into a staging folder and committed in the
background (checkpoint.py). Added to each checkpoint: sums not logged yet, a moving reference, and the run's identity
(identity.py).
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from srpo.disk import expect_room, held, writable_folder, writing
from srpo.errors import CheckpointError, SRPOError
from srpo.model.randomness import left_as_found
from srpo.model.reference.cached import CachedReference
from srpo.model.reference.reference import Reference
from srpo.sequences.render import Renderer
from srpo.signals import signals
from srpo.train.config import SRPOConfig
from srpo.train.dataset import TreeDataset
from srpo.train.durable import archive, checkpoint
from srpo.train.durable.background import Background
from srpo.train.durable.checkpoint import STAGING, Invalid, Manifest
from srpo.train.durable.identity import accepted, identity_of
from srpo.train.durable.loading import ConvertingTrainer
from srpo.train.durable.nonfinite import expect_finite_weights
from srpo.train.metrics import Measured
from srpo.train.split_weights import load_whole, splitting, whole_weights
from srpo.train.temperature import Temperature

REFERENCE_FILE = "reference.safetensors"
log = logging.getLogger("srpo")
T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """The point from which a call of `train` starts.

    Attributes:
        folder: the checkpoint to resume from; None to start from scratch, or if the run is complete.
        manifest: manifest of that checkpoint, or of the finished model; None to start from scratch.
        complete: True if the run has taken all its steps and its model is saved.
        changes: changes of the run's identity that the user has accepted, in all resumes, earlier ones first.
    """

    folder: Path | None = None
    manifest: Manifest | None = None
    complete: bool = False
    changes: tuple[dict[str, Any], ...] = ()


class DurableTrainer(ConvertingTrainer):
    """transformers' Trainer, changed so that a checkpoint on disk is always complete.

    Attributes:
        start: starting point of the last call of `train`.
        kept_files: names of files in the model folder that saving keeps, because people edit them.
        at_start: function that the first process calls before training, unless the run is complete; None for none.
        saved: step of the newest checkpoint, which may still be written in the background; −1 without one.
    """

    args: SRPOConfig
    model: Any
    reference: Reference | CachedReference
    renderer: Renderer
    temperature: Temperature
    train_dataset: TreeDataset | None
    eval_dataset: Any
    source: object
    command: Sequence[str]
    start = Start()
    at_start: Callable[[], None] | None = None
    _measured: Measured
    _identity: dict[str, Any]
    _stage: Path | None = None
    saved = -1
    kept_files: tuple[str, ...] = ()

    # ------------------------------------------------------------------ training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: dict[str, Any] | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains from scratch or from a checkpoint, with the run folder locked.

        Args:
            resume_from_checkpoint: a checkpoint, or True: the newest valid one, or from scratch if there is none.

        Raises:
            LockedError: another process holds the run folder.
            CheckpointError: no checkpoint is valid.
            ConfigError: the run's identity has changed (see `accept_change`).
            NonFiniteError: a nan or an infinity; the optimiser has not used it.
            Interrupted: a signal arrived; a checkpoint is saved.
        """
        with self._held(self._folder), signals.heard():
            self._identity = identity_of(self)
            self.start = self._starting_point(resume_from_checkpoint)
            if self.start.complete and self.start.manifest:
                return self._complete(self.start.manifest)
            if self.args.should_save:
                self._expect_room(final=True)
            if self.at_start and self.is_world_process_zero():
                self.at_start()
            self.saved = self.start.manifest.step if self.start.manifest else -1
            with signals.held_back():
                folder = str(self.start.folder) if self.start.folder else None
                try:
                    result: TrainOutput = super().train(folder, trial, ignore_keys_for_eval)
                except pickle.UnpicklingError:
                    raise checkpoint.unsafe_pickle(self.start.folder or self._folder) from None
                finally:  # also after an error, the last save becomes a checkpoint while the folder is locked
                    self.background.settle()
            return result

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Skips the epoch if no steps are left; transformers would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)
        if self.control.should_training_stop:
            self.settle()  # transformers may load the best checkpoint next; the final save must come after the last one

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates as transformers does, and leaves the random generators of training unchanged."""
        with left_as_found():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # ------------------------------------------------------------------ starting point

    def _starting_point(self, resume: str | bool | None) -> Start:
        start = self._on_first_process(lambda: self._find_start(resume))
        if start.manifest:
            where = str(start.folder or self._folder)
            accept = self.args.accept_change or []
            step, of = start.manifest.step, start.manifest.of
            now = accepted(start.manifest.identity, self._identity, accept, step=step, where=where)
            for change in now:
                log.warning("srpo: accepted change after step %(step)s: %(key)s was %(old)s, is %(new)s", change)
            complete = start.complete and not now
            if start.complete and now:
                start = self._on_first_process(self._extend_finished)
            if complete:
                log.info("srpo: already complete (%d of %d)", step, of)
            elif start.folder:
                log.info("srpo: resuming from %s", start.folder)
            before = start.manifest.accepted if start.manifest else []
            start = Start(start.folder, start.manifest, complete, (*before, *now))
        return start

    def _find_start(self, resume: str | bool | None) -> Start:
        """Returns the point to start from, by `resume` as in `train`; clears the folder for a start from scratch."""
        with writing(self._folder):
            checkpoint.clear(self._folder)
            if isinstance(resume, str | Path):
                return Start(Path(resume), checkpoint.read_named(Path(resume)))
            if resume:
                if (final := self._final()) and final.finished:  # even if its checkpoints are gone
                    return Start(None, final, complete=True)
                if newest := checkpoint.newest(self._folder):
                    return Start(*newest)
                log.info("srpo: nothing to resume in %s; starting from scratch", self._folder)
                if other := archive.newest_with_checkpoints(self._folder):
                    hint = "srpo: %s has checkpoints of an earlier run; continue it with --output_dir %s --resume"
                    log.warning(hint, other, other)
            archive.archive_earlier_run(self._folder)
            checkpoint.retract(self._folder)
        return Start()

    def _extend_finished(self) -> Start:
        """Returns the newest checkpoint, for a finished run that takes more steps; raises CheckpointError if none."""
        if newest := checkpoint.newest(self._folder):
            return Start(*newest)
        fix = "start from its model in another folder"
        raise CheckpointError("a finished model without a checkpoint to resume from", where=str(self._folder), fix=fix)

    def _final(self) -> Manifest | None:
        """The manifest of the saved model, or None if the model is missing or damaged."""
        if not (self._folder / checkpoint.MANIFEST).exists():
            return None
        try:
            return checkpoint.read(self._folder, alone=False)
        except Invalid as reason:
            log.warning("srpo: the model in %s is damaged: %s", self._folder, reason)
            return None

    def _complete(self, final: Manifest) -> TrainOutput:
        """Loads the finished model, whose manifest is `final`; no steps are left."""
        if hasattr(self.model, "disable_adapter"):  # a PEFT model
            self.model.load_adapter(str(self._folder), self.model.active_adapter, is_trainable=True)
        elif splitting(self) != "no":
            load_whole(self.model, self._folder, trust_remote_code=self.args.trust_remote_code)
        else:
            self._load_from_checkpoint(str(self._folder))
        self.state.global_step, self.state.max_steps = final.step, final.of
        return TrainOutput(final.step, float("nan"), {})

    # ------------------------------------------------------------------ saving

    def _get_output_dir(self, trial: dict[str, Any] | None) -> str:
        return str(self._stage) if self._stage else super()._get_output_dir(trial)

    @cached_property
    def background(self) -> Background:
        """Runs the task that turns the last save into a checkpoint."""
        return Background()

    def settle(self) -> None:
        """Waits in every process until the last save has become a checkpoint."""
        self.background.settle()
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: dict[str, Any] | None) -> None:
        """Saves into a staging folder as transformers does; a background thread then commits the checkpoint."""
        run, step = Path(super()._get_output_dir(trial)), self.state.global_step
        name, stage = f"checkpoint-{step}", run / STAGING
        expect_finite_weights(self.model, step=step)
        self.background.settle()
        with checkpoint.DiskErrors(run):
            if self.args.should_save:
                checkpoint.clear(run)
                self._expect_room()
                stage.mkdir()
            self.accelerator.wait_for_everyone()
            self._stage = stage
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stage = None
            self._save_extra_state(stage / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._name_best(run, stage / name)
                keep, spare = self.args.save_total_limit, self.state.best_model_checkpoint
                commit = partial(checkpoint.finish, run, name, self._manifest(), keep=keep, spare=spare)
                self.background.start(name, commit)
        self.saved = step
        if self._has_readers():
            self.background.settle()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(run / name))

    def _has_readers(self) -> bool:
        """True if a callback or the hub reads the checkpoint right after the save, so that it must be complete then."""
        hooks = (getattr(each.on_save, "__func__", None) for each in self.callback_handler.callbacks)
        return self.args.push_to_hub or any(each is not TrainerCallback.on_save for each in hooks)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: `_save_checkpoint` pushes once the checkpoint is committed."""

    def _name_best(self, run: Path, staged: Path) -> None:
        """Corrects the path of the best checkpoint in the trainer's state, and saves the state in folder `staged`."""
        best = self.state.best_model_checkpoint
        if best and Path(best).parent.name == STAGING:
            self.state.best_model_checkpoint = str(run / Path(best).name)
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the whole model or, if that fails, nothing; a model saved after the last step counts as finished."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        expect_finite_weights(self.model, step=self.state.global_step)
        self.background.settle()
        target = Path(output_dir) if output_dir else self._folder
        stage = target / STAGING / "final"
        with self._held(target), signals.held_back(), checkpoint.DiskErrors(target):
            if self.args.should_save:
                writable_folder(target)
                checkpoint.clear(target)
                stage.mkdir(parents=True)
                for name in self.kept_files:
                    if (target / name).is_file():
                        shutil.copy(target / name, stage / name)
            self.accelerator.wait_for_everyone()
            with whole_weights(self.accelerator):
                super().save_model(str(stage), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoint.expect_weights(stage)
                checkpoint.seal(stage, self._manifest())
                checkpoint.commit_files(stage, target)
                checkpoint.clear(target)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _manifest(self) -> Manifest:
        return Manifest(
            step=self.state.global_step,
            of=max(self.state.max_steps, 1),
            identity=getattr(self, "_identity", {}),
            accepted=list(self.start.changes),
            resumable=not self.args.save_only_model,
        )

    def _expect_room(self, *, final: bool = False) -> None:
        """Raises OutputError if the disk lacks space for the next checkpoint and, with `final`, for the final model."""
        saved = checkpoint.checkpoints(self._folder)
        weights = [p for p in self.model.parameters() if p.requires_grad or not hasattr(self.model, "peft_config")]
        model = sum(p.numel() * p.element_size() for p in weights)
        state = 0 if self.args.save_only_model else sum(8 * p.numel() for p in weights if p.requires_grad)
        each = checkpoint.size_of(saved[0][1]) if saved else model + state + 10**5
        if self.args.save_strategy == "no":
            each = 0
        expect_room(self._folder, each + (model if final else 0), "the run" if final else "a checkpoint")

    # ------------------------------------------------------------------ state that transformers does not save

    def running_sums(self) -> dict[str, Any]:
        """Returns this process's losses and metrics that are not logged yet, for a checkpoint or to undo a step."""
        return {
            "loss": self._tr_loss.clone(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "measured": self._measured.state("train"),
            "temperature": self.temperature.state(),
        }

    def restore_sums(self, sums: dict[str, Any]) -> None:
        """Restores the running sums that `running_sums` returned."""
        self._tr_loss.fill_(sums["loss"])
        self._total_loss_scalar = sums["total_loss"]
        self._globalstep_last_logged = sums["last_logged"]
        self._measured.restore("train", sums["measured"])

    def _save_extra_state(self, folder: Path) -> None:
        sums = self.running_sums() | {"loss": self._tr_loss.item()}
        (folder / f"position-{self.args.process_index}.json").write_text(json.dumps(sums), "utf-8")
        if self.args.should_save and (state := self.reference.state_dict()):
            from safetensors.torch import save_file

            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / REFERENCE_FILE)

    def load_extra_state(self, folder: Path) -> None:
        """Loads the running sums, β and a moving reference from a checkpoint's folder."""
        if sums := checkpoint.position(folder, self.args.process_index, self.args.world_size):
            self.restore_sums(sums)
        self.temperature.resume(folder / "position-0.json")
        if (folder / REFERENCE_FILE).exists():
            from safetensors.torch import load_file

            self.reference.load_state_dict(load_file(folder / REFERENCE_FILE))

    # ------------------------------------------------------------------ several processes

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    @contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        """Inside this `with` block, the first process holds the folder's lock, for all processes of the run."""
        with held(writable_folder(folder)) if self.is_world_process_zero() else nullcontext():
            yield

    def anywhere(self, mine: bool) -> bool:
        """True if `mine` is true in any process; all processes call this together."""
        if self.args.world_size == 1:
            return mine
        count = torch.tensor([float(mine)], device=self.args.device)
        return bool(self.accelerator.reduce(count, "sum").item())

    def _on_first_process(self, work: Callable[[], T]) -> T:
        """Runs `work` in the first process alone; returns its result, or raises its SRPOError, in every process."""
        if self.args.world_size == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [None]
        if self.is_world_process_zero():
            try:
                box = [work()]
            except SRPOError as error:
                box = [error]
        broadcast_object_list(box)
        if isinstance(box[0], SRPOError):
            raise box[0]
        return box[0]
