"""A transformers Trainer that can be killed at any instant and goes on to the very same weights.

What is saved, when and in which files is transformers' own affair. Here its hooks are led into a staging folder, what
came out is committed behind the next steps (checkpoint.py), and what a resumed run needs besides is added: sums that
are not logged yet, the position of a moving reference, and a run that is what it was (identity.py).
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from srpo.disk import expect_room, held, writable_folder, writing
from srpo.errors import CheckpointError, InputError, SRPOError
from srpo.model.randomness import left_as_found
from srpo.model.weights.load import read_pickled
from srpo.model.weights.untrusted import pickled
from srpo.signals import signals
from srpo.train.durable import archive, checkpoint
from srpo.train.durable.background import Behind
from srpo.train.durable.checkpoint import STAGING, Invalid, Manifest
from srpo.train.durable.identity import accepted, identity_of
from srpo.train.durable.nonfinite import expect_finite_weights
from srpo.train.metrics import Measured

REFERENCE_FILE = "reference.safetensors"
log = logging.getLogger("srpo")
T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: the checkpoint it goes on from; None for the beginning.
        manifest: of that checkpoint, or of the finished model.
        complete: the run has taken all its steps and its model is saved.
        changes: of the run's identity, this time's and earlier ones.
    """

    folder: Path | None = None
    manifest: Manifest | None = None
    complete: bool = False
    changes: tuple[dict[str, Any], ...] = ()


class DurableTrainer(Trainer):
    """Trainer whose checkpoints are whole or not there.

    Attributes:
        start: where the last call of `train` began.
        kept_files: names of files in a model's folder that saving sees as they are: people write in them.
        at_start: called in the first process once it is settled where a run begins and that something is left to do.
        saved: step of the newest checkpoint of the run, which may not be settled yet; −1 for none.
    """

    model: Any
    reference: Any
    start = Start()
    at_start: Callable[[], None] | None = None
    _measured: Measured
    _identity: dict[str, Any]
    _stage: Path | None = None
    saved = -1
    kept_files: tuple[str, ...] = ()

    # ------------------------------------------------------------------ training

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Trains, from the beginning or from a checkpoint, holding the run folder.

        Args:
            resume_from_checkpoint: True goes on from the newest checkpoint that is whole, and starts afresh when there
                is none; a path goes on from that one.

        Raises:
            LockedError: another process holds the run folder.
            CheckpointError: there are checkpoints, and none can be resumed from.
            ConfigError: what the run's numbers depend on has changed (see `accept_change`).
            NonFiniteError: a nan or an infinity; the optimiser has not stepped with it.
            Interrupted: a signal asked for it; what there was is committed.
        """
        with self._held(self._folder), signals.heard():
            self._identity = identity_of(self)
            self.start = self._starting_point(resume_from_checkpoint)
            if self.start.complete and self.start.manifest:
                return self._complete(self.start.manifest)
            self._expect_room(final=True)
            if self.at_start and self.is_world_process_zero():
                self.at_start()
            self.saved = self.start.manifest.step if self.start.manifest else -1
            with signals.held_back():
                folder = str(self.start.folder) if self.start.folder else None
                try:
                    result: TrainOutput = super().train(folder, trial, ignore_keys_for_eval)
                except pickle.UnpicklingError:
                    raise _would_run(self.start.folder or self._folder) from None
                finally:  # whatever ended it, what was saved is made a checkpoint while the folder is held
                    self.behind.settle()
            return result

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        """transformers' loop takes one more step before it sees that there is none left."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)
        if self.control.should_training_stop:
            self.settle()  # the best checkpoint may be loaded now, and what is called final comes after the last one

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers', drawing nothing from the generators that training draws from."""
        with left_as_found():
            return super().evaluate(*args, **kwargs)

    # ------------------------------------------------------------------ beginning

    def _starting_point(self, resume: str | bool | None) -> Start:
        start = self._from_first(lambda: self._found(resume))
        if start.manifest:
            where = str(start.folder or self._folder)
            accept = getattr(self.args, "accept_change", None) or []
            step, of = start.manifest.step, start.manifest.of
            now = accepted(start.manifest.identity, self._identity, accept, step=step, where=where)
            for change in now:
                log.warning("srpo: accepted: %(key)s was %(old)s, is %(new)s after step %(step)s", change)
            complete = start.complete and not now
            if start.complete and now:
                start = self._from_first(self._beyond_the_end)
            if complete:
                log.info("srpo: already complete (%d of %d)", step, of)
            elif start.folder:
                log.info("srpo: resuming from %s", start.folder)
            before = start.manifest.accepted if start.manifest else []
            start = Start(start.folder, start.manifest, complete, (*before, *now))
        return start

    def _found(self, resume: str | bool | None) -> Start:
        """What the folder holds to go on from; otherwise it is made ready for a run from the beginning."""
        with writing(self._folder):
            checkpoint.clear(self._folder)
            if isinstance(resume, str | Path):
                return Start(Path(resume), checkpoint.believed(Path(resume)))
            if resume:
                final = self._final()
                if final and final.finished:  # whatever has become of its checkpoints
                    return Start(None, final, complete=True)
                if newest := checkpoint.newest(self._folder):
                    return Start(*newest)
                log.info("srpo: nothing to resume in %s; starting afresh", self._folder)
                if other := archive.with_checkpoints(self._folder):
                    said = "srpo: checkpoints of an earlier run are in %s; to go on with it, --output_dir %s --resume"
                    log.warning(said, other, other)
            archive.set_aside(self._folder)
            checkpoint.retract(self._folder)
        return Start()

    def _beyond_the_end(self) -> Start:
        """Where a finished run goes on from that is to take further steps."""
        if newest := checkpoint.newest(self._folder):
            return Start(*newest)
        fix = "start from its model in another folder"
        raise CheckpointError("a finished model, and no checkpoint to go on from", where=str(self._folder), fix=fix)

    def _final(self) -> Manifest | None:
        """The manifest of the saved model, if that is what was saved."""
        if not (self._folder / checkpoint.MANIFEST).exists():
            return None
        try:
            return checkpoint.read(self._folder, alone=False)
        except Invalid as reason:
            log.warning("srpo: the model in %s cannot be believed: %s", self._folder, reason)
            return None

    def _complete(self, final: Manifest) -> TrainOutput:
        """Nothing is left to do but to have the trained weights."""
        if hasattr(self.model, "disable_adapter"):  # a PEFT model
            self.model.load_adapter(str(self._folder), self.model.active_adapter, is_trainable=True)
        else:
            self._load_from_checkpoint(str(self._folder))
        self.state.global_step, self.state.max_steps = final.step, final.of
        return TrainOutput(final.step, float("nan"), {})

    # ------------------------------------------------------------------ saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._stage) if self._stage else super()._get_output_dir(trial)

    @cached_property
    def behind(self) -> Behind:
        """What is left to do of the last save."""
        return Behind()

    def settle(self) -> None:
        """Returns, in every process, once what was saved is a checkpoint."""
        self.behind.settle()
        self._meet()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own save, into a staging folder; behind the next steps it becomes a checkpoint."""
        run = Path(super()._get_output_dir(trial))
        step = self.state.global_step
        name = f"checkpoint-{step}"
        stage = run / STAGING
        expect_finite_weights(self.model, step=step)
        self.behind.settle()
        with checkpoint.Writing(run):
            if self.args.should_save:
                checkpoint.clear(run)
                self._expect_room()
                stage.mkdir()
            self._meet()
            self._stage = stage
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stage = None
            self._save_besides(stage / name)
            self._meet()
            if self.args.should_save:
                self._name_best(run, stage / name)
                keep, spare = self.args.save_total_limit, self.state.best_model_checkpoint
                self.behind.begin(name, partial(checkpoint.finish, run, name, self._manifest(), keep=keep, spare=spare))
        self.saved = step
        if self._is_looked_at():
            self.behind.settle()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(run / name))

    def _is_looked_at(self) -> bool:
        """Somebody will be told of a save, and finds the checkpoint there."""
        told = (getattr(each.on_save, "__func__", None) for each in self.callback_handler.callbacks)
        return self.args.push_to_hub or any(each is not TrainerCallback.on_save for each in told)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not yet: only what is committed leaves the machine."""

    def _name_best(self, run: Path, staged: Path) -> None:
        """The best checkpoint by the name that it will have."""
        best = self.state.best_model_checkpoint
        if best and Path(best).parent.name == STAGING:
            self.state.best_model_checkpoint = str(run / Path(best).name)
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model where it can be used from, whole or not at all; with the last step it is the finished one."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        expect_finite_weights(self.model, step=self.state.global_step)
        self.behind.settle()
        target = Path(output_dir) if output_dir else self._folder
        stage = target / STAGING / "final"
        with self._held(target), signals.held_back(), checkpoint.Writing(target):
            if self.args.should_save:
                writable_folder(target)
                checkpoint.clear(target)
                stage.mkdir(parents=True)
                for name in self.kept_files:
                    if (target / name).is_file():
                        shutil.copy(target / name, stage / name)
            self._meet()
            super().save_model(str(stage), _internal_call=True)
            self._meet()
            if self.args.should_save:
                checkpoint.seal(stage, self._manifest())
                checkpoint.commit_files(stage, target)
                checkpoint.clear(target)
        self._meet()
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
        """For the next checkpoint, and for the model at the end."""
        if not self.args.should_save:
            return
        saved = checkpoint.checkpoints(self._folder)
        weights = [p for p in self.model.parameters() if p.requires_grad or not hasattr(self.model, "peft_config")]
        model = sum(p.numel() * p.element_size() for p in weights)
        state = 0 if self.args.save_only_model else sum(8 * p.numel() for p in weights if p.requires_grad)
        each = checkpoint.size_of(saved[0][1]) if saved else model + state + 10**5
        if self.args.save_strategy == "no":
            each = 0
        expect_room(self._folder, each + (model if final else 0), "the run" if final else "a checkpoint")

    # ------------------------------------------------------------------ what transformers does not save

    def position(self) -> dict[str, Any]:
        """Sums of this process that the next log would have told."""
        return {
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "measured": self._measured.state("train"),
        }

    def take_position(self, position: dict[str, Any]) -> None:
        """Goes back to them."""
        self._tr_loss.fill_(position["loss"])
        self._globalstep_last_logged = position["last_logged"]
        self._measured.restore("train", position["measured"])

    def _save_besides(self, folder: Path) -> None:
        (folder / self._position_file).write_text(json.dumps(self.position()), "utf-8")
        state = self.reference.state_dict()
        if state and self.args.should_save:
            from safetensors.torch import save_file

            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / REFERENCE_FILE)

    def load_besides(self, folder: Path) -> None:
        """Takes from a checkpoint what transformers left to us."""
        file = folder / self._position_file
        if file.exists():  # not when the number of processes was changed and that accepted
            self.take_position(json.loads(file.read_text("utf-8")))
        if (folder / REFERENCE_FILE).exists():
            from safetensors.torch import load_file

            self.reference.load_state_dict(load_file(folder / REFERENCE_FILE))

    @property
    def _position_file(self) -> str:
        return f"position-{self.args.process_index}.json"

    # ------------------------------------------------------------------ several processes

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    @contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        """The first process holds the folder for all."""
        with ExitStack() as stack:
            if self.is_world_process_zero():
                stack.enter_context(held(writable_folder(folder)))
            yield

    def _meet(self) -> None:
        self.accelerator.wait_for_everyone()

    def anywhere(self, mine: bool) -> bool:
        """Whether it is so in any process; all of them ask."""
        if self.args.world_size == 1:
            return mine
        asked = torch.tensor([float(mine)], device=self.args.device)
        return bool(self.accelerator.reduce(asked, "sum").item())

    def _from_first(self, work: Callable[[], T]) -> T:
        """What the first process makes of it, for all; its errors, too."""
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


def _would_run(folder: Path) -> CheckpointError:
    """A pickle of a checkpoint held more than tensors and numbers, and was not read: which one."""
    what = "a pickle in it would run code when unpickled, and was not"
    for name in pickled(folder):
        try:
            read_pickled(folder / name)
        except InputError as error:
            what = f"{name} {error.what}"
            break
    return CheckpointError(what, where=str(folder), fix="go on from checkpoints of your own runs only")
