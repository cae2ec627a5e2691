"""Guesses of an answer's next tokens, taken from its draft, and the number of tokens worth guessing.

The model verifies a guess in one forward pass; a rejected guess costs time and changes no answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_TAIL = 4  # latest tokens to look up in the draft, to find the place again after a difference
_BACK, _AHEAD = 8, 24  # distance from the expected place to search
_MEMORY = 64.0  # tokens over which acceptance is remembered
# Guess only from this speed-up on: plain decoding costs less than the formula, and acceptance is only an estimate.
_WORTH = 1.3


class Follower:
    """Guesses the next tokens of an answer from its draft, and counts how many guesses are correct.

    Args:
        draft: Token ids that the answer probably repeats in large part.
        hits, misses: Correct and wrong guesses in an earlier answer of the same row.
    """

    def __init__(self, draft: Sequence[int], *, hits: float = 9.0, misses: float = 1.0) -> None:
        self.draft, self.at, self.hits, self.misses = list(draft), 0, hits, misses
        self.written: list[int] = []

    @classmethod
    def after(cls, before: Follower | None, draft: Sequence[int]) -> Follower:
        """Returns a follower for the next revision of a row; it guesses from `draft`.

        Its counts start from those of `before`, the follower of the row's last answer. Wrong guesses count half, since
        later revisions change less than earlier ones. With None the counts are the defaults.
        """
        return cls(draft) if before is None else cls(draft, hits=before.hits, misses=before.misses / 2)

    @property
    def acceptance(self) -> float:
        """Estimated probability, in [0, 1], that the answer goes on with the next token of the draft it revises."""
        return self.hits / (self.hits + self.misses)

    def ahead(self, most: int) -> list[int]:
        """Returns the next tokens of the draft, at most `most`, as guesses of the answer's next tokens."""
        return self.draft[self.at : self.at + most]

    def see(self, tokens: Sequence[int]) -> None:
        """Takes newly generated answer tokens; moves on in the draft and counts correct and wrong guesses."""
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
        """Returns the draft position to go on from after a wrong guess.

        It follows the nearest place where the draft has the latest answer tokens; without one, it is the next position.
        """
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
    """A formula for the time of a forward pass, in units of the time for one more token of one row.

    Measured on CPU with 25M weights, in milliseconds, for q tokens of n rows after 400 cached tokens: (n, q) (1, 1) 7,
    (1, 8) 12, (1, 32) 22, (1, 64) 35, (8, 1) 14, (8, 8) 46, (8, 32) 134, (32, 1) 49, (32, 16) 284. Times of the run
    itself are not used: the number of guessed tokens changes the rounding, and a resumed run must repeat it.

    Attributes:
        fixed: Cost of reading the weights and starting the kernels.
        row: Cost of reading the cached keys and values of one row of the batch.
    """

    fixed: float
    row: float

    @classmethod
    def of(cls, *, on_cpu: bool, weights: int, cached: int) -> Cost:
        """Returns the formula for a model on a CPU or a GPU.

        Args:
            on_cpu: True for a CPU, False for a GPU.
            weights: number of model weights.
            cached: numbers in the key/value cache per row.
        """
        fixed = 18.0 if on_cpu else 200.0
        return cls(fixed, fixed * 2 * cached / weights)

    def __call__(self, rows: int, tokens: int) -> float:
        """Returns the cost of a forward pass over `tokens` tokens of each of `rows` rows."""
        return self.fixed + rows * (self.row + tokens)


def guess_length(acceptances: Sequence[float], cost: Cost, most: int = LENGTHS[-1]) -> int:
    """Returns how many tokens to guess in the next forward pass, one number for all rows of a batch.

    It is the number with the most accepted tokens per time, as expected from `acceptances`, or 0 if guessing would not
    be clearly faster than plain decoding.

    Args:
        acceptances: Probability of each row that a guessed token is accepted, from `Follower`.
        cost: Time of a forward pass.
        most: Largest number of tokens to guess.
    """
    rows, alike = len(acceptances), Counter(round(p, 2) for p in acceptances)
    best, best_rate = 0, _WORTH * rows / cost(rows, 1)
    for length in LENGTHS[1:]:
        if length > most or rows * (length + 1) / cost(rows, 1 + length) <= best_rate:
            break  # not even with every token accepted; longer guesses are worse
        expected = sum(n * ((1 - p ** (length + 1)) / (1 - p) if p < 1 else length + 1) for p, n in alike.items())
        rate = expected / cost(rows, 1 + length)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
