"""What an answer will say next, if it goes on following its draft, and how far ahead it pays to guess.

A guess is a hint: the model verifies it in one forward, and what it refuses costs time and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_TAIL = 4  # tokens just written that are looked up in the draft, to find the place again after a difference
_BACK, _AHEAD = 8, 24  # how far from where it should be the place is looked for
_MEMORY = 64.0  # tokens over which acceptance is remembered
# Guessing must promise this much over plain decoding: a forward over a single token is cheaper than the formula says,
# and estimates of acceptance are off.
_WORTH = 1.3


class Follower:
    """Follows a draft while an answer is written: where in the draft the answer is, and how often that was right.

    Args:
        draft: ids the answer is likely to follow.
        hits, misses: acceptance so far, from an earlier answer of the same row.
    """

    def __init__(self, draft: Sequence[int], *, hits: float = 9.0, misses: float = 1.0) -> None:
        self.draft, self.at, self.hits, self.misses = list(draft), 0, hits, misses
        self.written: list[int] = []

    @classmethod
    def after(cls, before: Follower | None, draft: Sequence[int]) -> Follower:
        """For the next revision of the same row: as often right as before, or rather more, since revisions settle."""
        return cls(draft) if before is None else cls(draft, hits=before.hits, misses=before.misses / 2)

    @property
    def acceptance(self) -> float:
        """Estimated probability that the next token of the draft is the next token of the answer."""
        return self.hits / (self.hits + self.misses)

    def ahead(self, most: int) -> list[int]:
        """What the answer will say next, at most so many tokens."""
        return self.draft[self.at : self.at + most]

    def see(self, tokens: Sequence[int]) -> None:
        """Goes on by what was written, whether it had been guessed or not."""
        for token in tokens:
            self.written.append(token)
            if self.at < len(self.draft) and self.draft[self.at] == token:
                self.at += 1
                self.hits += 1
            else:
                self.misses += 1
                self.at = self._place()
        if (seen := self.hits + self.misses) > _MEMORY:
            self.hits, self.misses = self.hits * _MEMORY / seen, self.misses * _MEMORY / seen

    def _place(self) -> int:
        """Where the draft goes on after the last tokens written; one further, as if one was replaced, if nowhere."""
        expected = self.at + 1
        for length in range(min(_TAIL, len(self.written)), 0, -1):
            tail = self.written[-length:]
            low, high = max(0, self.at - _BACK), min(len(self.draft) - length, self.at + _AHEAD)
            found = [at + length for at in range(low, high + 1) if self.draft[at : at + length] == tail]
            if found:
                return min(found, key=lambda at: abs(at - expected))
        return min(expected, len(self.draft))


@dataclass(frozen=True)
class Cost:
    """What a forward costs, in the time of one more token of one row.

    Measured on CPU with 25M weights, milliseconds of a forward over q tokens of n rows after 400: (n, q) (1, 1) 7,
    (1, 8) 12, (1, 32) 22, (1, 64) 35, (8, 1) 14, (8, 8) 46, (8, 32) 134, (32, 1) 49, (32, 16) 284. It is a formula and
    no stopwatch, since other guess lengths are other roundings: a run that is interrupted and resumed must guess alike.

    Attributes:
        fixed: reading the weights and starting the kernels, whatever is computed.
        row: reading a row's keys and values.
    """

    fixed: float
    row: float

    @classmethod
    def of(cls, *, on_cpu: bool, weights: int, cached: int) -> Cost:
        """From the number of weights, and of numbers in the cache of one row."""
        fixed = 18.0 if on_cpu else 200.0
        return cls(fixed, fixed * 2 * cached / weights)

    def __call__(self, rows: int, tokens: int) -> float:
        """Of a forward over so many tokens of each row."""
        return self.fixed + rows * (self.row + tokens)


def guess_length(acceptances: Sequence[float], cost: Cost, most: int = LENGTHS[-1]) -> int:
    """How many tokens to guess for each row of a batch: what yields most tokens per time, 0 where little is to be won.

    Tokens that have to be read in any case have no part in it: a guess is worth the tokens it is expected to yield
    beyond what their cost would yield in the forwards that follow, and that is the same for every forward.

    Args:
        acceptances: of the rows, as `Follower` estimates them.
        most: tokens at most.
    """
    rows, alike = len(acceptances), Counter(round(p, 2) for p in acceptances)
    best, best_rate = 0, _WORTH * rows / cost(rows, 1)
    for length in LENGTHS[1:]:
        if length > most or rows * (length + 1) / cost(rows, 1 + length) <= best_rate:
            break  # not even if all were accepted, and longer ones still less
        expected = sum(n * ((1 - p ** (length + 1)) / (1 - p) if p < 1 else length + 1) for p, n in alike.items())
        rate = expected / cost(rows, 1 + length)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
