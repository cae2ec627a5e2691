"""Drafts and revises: prompt → draft → revision × N → trail, a prompt with its answers.

Contexts come from the renderer training used, so inference shows a model exactly what training showed it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from srpo.data.read import PromptRow, read_prompts
from srpo.errors import ConfigError
from srpo.generate.engine import Decoding, Engine, Logps, reporting
from srpo.generate.speculative import SpeculativeEngine
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.unwrap import core, device_of
from srpo.model.weights.load import load_processor, load_tokenizer
from srpo.progress import remark
from srpo.revise.chain import Chain, expect_sent, forecast_of, key_of, shows_answers
from srpo.revise.confidence import Confidence, ModelScorer, Scorer, Sequences, expect_known
from srpo.revise.drift import unlike
from srpo.revise.loading import loaded_models, training_record
from srpo.revise.policy import AUTO, Policy
from srpo.revise.select import select, selector_of
from srpo.revise.settings import LAST, ReviserSettings, RevisionSettings, seed_of_draft
from srpo.revise.stored_calibration import Calibration
from srpo.revise.trail import VOTE, Answer, Trail
from srpo.sequences.protocols import Tokenizer
from srpo.sequences.render import Renderer, RevisionTemplate, options_of, template_for
from srpo.sequences.tree import PrefixTree

OBJECTIVE = "srpo"  # the objective whose models Eq. 9 and Eq. 14 describe
Written = Callable[[Chain, list[int]], None]  # a chain, token ids of its answer so far
log = logging.getLogger("srpo")


class Reviser:
    """Drafts and revises with one model.

    Args:
        model: A causal language model, or its path; an adapter's path loads the base too.
        tokenizer: The model's tokenizer; None loads the tokenizer saved at the path.
        template: The revision template: a template, a preset's name or a file; None takes the template saved with the
            model.
        reference: The model before training, for the confidence: a model or a path. None takes the base under an
            adapter that was trained from that base, and otherwise leaves the confidence out.
        settings: Loading, batches and confidence; None takes the defaults.
        engine: Generates the answers; None generates in this process. With an engine and a model given by path, no
            weights are loaded here unless a reference is passed.
        scorer: Computes the log-ratios of the confidence; None computes them from model and reference in this process.
        logps: Returns log π of (context ids, answer ids) pairs, for selectors; None computes it in this process.
        renderer: A `PromptRenderer` for the contexts; None makes one from tokenizer and template. An engine that sends
            chat messages takes a `MessageRenderer`.
        options: Fields of `ReviserSettings` by name, such as `beta=0.1` or `batch_size=8`.

    Raises:
        InputError: A missing model, tokenizer or template, or a damaged record of training.
        ConfigError: A reference without a β, an unknown device, a device or dtype for a loaded model, or an unknown or
            invalid option.

    Example:
        >>> from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, untrained_base
        >>> reviser = Reviser(untrained_base(BaseConfig(hidden=24)), carry_tokenizer(), TEMPLATE)
        >>> [len(trail.answers) for trail in reviser.revise(["12+34="], revisions=2, max_new_tokens=4)]
        [3]
    """

    def __init__(
        self,
        model: nn.Module | str,
        tokenizer: Tokenizer | None = None,
        template: RevisionTemplate | str | None = None,
        *,
        reference: nn.Module | str | None = None,
        settings: ReviserSettings | None = None,
        engine: Engine | None = None,
        scorer: Scorer | None = None,
        logps: Logps | None = None,
        renderer: Any = None,
        **options: Any,
    ) -> None:
        settings = (settings or ReviserSettings()).with_options(options)
        path = model if isinstance(model, str) else core(model).config._name_or_path
        if renderer is None:
            where: Any = {"trust_remote_code": settings.trust_remote_code, "base_model": settings.base_model}
            tokenizer = tokenizer or load_tokenizer(path, **where)
            if not isinstance(template, RevisionTemplate):
                template = template_for(path, template) or RevisionTemplate.load(path)
            renderer = Renderer(
                tokenizer,
                template,
                chat_template_kwargs=settings.chat_template_kwargs,
                no_chat_template=settings.no_chat_template,
                processor=partial(load_processor, path, **where) if path else None,
            )
        self.renderer = renderer
        record = training_record(path)
        self.calibration = Calibration.load(path)
        needed = engine is None or reference is not None
        policy, frozen = loaded_models(model, reference, settings, needed=needed)
        self.model: Any = policy
        self._logps, self._backend = logps, settings.backend
        self.beta = settings.beta if settings.beta is not None else record.get("beta")
        self.logps_reduction = settings.logps_reduction or record.get("logps_reduction", "sum")
        expect_known(self.logps_reduction, settings.equation)
        if scorer is None and policy is not None:
            scorer = ModelScorer.available(policy, frozen, record.get("reference"), backend=settings.backend)
            if self.beta is None and frozen is None:  # an adapter of another trainer; its base would be the reference
                scorer = None
        if scorer is not None and self.beta is None:
            raise ConfigError("a reference but no β", where="beta", fix="pass the β the model was trained with")
        self.confidence = (
            Confidence(scorer, self.renderer, self.beta, self.logps_reduction, settings.equation)
            if scorer is not None and self.beta is not None
            else None
        )
        self.objective = record.get("objective", OBJECTIVE)
        if engine is None:
            ids: Any = self.renderer.tokenizer
            pad = next((i for i in (ids.pad_token_id, ids.eos_token_id) if i is not None), 0)
            assert policy is not None  # loaded, since `needed`
            engine = SpeculativeEngine(policy, pad_id=pad, batch_size=settings.batch_size)
        self.engine: Engine = engine

    @property
    def has_confidence(self) -> bool:
        """True if the reviser can estimate p(revision ≻ draft), which needs a reference, β and training by SRPO."""
        return not self.why_no_confidence

    @property
    def why_no_confidence(self) -> str:
        """Reason why the reviser cannot estimate p(revision ≻ draft); empty if it can."""
        if self.objective != OBJECTIVE:
            return f"the model was trained with {self.objective}, and Eq. 9 holds for {OBJECTIVE} alone"
        if self.confidence is None:
            return "no β is saved with the model" if self.beta is None else "no reference"
        return ""

    @property
    def has_logps(self) -> bool:
        """True if the reviser can compute log π of an answer, in this process or by its engine."""
        return self.model is not None or self._logps is not None

    def policy(self, settings: RevisionSettings) -> tuple[Policy, int]:
        """Returns the policy that keeps or refuses revisions, "auto" resolved, and the largest number of revisions.

        Raises:
            ConfigError: The policy needs a confidence that the reviser lacks, or is "vote" at temperature 0.
        """
        revisions = settings.revisions
        if settings.policy != AUTO:
            policy = Policy.named(settings.policy)
        elif self.calibration is not None:
            calibrated = self.calibration.choice
            policy, revisions = Policy.named(calibrated.policy), min(revisions, calibrated.revisions)
            log.info("srpo: calibrated policy: %s", calibrated.sentence())
            measured = self.calibration.made_with.get("temperature", settings.temperature)
            if measured != settings.temperature:
                message = "srpo: the calibration was measured at temperature %g; drafts at %g may differ"
                log.warning(message, measured, settings.temperature)
        else:
            policy = Policy.named("if_preferred" if self.has_confidence else "always")
            log.info("srpo: policy %s; `srpo calibrate` measures whether revising helps this model", policy.name)
        limit = policy.limit(revisions)
        if why := self.why_no_confidence:
            fix = "pass the model it was trained from as the reference, and its β"
            if policy.weighs:
                raise ConfigError(f"{policy.name} needs the model's own confidence: {why}", where="policy", fix=fix)
            if limit:
                log.info("srpo: confidence is off: %s; every revision is kept", why)
        if policy.fresh and settings.temperature == 0:
            fix = "take --temperature above 0, or --policy drafts"
            raise ConfigError("greedy drafts are all the same", where="policy vote", fix=fix)
        return policy, limit

    def select_by(self, settings: RevisionSettings) -> str:
        """Returns the selector's name; policy "auto" replaces the default one by that stored by `srpo calibrate`."""
        if settings.policy == AUTO and self.calibration is not None and settings.select == LAST:
            return self.calibration.choice.select
        return settings.select

    def revise(self, prompts: Iterable[Any], revisions: int = 5, **settings: Any) -> list[Trail]:
        """Returns one trail per prompt, in order: the prompt, its draft and its revisions.

        A prompt without room in the model's context has a failed trail.

        Args:
            prompts: Texts, message lists, or rows with a `prompt` and, where needed, `system`, `tools` and
                `chat_template_kwargs`.
            revisions: Largest number of revisions.
            settings: Other fields of `RevisionSettings`: temperature, seed, max_new_tokens, policy.

        Raises:
            ConfigError: A setting out of range, or a policy that needs a reference without one.
            DataError: The chat template would not show a row's tools or options to the model.
        """
        rows = read_prompts([row if isinstance(row, dict) else {"prompt": row} for row in prompts])
        return list(self.trails(rows, RevisionSettings(revisions, **settings)))

    def trails(
        self,
        rows: Sequence[PromptRow],
        settings: RevisionSettings,
        *,
        skip: int = 0,
        only: Collection[int] | None = None,
    ) -> Iterator[Trail]:
        """Yields one trail per row (its draft and revisions), batch by batch, so that a caller can write each at once.

        Args:
            skip: Number of leading trails to leave out. If rounding depends on the batch, the batch of the first
                remaining trail is drawn whole, so the other trails stay equal to the last bit.
            only: Indices of the rows to draw; None draws all rows.
        """
        policy, revisions = self.policy(settings)
        select_by = self.select_by(settings)
        if settings.policy == AUTO and self.calibration is not None:
            seen = self.calibration.seen
            if (policy.fresh or revisions) and seen and (why := unlike(self, rows, settings, seen)):
                policy, revisions, select_by = Policy.named("greedy"), 0, LAST
                log.warning("srpo: prompts unlike those of the calibration (%s): one greedy draft instead", why)
        chosen_by = selector_of(self, policy, select_by)
        expect_sent(rows, self.engine)
        for row in rows:
            self.renderer.expect_shown(row)
        counts: Counter[str] = Counter()
        chains = []
        for row in rows:
            name = key_of(row.prompt, 0)
            chains.append(Chain(row, key_of(row.prompt, counts[name]), policy, revisions, chosen_by))
            counts[name] += 1
        if only is not None:
            chains = [chain for place, chain in enumerate(chains) if place in only]
        size = self.engine.batch_size
        first = skip - skip % size if self.engine.same_batch_same_bits else skip
        with forecast_of(len(chains) - first, revisions, policy, confident=self.has_confidence) as forecast:
            for at in range(first, len(chains), size):
                batch = chains[at : at + size]
                while open_chains := [chain for chain in batch if not chain.ended]:
                    begun = monotonic()
                    self.step(open_chains, settings)
                    forecast.timed(len(open_chains), monotonic() - begun)
                remark("")
                yield from self.finish(batch[max(0, skip - at) :])

    def step(self, chains: list[Chain], settings: RevisionSettings, watch: Written | None = None) -> None:
        """Draws the next answer of each chain: a draft, or a revision.

        Args:
            chains: Chains of equal `stage`, none of which has ended.
            settings: Temperature, seed and max_new_tokens; policy and number of revisions are those of each chain.
            watch: Receives a chain and the token ids of its answer so far, after every step of an engine in this
                process that reports them.
        """
        first = chains[0]
        if all(chain.policy.greedy for chain in chains):
            settings = replace(settings, temperature=0.0)
        if first.answers and not first.policy.fresh:
            self._revise(chains, settings, watch)
        elif first.answers:
            self._draft(chains, replace(settings, seed=seed_of_draft(settings.seed, len(first.answers))), watch)
        else:
            self._draft(chains, settings, watch)

    def finish(self, chains: Sequence[Chain]) -> list[Trail]:
        """Returns one trail per finished chain (prompt with answers); the chain's selector chooses the final answer."""
        trails: dict[int, Trail] = {}
        for by in dict.fromkeys(chain.select for chain in chains):
            some = [place for place, chain in enumerate(chains) if chain.select == by]
            for chain in (chains[place] for place in some):
                chain.stopped = chain.stopped or (VOTE if chain.policy.fresh else "")
            drawn = [chains[place].trail() for place in some]
            chosen = select(self, [chains[place].row for place in some], drawn, by)
            trails |= zip(some, chosen, strict=True)
        for place, chain in enumerate(chains):
            chain.close(trails[place])
        return [trails[place] for place in range(len(chains))]

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π − log π_ref of K (context ids, answer ids) for each of B prompts, nats, as in training.

        Raises:
            ConfigError: The reviser has no reference.
        """
        if self.confidence is None:
            raise ConfigError("no reference", where="reference", fix="pass the model it was trained from")
        return self.confidence.log_ratios(sequences)

    def logps(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π of K (context ids, answer ids) for each of B prompts, nats, summed over tokens."""
        if self._logps is not None:
            flat = iter(self._logps([(tuple(context), tuple(ids)) for row in sequences for context, ids in row]))
            return torch.tensor([[next(flat) for _ in row] for row in sequences], dtype=torch.float64)
        with torch.no_grad():
            forest = Forest.plant([PrefixTree.pack(each) for each in sequences], device_of(self.model))
            return sequence_logps(self.model, forest, settle_backend(self.model, forest.trees, self._backend))

    # ------------------------------------------------------------------ one step

    def _draft(self, batch: list[Chain], settings: RevisionSettings, watch: Written | None) -> None:
        contexts = self.renderer.drafts([i.row.prompt for i in batch], [options_of(i.row) for i in batch])
        for item, answer in self._complete(batch, contexts, None, settings, watch):
            item.answers.append(answer)
            item.in_hand = answer

    def _revise(self, items: list[Chain], settings: RevisionSettings, watch: Written | None) -> None:
        old = [item.in_hand.whole for item in items]
        options = [options_of(item.row) for item in items]
        contexts = self.renderer.revisions([item.row.prompt for item in items], old, options)
        written = self._complete(items, contexts, self.renderer.answers(old, options), settings, watch)
        compared: Sequence[tuple[float | None, int]] = [(None, 0)] * len(written)
        if self.confidence is not None and self.has_confidence and written:
            remark(f"revision {max(len(item.answers) for item, _ in written)}: confidence")
            old, new = [item.in_hand.whole for item, _ in written], [answer.whole for _, answer in written]
            compared = self.confidence.compare([item.row for item, _ in written], old, new)
        for (item, answer), (preferred, scored) in zip(written, compared, strict=True):
            if preferred is not None and math.isnan(preferred):
                item.failed = "no confidence: the server could not score the revision"
                continue
            # The model sees a draft without its thinking, so equal answers lead to equal next revisions.
            same = answer.text == item.in_hand.text
            likelier, read = self._likelier(item, answer) if item.policy.likelier and not same else (None, 0)
            kept, item.stopped = item.policy.decide(preferred=preferred, unchanged=same, likelier=likelier)
            tokens = answer.forward_tokens + scored + read
            answer = replace(answer, preferred=preferred, kept=kept, forward_tokens=tokens)
            item.answers.append(answer)
            # Greedy decoding is a function of the context: an unchanged or rejected revision would come back.
            if not item.stopped and settings.temperature == 0 and (same or not kept):
                item.stopped = "fixed point"
            if kept:
                item.in_hand = answer

    def _likelier(self, item: Chain, answer: Answer) -> tuple[bool, int]:
        """Whether log π(answer|x) exceeds that of the newest kept answer, and the tokens read to find out."""
        options = options_of(item.row)
        (context,) = self.renderer.drafts([item.row.prompt], [options])
        both = self.renderer.answers([answer.whole, item.in_hand.whole], [options] * 2)
        sequences = [(context, ids) for ids in both]
        new, old = self.logps([sequences])[0].tolist()
        return new > old, len(PrefixTree.pack(sequences))

    def _complete(
        self,
        items: list[Chain],
        contexts: list[list[int]],
        guesses: list[list[int]] | None,
        settings: RevisionSettings,
        watch: Written | None,
    ) -> list[tuple[Chain, Answer]]:
        """Draws one answer per context; returns (chain, answer) pairs, and marks chains without an answer as failed."""
        fit = [i for i, item in enumerate(items) if self._has_room(item, len(contexts[i]), settings.max_new_tokens)]
        items, contexts = [items[i] for i in fit], [contexts[i] for i in fit]
        guesses = [guesses[i] for i in fit] if guesses is not None else None
        with reporting(self.engine, watch and (lambda place, ids: watch(items[place], ids))):
            completions = self.engine.complete(
                contexts,
                [f"{item.key}/{0 if item.policy.fresh else len(item.answers)}" for item in items],
                Decoding(settings.max_new_tokens, self.renderer.stop_ids, settings.temperature, settings.seed),
                guesses=guesses,
                keep=shows_answers(items),
            )
        written = []
        for item, context, done in zip(items, contexts, completions, strict=True):
            item.failed = done.failed
            if not done.failed:
                options = options_of(item.row)
                decoded = done.text is None
                whole = self.renderer.decode(done.ids, options) if decoded else self.renderer.read(done.text, options)
                text = self.renderer.content_of(whole)
                thinking = whole.removesuffix(text)
                text, cut = item.cut(text)
                tokens = len(done.ids) if done.tokens is None else done.tokens
                forward = tokens + (len(context) if done.read is None else done.read)
                answer = Answer(text, tokens, done.finished or cut, seconds=done.seconds, forward_tokens=forward)
                answer = replace(answer, thinking=thinking)
                written.append((item, answer))
        return written

    def _has_room(self, item: Chain, length: int, new: int) -> bool:
        """Returns whether `length` context tokens and `new` more fit the model; if not, marks `item` impossible."""
        limit = self.engine.max_length
        if limit is None or length + new <= limit:
            return True
        room = f"{max(0, limit - length)} of the model's {limit} for max_new_tokens={new}"
        item.impossible = f"a context of {length} tokens leaves {room}"
        return False
