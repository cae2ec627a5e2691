"""Draft, then revise: prompt → draft → revision × N → trail.

Contexts come from the renderer training used, so a model is shown at inference exactly what it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo.data.read import Prompt, PromptRow, read_prompts
from srpo.errors import ConfigError, InputError, LengthError
from srpo.generate.engine import Engine, expect_temperature
from srpo.generate.speculative import LiveEngine
from srpo.model.weights.load import TRAINING_FILE, inference_device, load_model, load_tokenizer
from srpo.revise.confidence import Confidence, ModelScorer, Scorer, Sequences, expect_known
from srpo.revise.policy import AUTO, Policy
from srpo.revise.stored_calibration import Calibration
from srpo.revise.trail import FAILED, Answer, Trail
from srpo.sequences.render import Renderer, RevisionTemplate, options_of, template_for

log = logging.getLogger("srpo")


@dataclass(frozen=True)
class Settings:
    """How trails are drawn.

    Attributes:
        revisions: how many at most. Greedy decoding stops earlier at a fixed point, exactly: an answer that comes back
            unchanged would come back for ever.
        temperature: 0 is greedy.
        seed: with a prompt's text it decides every number drawn, whatever batch the prompt is in; equal prompts are
            told apart by how often they came before.
        max_new_tokens: per answer, the terminator included.
        policy: which revisions are kept and when to stop: a name of policy.py, or "auto": what `srpo calibrate` stored
            with the model, otherwise if_preferred where its confidence can be had and always where not.
    """

    revisions: int = 5
    temperature: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    policy: str = AUTO

    def __post_init__(self) -> None:
        if self.policy != AUTO:
            Policy.named(self.policy)
        for name, least in (("revisions", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{getattr(self, name)}", where=name, expected=f"{least} or more")
        expect_temperature(self.temperature)


class Reviser:
    """Drafts and revises with one model.

    Args:
        model: a causal language model, or the path of one; the path of an adapter brings its base along.
        tokenizer: its tokenizer; None loads the one saved at the path.
        template: how a draft is shown: a template, a preset's name, a file; None takes the one saved with the model.
        reference: what the model was before training, for its own confidence: a model, the path of one, or None,
            which takes the base under an adapter that was trained from it and otherwise does without.
        beta: the β of Eq. 9; None takes the one saved with the model.
        logps_reduction: how an answer's log-probs were reduced in training, sum or mean; None takes what is saved with
            the model, else sum.
        batch_size: prompts generated together.
        backend: how confidence is computed in process: auto, path or flat.
        engine: what generates; None does it in process. With an engine of one's own and a model given as a path, no
            weight is loaded here unless a reference is passed.
        scorer: where confidence comes from; None takes model and reference in process.
        equation: of the confidence, eq9 or eq14.
        renderer: what makes contexts of prompts and drafts; None takes tokenizer and template. A `MessageRenderer` for
            an engine that asks by chat.
        trust_remote_code: run code that comes with a model or tokenizer given by its path.
        device: where models given by their paths are put: cpu, cuda, cuda:1; "" for a GPU if there is one. A reference
            given by its path beside a model that is loaded goes where that model is.
        dtype: of their weights: float32, bfloat16, float16, or auto: what they are stored in. "" for float32, or for
            that of the model that is loaded.

    Raises:
        InputError: no model, tokenizer or template there, or a record of training that is none.
        ConfigError: a reference without a β, no such device, a device or dtype for a model that is loaded, or a number
            or name out of range.

    Example:
        >>> from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, untrained_base
        >>> reviser = Reviser(untrained_base(BaseConfig(hidden=24)), carry_tokenizer(), TEMPLATE)
        >>> [len(trail.answers) for trail in reviser.revise(["12+34="], revisions=2, max_new_tokens=4)]
        [3]
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        template: RevisionTemplate | str | None = None,
        *,
        reference: Any = None,
        beta: float | None = None,
        logps_reduction: str | None = None,
        batch_size: int = 32,
        backend: str = "auto",
        engine: Engine | None = None,
        scorer: Scorer | None = None,
        equation: str = "eq9",
        trust_remote_code: bool = False,
        renderer: Any = None,
        device: str = "",
        dtype: str = "",
    ) -> None:
        path = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or ""
        if renderer is None:
            tokenizer = tokenizer or load_tokenizer(path, trust_remote_code=trust_remote_code)
            if not isinstance(template, RevisionTemplate):
                template = template_for(path, template) or RevisionTemplate.load(path)
            renderer = Renderer(tokenizer, template)
        self.renderer = renderer
        saved = saved_with(path)
        self.calibration = Calibration.load(path)
        place = _place(model, device, dtype)
        self.model: Any = model
        if isinstance(model, str):
            needed = engine is None or reference is not None
            self.model = _loaded(model, place, trust_remote_code) if needed else None
        if isinstance(reference, str):
            reference = _loaded(reference, place, trust_remote_code)
        if self.model is not None:
            self.model.eval()
        if scorer is None and self.model is not None:
            scorer = ModelScorer.at_hand(self.model, reference, saved.get("reference"), backend=backend)
        self.beta = beta if beta is not None else saved.get("beta")
        self.logps_reduction = logps_reduction or saved.get("logps_reduction", "sum")
        expect_known(self.logps_reduction, equation)
        if scorer is not None and self.beta is None:
            raise ConfigError("a reference but no β", where="beta", fix="pass the β the model was trained with")
        self.confidence = (
            Confidence(scorer, self.renderer, self.beta, self.logps_reduction, equation)
            if scorer is not None and self.beta is not None
            else None
        )
        if engine is None:
            tokenizer = self.renderer.tokenizer
            pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
            engine = LiveEngine(self.model, pad_id=pad, batch_size=batch_size)
        self.engine: Engine = engine

    @property
    def has_confidence(self) -> bool:
        """Whether a reference is at hand."""
        return self.confidence is not None

    def policy(self, settings: Settings) -> tuple[Policy, int]:
        """The policy that settings come to with this model, and how many revisions at most; what `auto` comes to is
        said.

        Raises:
            ConfigError: the policy needs a confidence that cannot be had.
        """
        revisions = settings.revisions
        if settings.policy != AUTO:
            policy = Policy.named(settings.policy)
        elif self.calibration is not None:
            choice = self.calibration.choice
            policy, revisions = Policy.named(choice.policy), min(revisions, choice.revisions)
            log.info("srpo: as calibrated: %s", choice.sentence())
            measured = self.calibration.made_with.get("temperature", settings.temperature)
            if measured != settings.temperature:
                asked = settings.temperature
                log.warning("srpo: that was at temperature %g; at %g drafts are others", measured, asked)
        else:
            policy = Policy.named("if_preferred" if self.has_confidence else "always")
            log.info("srpo: policy %s; `srpo calibrate` measures whether revising helps this model", policy.name)
        if policy.weighs and not self.has_confidence:
            fix = "pass the model it was trained from as the reference"
            raise ConfigError(f"{policy.name} needs the model's own confidence", where="policy", fix=fix)
        return policy, policy.limit(revisions)

    def revise(self, prompts: Iterable[Any], revisions: int = 5, **settings: Any) -> list[Trail]:
        """A trail per prompt, in order.

        Args:
            prompts: texts, message lists, or rows with a `prompt` and, if need be, `system`, `tools` and
                `chat_template_kwargs`.
            revisions: how many at most.
            settings: the other fields of `Settings`: temperature, seed, max_new_tokens, policy.

        Raises:
            ConfigError: a setting out of range, or a policy that needs a reference without one.
            DataError: a row's tools or options would not be shown to the model.
            LengthError: a context leaves no room in the model's window.
        """
        rows = read_prompts([row if isinstance(row, dict) else {"prompt": row} for row in prompts])
        return list(self.trails(rows, Settings(revisions, **settings)))

    def trails(
        self, rows: Sequence[PromptRow], settings: Settings, *, skip: int = 0, only: Collection[int] | None = None
    ) -> Iterator[Trail]:
        """Trails batch by batch, so that a caller can write each as it comes.

        Args:
            skip: leaves out as many trails at the head. Where the engine's bits hang on the batch, the one that the
                first of the others is in is drawn whole, so that they stay the same to the last bit.
            only: leaves out all but the rows at these places.
        """
        policy, revisions = self.policy(settings)
        for row in rows:
            self.renderer.expect_shown(row)
        counts: dict[str, int] = {}
        items = [_Item(row, _key(row.prompt, counts)) for row in rows]
        if only is not None:
            items = [item for place, item in enumerate(items) if place in only]
        size = self.engine.batch_size
        first = skip - skip % size if self.engine.same_batch_same_bits else skip
        for at in range(first, len(items), size):
            batch = items[at : at + size]
            self._draft(batch, settings)
            for revision in range(1, revisions + 1):
                if open_items := [item for item in batch if not item.stopped and not item.failed]:
                    self._revise(open_items, revision, settings, policy)
            yield from (item.trail() for item in batch[max(0, skip - at) :])

    # ------------------------------------------------------------------ one step

    def _draft(self, batch: list[_Item], settings: Settings) -> None:
        contexts = self.renderer.drafts([i.row.prompt for i in batch], [options_of(i.row) for i in batch])
        for item, answer in self._complete(batch, contexts, None, 0, settings):
            item.answers.append(answer)
            item.in_hand = answer

    def _revise(self, items: list[_Item], revision: int, settings: Settings, policy: Policy) -> None:
        old = [item.in_hand.text for item in items]
        contexts = self.renderer.revisions([i.row.prompt for i in items], old, [options_of(i.row) for i in items])
        written = self._complete(items, contexts, self.renderer.answers(old), revision, settings)
        compared: Sequence[tuple[float | None, int]] = [(None, 0)] * len(written)
        if self.confidence is not None and written:
            old, new = [item.in_hand.text for item, _ in written], [answer.text for _, answer in written]
            compared = self.confidence.compare([item.row for item, _ in written], old, new)
        for (item, answer), (preferred, scored) in zip(written, compared, strict=True):
            if preferred is not None and math.isnan(preferred):
                item.failed = "no confidence: the server could not score the revision"
                continue
            same = answer.text == item.in_hand.text
            kept, item.stopped = policy.decide(preferred=preferred, unchanged=same)
            tokens = answer.forward_tokens + scored
            answer = replace(answer, preferred=preferred, kept=kept, forward_tokens=tokens)
            item.answers.append(answer)
            # Greedy decoding is a function of the context: what comes back unchanged, or is refused, comes again.
            if not item.stopped and settings.temperature == 0 and (same or not kept):
                item.stopped = "fixed point"
            if kept:
                item.in_hand = answer

    def _complete(
        self,
        items: list[_Item],
        contexts: list[list[int]],
        guesses: list[list[int]] | None,
        revision: int,
        settings: Settings,
    ) -> list[tuple[_Item, Answer]]:
        """The items that got an answer, with it; the others have failed."""
        self._expect_room(items, contexts, settings.max_new_tokens)
        completions = self.engine.complete(
            contexts,
            [f"{item.key}/{revision}" for item in items],
            max_new_tokens=settings.max_new_tokens,
            stop_ids=self.renderer.stop_ids,
            temperature=settings.temperature,
            seed=settings.seed,
            guesses=guesses,
        )
        written = []
        for item, context, done in zip(items, contexts, completions, strict=True):
            item.failed = done.failed
            if not done.failed:
                text = self.renderer.decode(done.ids) if done.text is None else done.text
                tokens = len(done.ids) if done.tokens is None else done.tokens
                forward = tokens + (len(context) if done.read is None else done.read)
                answer = Answer(text, tokens, done.finished, seconds=done.seconds, forward_tokens=forward)
                written.append((item, answer))
        return written

    # ------------------------------------------------------------------ the model's own judgement

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """[B, K] log π − log π_ref of the K (context ids, answer ids) of each of B prompts, nats, reduced over answer
        tokens as in training.

        Raises:
            ConfigError: there is no reference at hand.
        """
        if self.confidence is None:
            raise ConfigError("no reference", where="reference", fix="pass the model it was trained from")
        return self.confidence.log_ratios(sequences)

    # ------------------------------------------------------------------ checks

    def _expect_room(self, items: list[_Item], contexts: list[list[int]], new: int) -> None:
        limit = self.engine.max_length
        for item, context in zip(items, contexts, strict=True):
            if limit is not None and len(context) + new > limit:
                raise LengthError(
                    f"a context of {len(context)} tokens leaves {max(0, limit - len(context))} for the answer",
                    where=item.row.where,
                    expected=f"room for max_new_tokens={new} in the model's {limit}",
                    fix="shorten the prompt or lower max_new_tokens",
                )


@dataclass
class _Item:
    """One prompt under way."""

    row: PromptRow
    key: str
    answers: list[Answer] = field(default_factory=list)
    in_hand: Answer = field(default_factory=lambda: Answer("", 0))
    stopped: str = ""
    failed: str = ""

    def trail(self) -> Trail:
        stopped = f"{FAILED}{self.failed}" if self.failed else self.stopped or "revisions"
        return Trail(self.row.prompt, tuple(self.answers), stopped, self.row.meta)


def _key(prompt: Prompt, counts: dict[str, int]) -> str:
    """A name for this occurrence of a prompt."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
    counts[digest] = counts.get(digest, -1) + 1
    return f"{digest}/{counts[digest]}"


class _Place(NamedTuple):
    """Where a model given by its path is put, and in what precision."""

    device: torch.device
    dtype: torch.dtype | str


def _place(model: Any, device: str, dtype: str) -> _Place:
    if isinstance(model, str):
        return _Place(inference_device(device), dtype or "float32")
    for where, asked in (("device", device), ("dtype", dtype)):
        if asked:
            fix = "move it yourself, or pass its path"
            raise ConfigError(f"{asked!r}, and a model that is loaded", where=where, fix=fix)
    return _Place(model.device, model.dtype)


def _loaded(path: str, place: _Place, trust_remote_code: bool) -> Any:
    return load_model(path, dtype=place.dtype, trust_remote_code=trust_remote_code).to(place.device)


def saved_with(path: str) -> dict[str, Any]:
    """What training left beside the model about itself; {} where there is nothing."""
    file = Path(path) / TRAINING_FILE
    if not path or not file.is_file():
        return {}
    try:
        row = json.loads(file.read_text("utf-8"))
        return {**row, "beta": float(row["beta"])}
    except (ValueError, KeyError, TypeError):
        expected = "a JSON object as training writes it"
        raise InputError("not a record of training", where=str(file), expected=expected) from None
