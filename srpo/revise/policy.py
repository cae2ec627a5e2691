"""Policies as values: which revisions to keep, and when to stop revising.

    always              keeps every revision (the paper)
    if_preferred        keeps a revision if the model itself prefers it; otherwise keeps the answer before it
    until_worse         as if_preferred, and stops at the first revision that the model does not prefer
    until_unchanged     keeps every revision, and stops when a revision repeats its draft
    fixed:K             keeps every revision, K of them
    drafts              makes no revision

The model prefers a revision if its confidence, p(revision ≻ answer before it), is above ½.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from srpo.errors import ConfigError, did_you_mean

AUTO = "auto"
NAMES = ("always", "if_preferred", "until_worse", "until_unchanged", "fixed:K", "drafts")


class Decision(NamedTuple):
    """A record of a policy's decision on one revision.

    Attributes:
        kept: True if the revision becomes the answer in hand.
        stop: Reason for ending the trail; empty to continue.
    """

    kept: bool
    stop: str = ""


@dataclass(frozen=True)
class Policy:
    """Decides whether to keep each revision, and when to stop revising.

    Attributes:
        name: Name in settings.
        weighs: True if only revisions that the model prefers are kept, which needs the model's confidence.
        ends_at: Event that ends a trail early: "worse", "unchanged" or "".
        most: Largest number of revisions; None leaves the number to the settings.

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

    @classmethod
    def named(cls, name: str) -> Policy:
        """Returns the policy of that name, such as "always" or "fixed:2".

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
        """Returns the largest number of revisions under this policy, given the number that the settings ask for."""
        return revisions if self.most is None else min(self.most, revisions)

    def decide(self, *, preferred: float | None, unchanged: bool) -> Decision:
        """Decides whether to keep a revision and whether to stop.

        Args:
            preferred: The model's own p(revision ≻ answer before it).
            unchanged: True if the revision repeats the answer before it.
        """
        kept = unchanged or not self.weighs or (preferred is not None and preferred > 0.5)
        ends = (self.ends_at == "worse" and not kept) or (self.ends_at == "unchanged" and unchanged)
        return Decision(kept, self.ends_at if ends else "")


_POLICIES = {
    policy.name: policy
    for policy in (
        Policy("always"),
        Policy("if_preferred", weighs=True),
        Policy("until_worse", weighs=True, ends_at="worse"),
        Policy("until_unchanged", ends_at="unchanged"),
        Policy("drafts", most=0),
    )
}
