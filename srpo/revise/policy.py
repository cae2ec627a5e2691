"""Which revisions are kept, and when to stop: policies as values.

    always              every revision is kept (the paper)
    if_preferred        one is kept if the model itself prefers it, otherwise the answer before it stays in hand
    until_worse         as if_preferred, and the first one that is not preferred ends the trail
    until_unchanged     every revision is kept, until one repeats its draft
    fixed:K             every revision is kept, K of them
    drafts              none is made

Whether the model prefers a revision is its confidence, p(revision ≻ answer before it), above ½.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from srpo.errors import ConfigError, did_you_mean

AUTO = "auto"
NAMES = ("always", "if_preferred", "until_worse", "until_unchanged", "fixed:K", "drafts")


class Decision(NamedTuple):
    """What becomes of a revision.

    Attributes:
        kept: it is in hand from now on.
        stop: why there are no more; empty to go on.
    """

    kept: bool
    stop: str = ""


@dataclass(frozen=True)
class Policy:
    """Decides on each revision.

    Attributes:
        name: as it is written in settings.
        weighs: keeps only what the model itself prefers; needs its confidence.
        ends_at: what ends a trail early: "worse", "unchanged" or nothing.
        most: revisions at most; None leaves it to the settings.

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
        """The policy of a name.

        Raises:
            ConfigError: there is none.
        """
        if found := re.fullmatch(r"fixed:(\d+)", name):
            return cls(name, most=int(found[1]))
        if name not in _POLICIES:
            near = did_you_mean(name, [*NAMES, AUTO])
            expected = "one of " + ", ".join([*NAMES, AUTO])
            raise ConfigError(f"{name!r}", where="policy", expected=expected, fix=near)
        return _POLICIES[name]

    def limit(self, revisions: int) -> int:
        """How many revisions there are at most."""
        return revisions if self.most is None else min(self.most, revisions)

    def decide(self, *, preferred: float | None, unchanged: bool) -> Decision:
        """What becomes of a revision.

        Args:
            preferred: the model's own p(revision ≻ answer before it).
            unchanged: it says what the answer before it says.
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
