"""The served model: turns checked requests into jobs with the policy, seed and limits that each request names."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace

from srpo.data.read import PromptRow
from srpo.errors import ConfigError, SRPOError
from srpo.revise.chain import Chain, key_of
from srpo.revise.drift import LOOKED_AT, unlike_drafts
from srpo.revise.policy import AUTO, Policy
from srpo.revise.reviser import Reviser
from srpo.revise.select import selector_of
from srpo.revise.settings import LAST, RevisionSettings
from srpo.revise.trail import Trail
from srpo.serve.asked import Asked
from srpo.serve.problems import Problem, invalid
from srpo.serve.scheduler import Event, Job

log = logging.getLogger(__name__)


class ServedModel:
    """A reviser (model that drafts and revises) with the default settings of its server.

    Args:
        reviser: The model.
        defaults: Settings of requests that name none; policy "auto" is the calibration stored with the model.

    Attributes:
        policy, revisions, select: Policy, largest number of revisions and selector of a request that names neither
            policy nor revisions.

    Raises:
        ConfigError: The default policy needs a confidence, and the reviser has no reference.
    """

    def __init__(self, reviser: Reviser, defaults: RevisionSettings) -> None:
        self.reviser, self.defaults = reviser, defaults
        self.policy, self.revisions = reviser.policy(defaults)
        self.select = selector_of(reviser, self.policy, reviser.select_by(defaults))
        calibrated = defaults.policy == AUTO and reviser.calibration is not None
        self._seen = reviser.calibration.seen if calibrated and reviser.calibration else {}
        self._drafted: list[tuple[PromptRow, Trail]] = []  # by the server's temperature
        self._seed = secrets.randbits(31)  # of requests without a seed, whose occurrence numbers differ
        self._occurrence = itertools.count()

    @property
    def upstream(self) -> bool:
        """True if another server generates the answers."""
        return not self.reviser.engine.same_batch_same_bits

    @property
    def sees(self) -> bool:
        """True if the model and its engine are shown pictures; the first call may load the model's processor."""
        pictures = getattr(self.reviser.renderer, "pictures", None)
        return getattr(self.reviser.engine, "pictured", False) and pictures is not None and pictures.able

    def jobs(self, asked: Asked) -> tuple[list[Job], asyncio.Queue[Event]]:
        """Returns one job per answer of a request, and the queue that receives their events.

        Raises:
            Problem: The policy needs numbers that the model lacks, or is "vote" at temperature 0, or the chat template
                refuses the prompt.
        """
        policy, limit = self.policy_for(asked.policy, asked.revisions)
        own = not asked.policy
        temperature = self.defaults.temperature if asked.temperature is None else asked.temperature
        temperature = 0.0 if policy.greedy else temperature
        greedy, unseeded = temperature == 0, asked.seed is None
        if policy.fresh and greedy:
            raise invalid("temperature", f"greedy drafts are all the same, and policy {policy.name} draws several")
        try:
            selector = selector_of(self.reviser, policy, self.select if own else self.defaults.select)
        except ConfigError as error:
            raise invalid("policy", error.what) from None
        settings = replace(
            self.defaults,
            temperature=temperature,
            max_new_tokens=asked.max_new_tokens or self.defaults.max_new_tokens,
            seed=0 if greedy else self._seed if asked.seed is None else asked.seed,
            policy="always",  # each chain has its own
            revisions=0,
        )
        queue: asyncio.Queue[Event] = asyncio.Queue()
        jobs = []
        for place, (row, occurrence) in enumerate(itertools.product(asked.rows, range(asked.n))):
            number = next(self._occurrence) if unseeded and not greedy else occurrence
            chain = Chain(row, key_of(row.prompt, number), policy, limit, selector, asked.stop)
            # With revisions the draft need not be the final answer, and a trail has events of its own.
            live = asked.stream and not (limit or policy.fresh or asked.trail)
            jobs.append(Job(chain, settings, place, queue, live))
        self._expect_shown(asked.rows)
        return jobs, queue

    def look_at(self, chains: Sequence[Chain], settings: RevisionSettings) -> None:
        """Compares served prompts, 32 at a time, with those of the calibration.

        If they are unlike, a warning is logged, and later requests that name no policy get one greedy draft.

        Args:
            chains: Ended chains, each a prompt with its answers.
            settings: Their sampling. Drafts at another temperature than the server's are not compared: log π differs.
        """
        if not self._seen or settings.temperature != self.defaults.temperature:
            return
        self._drafted += [(chain.row, chain.trail()) for chain in chains if not chain.policy.greedy]
        if len(self._drafted) < LOOKED_AT:
            return
        try:
            why = unlike_drafts(self.reviser, self._drafted[:LOOKED_AT], self._seen)
        except SRPOError as error:  # of an upstream server; the requests themselves are answered
            log.warning("srpo: prompts are not compared with those of the calibration: %s", error)
            self._seen, why = {}, ""
        if why:
            log.warning("srpo: prompts unlike those of the calibration (%s): one greedy draft from now on", why)
            self._seen, self.policy, self.revisions, self.select = {}, Policy.named("greedy"), 0, LAST
        self._drafted = []

    def policy_for(self, name: str, revisions: int | None) -> tuple[Policy, int]:
        """Returns the revision policy and the largest number of revisions of a request.

        Args:
            name: policy that the request names; "" takes the server's.
            revisions: number that the request names; None takes the server's.

        Raises:
            Problem: The policy needs a confidence, and the model has none.
        """
        if name:
            policy = Policy.named(name)
            if policy.weighs and not self.reviser.has_confidence:
                raise invalid("policy", f"{name} needs the model's own confidence: {self.reviser.why_no_confidence}")
            return policy, policy.limit(self.defaults.revisions if revisions is None else revisions)
        if revisions is None:
            return self.policy, self.revisions
        if self.policy.most is None:
            return self.policy, revisions
        # The server's policy fixes its own number, and the request asks for another.
        return Policy.named("if_preferred" if self.reviser.has_confidence else "always"), revisions

    def _expect_shown(self, rows: Sequence[PromptRow]) -> None:
        for row in rows:
            try:
                self.reviser.renderer.expect_shown(row)
            except SRPOError as error:
                raise Problem(400, error.what, param="messages", code="invalid_prompt") from None
