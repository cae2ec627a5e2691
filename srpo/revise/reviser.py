"""Draft, then revise: prompt → draft → revision × N → trail.

Contexts come from the renderer training used, so a model is shown at inference exactly what it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srpo.errors import ConfigError, InputError, LengthError, did_you_mean
from srpo.generate.hf import HFEngine
from srpo.maths.confidence import preference_eq9
from srpo.model.forest import Forest
from srpo.model.forward import sequence_logps, settle_backend
from srpo.model.load import load_model, load_tokenizer, model_context
from srpo.pairs.read import Prompt, PromptRow, read_prompts
from srpo.pairs.render import Renderer, RevisionTemplate, options_of, template_for
from srpo.pairs.tree import PrefixTree
from srpo.revise.trail import Answer, Trail

POLICIES = ("always", "if_preferred")
REDUCTIONS = ("sum", "mean")
TRAINING_FILE = "srpo_training.json"


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
        policy: "always" goes on from each revision; "if_preferred" goes on from it only if the model itself prefers it
            (Eq. 9 above ½) and keeps the answer before it otherwise.
    """

    revisions: int = 5
    temperature: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    policy: str = "always"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            fix = did_you_mean(self.policy, POLICIES)
            raise ConfigError(f"{self.policy!r}", where="policy", expected="one of " + ", ".join(POLICIES), fix=fix)
        for name, least in (("revisions", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{getattr(self, name)}", where=name, expected=f"{least} or more")
        if not self.temperature >= 0:
            raise ConfigError(f"{self.temperature}", where="temperature", expected="0 (greedy) or more")


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
        backend: how confidence is computed: auto, path or flat.

    Raises:
        InputError: no model, tokenizer or template there, or a record of training that is none.
        ConfigError: a reference without a β, or a number or name out of range.

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
    ) -> None:
        path = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or ""
        tokenizer = tokenizer or load_tokenizer(path)
        if not isinstance(template, RevisionTemplate):
            template = template_for(path, template) or RevisionTemplate.load(path)
        self.renderer = Renderer(tokenizer, template)
        self.model = (load_model(model) if isinstance(model, str) else model).eval()
        self.backend = backend
        saved = _saved(path)
        self._reference = _reference(self.model, reference, saved.get("reference"))
        self.beta = beta if beta is not None else saved.get("beta")
        self.logps_reduction = logps_reduction or saved.get("logps_reduction", "sum")
        if self.logps_reduction not in REDUCTIONS:
            expected = "one of " + ", ".join(REDUCTIONS)
            raise ConfigError(f"{self.logps_reduction!r}", where="logps_reduction", expected=expected)
        if self._reference is not None and self.beta is None:
            raise ConfigError("a reference but no β", where="beta", fix="pass the β the model was trained with")
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.engine = HFEngine(self.model, pad_id=pad, batch_size=batch_size)

    @property
    def has_confidence(self) -> bool:
        """Whether a reference is at hand."""
        return self._reference is not None

    def revise(self, prompts: Iterable[Any], revisions: int = 5, **settings: Any) -> list[Trail]:
        """A trail per prompt, in order.

        Args:
            prompts: texts, message lists, or rows with a `prompt` and, if need be, `system`, `tools` and
                `chat_template_kwargs`.
            revisions: how many at most.
            settings: the other fields of `Settings`: temperature, seed, max_new_tokens, policy.

        Raises:
            ConfigError: a setting out of range, or "if_preferred" without a reference.
            DataError: a row's tools or options would not be shown to the model.
            LengthError: a context leaves no room in the model's window.
        """
        rows = read_prompts([row if isinstance(row, dict) else {"prompt": row} for row in prompts])
        return list(self.trails(rows, Settings(revisions, **settings)))

    def trails(self, rows: Sequence[PromptRow], settings: Settings, *, skip: int = 0) -> Iterator[Trail]:
        """Trails batch by batch, so that a caller can write each as it comes.

        Args:
            skip: leaves out as many trails at the head. The others stay the same to the last bit: the batch that the
                first of them is in is drawn whole.
        """
        if settings.policy == "if_preferred" and not self.has_confidence:
            fix = "pass the model it was trained from as the reference"
            raise ConfigError("if_preferred needs the model's own confidence", where="policy", fix=fix)
        for row in rows:
            self.renderer.expect_shown(row)
        counts: dict[str, int] = {}
        items = [_Item(row, _key(row.prompt, counts)) for row in rows]
        size = self.engine.batch_size
        for at in range(skip - skip % size, len(items), size):
            batch = items[at : at + size]
            self._draft(batch, settings)
            for revision in range(1, settings.revisions + 1):
                if open_items := [item for item in batch if not item.fixed]:
                    self._revise(open_items, revision, settings)
            yield from (item.trail() for item in batch[max(0, skip - at) :])

    # ------------------------------------------------------------------ one step

    def _draft(self, batch: list[_Item], settings: Settings) -> None:
        contexts = self.renderer.drafts([i.row.prompt for i in batch], [options_of(i.row) for i in batch])
        for item, answer in zip(batch, self._complete(batch, contexts, 0, settings), strict=True):
            item.answers.append(answer)
            item.in_hand = answer

    def _revise(self, items: list[_Item], revision: int, settings: Settings) -> None:
        contexts = self.renderer.revisions(
            [i.row.prompt for i in items], [i.in_hand.text for i in items], [options_of(i.row) for i in items]
        )
        answers = self._complete(items, contexts, revision, settings)
        compared = self._compared(contexts, [i.in_hand.text for i in items], [a.text for a in answers])
        for item, answer, (preferred, scored) in zip(items, answers, compared, strict=True):
            same = answer.text == item.in_hand.text
            kept = settings.policy == "always" or same or (preferred is not None and preferred > 0.5)
            tokens = answer.forward_tokens + scored
            answer = replace(answer, preferred=preferred, kept=kept, forward_tokens=tokens)
            item.answers.append(answer)
            # Greedy decoding is a function of the context: what comes back unchanged, or is refused, comes again.
            item.fixed = settings.temperature == 0 and (same or not kept)
            if kept:
                item.in_hand = answer

    def _complete(
        self, items: list[_Item], contexts: list[list[int]], revision: int, settings: Settings
    ) -> list[Answer]:
        self._expect_room(items, contexts, settings.max_new_tokens)
        completions = self.engine.complete(
            contexts,
            [f"{item.key}/{revision}" for item in items],
            max_new_tokens=settings.max_new_tokens,
            stop_ids=self.renderer.stop_ids,
            temperature=settings.temperature,
            seed=settings.seed,
        )
        return [
            Answer(
                self.renderer.decode(done.ids),
                len(done.ids),
                done.finished,
                seconds=done.seconds,
                forward_tokens=len(context) + len(done.ids),
            )
            for context, done in zip(contexts, completions, strict=True)
        ]

    # ------------------------------------------------------------------ the model's own judgement

    def log_ratios(self, sequences: Sequence[Sequence[tuple[list[int], list[int]]]]) -> Tensor:
        """[B, K] log π − log π_ref of the K (context ids, answer ids) of each of B prompts, nats, reduced over answer
        tokens as in training.

        Raises:
            ConfigError: there is no reference at hand.
        """
        if self._reference is None:
            raise ConfigError("no reference", where="reference", fix="pass the model it was trained from")
        forest = Forest.plant([PrefixTree.pack(each) for each in sequences], next(self.model.parameters()).device)
        with torch.no_grad():
            backend = settle_backend(self.model, forest.trees, self.backend)  # the same for both
            ours_BK = sequence_logps(self.model, forest, backend)
            with self._reference() as reference:
                ratio_BK = ours_BK - sequence_logps(reference, forest, backend)
        if self.logps_reduction == "mean":
            ratio_BK = ratio_BK / ratio_BK.new_tensor([[len(answer) for _, answer in each] for each in sequences])
        return ratio_BK

    def _compared(self, contexts: list[list[int]], old: list[str], new: list[str]) -> list[tuple[float | None, int]]:
        """p(new ≻ old) by Eq. 9 and the forward tokens it took; both answers are scored as revisions of the old one."""
        if self._reference is None:
            return [(None, 0)] * len(contexts)
        answers = zip(contexts, self.renderer.answers(new), self.renderer.answers(old), strict=True)
        sequences = [[(context, to), (context, keep)] for context, to, keep in answers]
        ratio_BK = self.log_ratios(sequences)
        assert self.beta is not None  # checked together with the reference
        preferred_B = preference_eq9(ratio_BK[:, 0], ratio_BK[:, 1], beta=self.beta)
        tokens = [2 * len(PrefixTree.pack(each)) for each in sequences]  # policy and reference
        return list(zip(preferred_B.tolist(), tokens, strict=True))

    # ------------------------------------------------------------------ checks

    def _expect_room(self, items: list[_Item], contexts: list[list[int]], new: int) -> None:
        limit = model_context(self.model)
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
    fixed: bool = False

    def trail(self) -> Trail:
        return Trail(self.row.prompt, tuple(self.answers), "fixed point" if self.fixed else "revisions", self.row.meta)


def _key(prompt: Prompt, counts: dict[str, int]) -> str:
    """A name for this occurrence of a prompt."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
    counts[digest] = counts.get(digest, -1) + 1
    return f"{digest}/{counts[digest]}"


def _reference(
    model: Any, reference: Any, trained_from: str | None
) -> Callable[[], AbstractContextManager[Any]] | None:
    """A context manager that yields the reference model, or None where there is none.

    Args:
        trained_from: the kind of the reference in training, where it is known: under an adapter that was trained on
            from another one, the base is not what it was trained from.
    """
    switched = hasattr(model, "disable_adapter") and trained_from in (None, "adapter off")
    if reference is None and not switched:
        return None
    frozen = load_model(reference) if isinstance(reference, str) else reference

    @contextmanager
    def active() -> Iterator[Any]:
        if frozen is not None:
            yield frozen.eval()
        else:
            with model.disable_adapter():
                yield model

    return active


def _saved(path: str) -> dict[str, Any]:
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
