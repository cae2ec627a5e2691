"""The state of prompts while their drafts and revisions are drawn: answers so far, reason for the end, progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from srpo.data.pictures import pictures_of
from srpo.data.read import Prompt, PromptRow
from srpo.errors import ConfigError
from srpo.generate.engine import Engine, Keep
from srpo.progress import Forecast, remark
from srpo.revise.policy import Policy
from srpo.revise.settings import LAST
from srpo.revise.trail import FAILED, IMPOSSIBLE, Answer, Trail


@dataclass
class Chain:
    """The state of one prompt while its draft and revisions are drawn.

    Attributes:
        row: The prompt.
        key: Text that decides the prompt's random draws together with the seed; see `key_of`.
        policy: Keeps or refuses each revision.
        limit: Largest number of revisions.
        select: Name of the selector that chooses the final answer (revise/select.py).
        stop: Texts that end an answer; the answer is cut before the first one.
        answers: The draft first, then one entry per revision.
        in_hand: The last answer kept.
        stopped: Reason of policy or fixed point for ending early; "" otherwise.
        failed: Reason why an engine gave no answer; "" otherwise.
        impossible: Reason why the prompt does not fit the model; "" otherwise.
    """

    row: PromptRow
    key: str
    policy: Policy
    limit: int
    select: str = LAST
    stop: tuple[str, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    in_hand: Answer = field(default_factory=lambda: Answer("", 0))
    stopped: str = ""
    failed: str = ""
    impossible: str = ""

    @property
    def ended(self) -> bool:
        """True if no further answer to this prompt will be drawn."""
        return bool(self.stopped or self.failed or self.impossible) or len(self.answers) > self.limit

    @property
    def stage(self) -> tuple[str, int]:
        """Kind of the next answer to this prompt: ("draft", n) for draft n, counted from 0, or ("revision", 0).

        Prompts with equal stages share a batch. Only the policy "vote" draws further drafts; each n has random draws of
        its own.
        """
        if not self.answers:
            return "draft", 0
        return ("draft", len(self.answers)) if self.policy.fresh else ("revision", 0)

    def close(self, trail: Trail) -> None:
        """Replaces the answers by those of `trail`, which has a final answer chosen, and sets `in_hand` to that one."""
        self.answers = list(trail.answers)
        if self.answers:
            self.in_hand = trail.after(len(self.answers))

    def cut(self, text: str) -> tuple[str, bool]:
        """Returns the text before the first stop text, and True if there was a stop text."""
        places = [place for each in self.stop if (place := text.find(each)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def trail(self) -> Trail:
        """Returns the prompt with its answers so far, and the reason for the end, as a `Trail`."""
        stopped = f"{FAILED}{self.failed}" if self.failed else self.stopped or "revisions"
        stopped = f"{IMPOSSIBLE}{self.impossible}" if self.impossible else stopped
        return Trail(self.row.prompt, tuple(self.answers), stopped, self.row.meta)


def expect_sent(rows: Sequence[PromptRow], engine: Engine) -> None:
    """Raises ConfigError if a prompt has pictures and the engine would be sent its token ids alone."""
    shown = getattr(engine, "pictured", False)
    if where := next((row.where for row in rows if pictures_of(row.prompt) and not shown), None):
        fix = "use engine hf, which generates in this process"
        raise ConfigError("the prompt has pictures, and this engine is not sent pictures", where=where, fix=fix)


def key_of(prompt: Prompt, occurrence: int) -> str:
    """Returns the text that decides a prompt's random draws together with the seed: its hash and `occurrence`.

    Equal prompts have different keys, so that their answers are drawn independently.

    Args:
        occurrence: number of equal prompts before this one.
    """
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
    return f"{digest}/{occurrence}"


def forecast_of(prompts: int, revisions: int, policy: Policy, *, confident: bool) -> Forecast:
    """Returns a `Forecast` (announces when long work will end) of drafting and revising so many prompts.

    Args:
        revisions: largest number of revisions of each.
        confident: true if the model's confidence in revisions is computed too.
    """
    kind = "further draft" if policy.fresh else "revision"
    further = f" and at most {revisions} {kind}{'s' if revisions > 1 else ''}" if revisions else ""
    answers = prompts * (revisions + 1)
    besides = "the scores of the revisions" if confident and revisions and not policy.fresh else ""
    size = f"{prompts} prompts, a draft{further} of each: at most {answers} answers"
    return Forecast(size, answers, "answers", besides)


def shows_answers(chains: Sequence[Chain]) -> Keep:
    """Returns a function to call whenever an answer of the batch is complete; it shows the count in the progress."""
    answers, revisions = len(chains), {len(chain.answers) for chain in chains if not chain.policy.fresh}
    stage, done = f"revision {max(revisions)}" if any(revisions) else "drafts", count(1)
    remark(f"{stage}: 0 of {answers} answers")
    return lambda place, completion: remark(f"{stage}: {next(done)} of {answers} answers")
