"""Revision policies: which revisions to keep, and when to stop revising.

    always              keeps every revision (the paper)
    if_preferred        keeps a revision if the model itself prefers it; otherwise keeps the answer before it
    if_preferred_and_likelier   as if_preferred, and log π of the revision as a draft must be larger too
    until_worse         as if_preferred, and stops at the first revision that the model does not prefer
    until_unchanged     keeps every revision, and stops when a revision repeats its draft
    fixed:K             keeps every revision, K of them
    drafts              makes no revision
    greedy              makes one greedy draft, whatever the temperature
    vote                draws further drafts instead of revisions; the model, as reviser, chooses one (revise/select.py)

The model prefers a revision if its confidence, p(revision ≻ answer before it), is above ½.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from srpo.errors import ConfigError, did_you_mean

AUTO = "auto"
NAMES = (
    "always",
    "if_preferred",
    "if_preferred_and_likelier",
    "until_worse",
    "until_unchanged",
    "fixed:K",
    "drafts",
    "greedy",
    "vote",
)


class Decision(NamedTuple):
    """A revision policy's decision on one revision.

    Attributes:
        kept: True if the revision replaces the answer kept so far.
        stop: Reason for revising no further; empty to continue.
    """

    kept: bool
    stop: str = ""


@dataclass(frozen=True)
class Policy:
    """A revision policy: decides whether to keep each revision, and when to stop revising.

    Attributes:
        name: Name in settings.
        weighs: True if only revisions that the model prefers are kept, which needs the model's confidence.
        ends_at: Event that ends a trail early: "worse", "unchanged" or "".
        most: Largest number of revisions; None leaves the number to the settings.
        likelier: True if a kept revision must also have a larger log π, as a draft, than the answer before it.
        greedy: True if the draft is decoded greedily, whatever the temperature of the settings.
        fresh: True if further drafts are drawn instead of revisions, and the selector "vote" chooses among them.

    Example:
        >>> Policy.named("until_worse").decide(preferred=0.2, unchanged=False)
        Decision(kept=False, stop='worse')
        >>> Policy.named("fixed:2").limit(5)
        2
    """

    name: str
    weighs: bool = False
    ends_at: str = ""
    most: int | None = None
    likelier: bool = False
    fresh: bool = False
    greedy: bool = False

    @classmethod
    def named(cls, name: str) -> Policy:
        """Returns the revision policy of that name; "fixed:2" keeps 2 revisions, the other names are in `NAMES`.

        Raises:
            ConfigError: An unknown name.
        """
        if found := re.fullmatch(r"fixed:(\d+)", name):
            return cls(name, most=int(found[1]))
        if name not in _POLICIES:
            near = did_you_mean(name, [*NAMES, AUTO])
            expected = "one of " + ", ".join([*NAMES, AUTO])
            raise ConfigError(f"{name!r}", where="policy", expected=expected, fix=near)
        return _POLICIES[name]

    def limit(self, revisions: int) -> int:
        """Returns the largest number of revisions: the policy's own limit, or `revisions` if that is smaller."""
        return revisions if self.most is None else min(self.most, revisions)

    def decide(self, *, preferred: float | None, unchanged: bool, likelier: bool | None = None) -> Decision:
        """Decides whether to keep a revision instead of the answer before it, and whether to stop revising.

        Args:
            preferred: The model's own p(revision ≻ answer before it).
            unchanged: True if the revision repeats the answer before it.
            likelier: True if log π(revision|x) > log π(answer before it|x); None if it was not computed.
        """
        likes = preferred is not None and preferred > 0.5 and (not self.likelier or bool(likelier))
        kept = unchanged or not self.weighs or likes
        ends = (self.ends_at == "worse" and not kept) or (self.ends_at == "unchanged" and unchanged)
        return Decision(kept, self.ends_at if ends else "")


_POLICIES = {
    policy.name: policy
    for policy in (
        Policy("always"),
        Policy("if_preferred", weighs=True),
        Policy("if_preferred_and_likelier", weighs=True, likelier=True),
        Policy("until_worse", weighs=True, ends_at="worse"),
        Policy("until_unchanged", ends_at="unchanged"),
        Policy("drafts", most=0),
        Policy("greedy", most=0, greedy=True),
        Policy("vote", fresh=True),
    )
}
