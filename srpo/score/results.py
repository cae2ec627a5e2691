"""What an evaluation found: a value, in plain numbers.

Scores are shares between 0 and 1; sentences and tables show them in percent, differences in percentage points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

from srpo.statistics.percent import percent, points

POOL = "pool"
Finding = Literal["better", "worse", "level"]
# How names of our own read in print, where the caller says nothing else.
IN_PRINT = {
    "exact_match": "exactly right answers",
    "per_character": "right characters",
    "all": "all prompts",
    "gold": "the gold answers",
}


class Row(TypedDict):
    """One system after one number of revisions, on one split at one temperature, for one seed or all of them.

    `mean`, `low` and `high` are the primary score; `secondary` holds the same three for every other judge. `gain` is
    against the same system's draft, paired by prompt; `mended` and `broken` are the shares of prompts that score higher
    and lower than their draft. `changed` is the share of prompts whose answer differs from the one a revision earlier,
    None for the draft. `tokens` is the mean number of tokens per prompt that forward passes have read so far, None
    where nobody counted; `seconds` the same of time, a batch's shared by its rows. `n` counts scored prompts, those of
    every seed in a pooled row, and `unscored` those that the judge gave no verdict on. `length` is the mean length of
    the answers, `edited` and `copied` their edit distance to the draft and the share of them that stands in it, in
    the unit of lengths. `p` is the p-value of the gain, adjusted by Holm's correction for all revisions of the system,
    None for drafts.
    """

    seed: int | str
    system: str
    split: str
    temperature: float | None
    revision: int
    n: int
    mean: float
    low: float
    high: float
    secondary: dict[str, list[float]]
    gain: float
    gain_low: float
    gain_high: float
    mended: float
    broken: float
    changed: float | None
    tokens: float | None
    seconds: float | None
    unscored: int
    length: float
    edited: float
    copied: float
    p: float | None


class WinRow(TypedDict):
    """A system's answers after one number of revisions beside an opponent's, all seeds together.

    `opponent` is "gold", "draft" (the system's own) or another system, after as many revisions. `win`, `low` and `high`
    are the win rate, ties as half; `controlled` and its ends the same with length taken out of it, None where nothing
    stands against its twin. `longer` is how much longer our answers are on average. `n` counts prompts with a verdict,
    `unscored` those without.
    """

    system: str
    opponent: str
    split: str
    temperature: float | None
    revision: int
    n: int
    unscored: int
    win: float
    low: float
    high: float
    controlled: float | None
    controlled_low: float | None
    controlled_high: float | None
    longer: float


class Choice(NamedTuple):
    """The number of revisions that did best on one half of the prompts, and how it does on the other half."""

    system: str
    split: str
    temperature: float | None
    revision: int
    chosen_on: int
    n: int
    mean: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float

    def sentence(self, name: str, level: float) -> str:
        """What was chosen and what it is worth on prompts that had no part in choosing it."""
        here = f"chosen on {self.chosen_on:,} prompts, told on the other {self.n:,}"
        if not self.revision:
            return f"{name} does best without revision ({here}): {percent(self.mean)}."
        gain = f"{points(self.gain)} points over its drafts"
        interval = f"{100 * level:g} % interval {points(self.gain_low)} to {points(self.gain_high)}"
        best = f"{name} does best {_after(self.revision)}"
        return f"{best} ({here}): {percent(self.mean)}, {gain} ({interval})."


class Side(NamedTuple):
    """One side of a comparison: a system after so many revisions, 0 for its drafts."""

    system: str
    revision: int


class Difference(NamedTuple):
    """a − b for one seed or the pool, with its interval; shares, not points.

    `smallest` is the smallest true difference that as many prompts would show four times in five, None if not known.
    """

    seed: int | str
    n: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    smallest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two sides over the same prompts.

    Attributes:
        a, b: what is compared; positive differences favour `a`.
        split, temperature: on what.
        pool: over all seeds that both sides have.
        seeds: each of them alone.
    """

    a: Side
    b: Side
    split: str
    temperature: float | None
    pool: Difference
    seeds: tuple[Difference, ...]

    @property
    def finding(self) -> Finding:
        """Which side is better if the whole interval lies on one side of zero; level if it does not."""
        if self.pool.low > 0:
            return "better"
        return "worse" if self.pool.high < 0 else "level"

    def sentence(self, labels: Mapping[str, str], level: float) -> str:
        """What was found and the numbers it rests on."""
        return ": ".join(self.claim(labels, level)) + "."

    def claim(self, labels: Mapping[str, str], level: float) -> tuple[str, str]:
        """What was found, worded by where the interval lies, and the numbers it rests on."""
        a, b = (labels.get(side.system, side.system) for side in (self.a, self.b))
        pool, scores = self.pool, f"{percent(self.pool.a)} against {percent(self.pool.b)}"
        if self.a.system == self.b.system:
            rival = f"its answers {_after(self.b.revision)}" if self.b.revision else "its drafts"
            scores = f"{percent(pool.a)} {_after(self.a.revision)} against {percent(pool.b)} for {rival}"
            said = {
                "better": f"Revision helps {a}",
                "worse": f"Revision hurts {a}",
                "level": f"{a} {_after(self.a.revision)} and {rival} cannot be told apart",
            }[self.finding]
        else:
            at = ""
            if self.a.revision == self.b.revision:
                at = f"At k = {self.a.revision}, "
            else:
                a, b = f"{a} at k = {self.a.revision}", f"{b} at k = {self.b.revision}"
            said = {
                "better": f"{at}{a} does better than {b}",
                "worse": f"{at}{a} does worse than {b}",
                "level": f"{at}{a} and {b} cannot be told apart",
            }[self.finding]
        interval = f"{100 * level:g} % interval {points(pool.low)} to {points(pool.high)}"
        basis = f"n = {pool.n:,}"
        if len(self.seeds) > 1:
            first, last = (points(end(seed.difference for seed in self.seeds)) for end in (min, max))
            basis += f"; {len(self.seeds)} seeds from {first} to {last}"
        if self.finding == "level" and pool.smallest:
            basis += f", enough to show {points(pool.smallest).lstrip('+')} points"
        return said, f"{scores}, {points(pool.difference)} points ({interval}; {basis})"


@dataclass(frozen=True)
class Results:
    """Every number of an evaluation.

    Attributes:
        rows: one per seed, system, split, temperature and revision, then the same pooled over seeds.
        comparisons: what was asked beyond that.
        highlight: the system the evaluation is about.
        labels: how systems, splits and judges are called in print; one that is missing is printed as it is.
        settings: judges, resampling and how seeds were pooled.
        wins: win rates, by system, opponent and revision.
        choices: the best number of revisions of each system, split and temperature, where there are prompts enough.
        judging: what judges of two answers were asked and how well they could be read; a dict per judge and opponent.
    """

    rows: list[Row]
    comparisons: list[Comparison]
    highlight: str
    labels: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    wins: list[WinRow] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    judging: list[dict[str, Any]] = field(default_factory=list)

    def label(self, name: str) -> str:
        """What a system, a split or a judge is called in print."""
        return self.labels.get(name, IN_PRINT.get(name, name))

    def values(self, key: Literal["seed", "system", "split", "temperature", "revision"]) -> list[Any]:
        """The different values of a column, in order of appearance."""
        return list(dict.fromkeys(row[key] for row in self.rows))

    @property
    def drawn(self) -> list[str]:
        """The systems in the figures, in their order."""
        return list(self.settings.get("curves") or self.values("system"))

    @property
    def seeds(self) -> list[int | str]:
        """The seeds, the pool left out."""
        return [seed for seed in self.values("seed") if seed != POOL]

    @property
    def level(self) -> float:
        """What the intervals are meant to cover."""
        return float(self.settings.get("level", 0.95))

    def curve(self, system: str, split: str, temperature: float | None, seed: int | str = POOL) -> list[Row]:
        """The rows of one system by revision; empty when it was not run there."""
        wanted = (system, split, temperature, seed)
        found = (r for r in self.rows if (r["system"], r["split"], r["temperature"], r["seed"]) == wanted)
        return sorted(found, key=lambda row: row["revision"])

    def rate(self, system: str, opponent: str, split: str, temperature: float | None) -> list[WinRow]:
        """The win rates of one system against one opponent by revision; empty when they did not meet there."""
        wanted = (system, opponent, split, temperature)
        found = (r for r in self.wins if (r["system"], r["opponent"], r["split"], r["temperature"]) == wanted)
        return sorted(found, key=lambda row: row["revision"])

    @property
    def advice(self) -> list[str]:
        """One sentence per choice of the highlighted system's number of revisions, as `verdict` begins its own."""
        ours = [each for each in self.choices if each.system == self.highlight]
        return [self._where(each) + each.sentence(self.label(each.system), self.level) for each in ours]

    @property
    def verdict(self) -> list[str]:
        """One sentence per comparison, each beginning with its split and temperature where there are several."""
        return [self._where(each) + each.sentence(self.labels, self.level) for each in self.comparisons]

    def _where(self, comparison: Comparison | Choice) -> str:
        parts = []
        if len(self.values("split")) > 1:
            parts.append(self.label(comparison.split))
        if len(self.values("temperature")) > 1:
            parts.append(heat(comparison.temperature))
        return capital(", ".join(parts)) + ". " if parts else ""


# ---------------------------------------------------------------------- in print


def capital(text: str) -> str:
    """The text with a capital at its beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def counted(curves: Iterable[list[Row]]) -> str:
    """How many answers a cell of a table averages: "n = 600", or the least and the most where systems differ."""
    n = {row["n"] for rows in curves for row in rows}
    return f"n = {min(n):,}" if len(n) == 1 else f"n = {min(n):,} to {max(n):,}"


def heat(temperature: float | None) -> str:
    """A temperature in words."""
    return "temperature not stated" if temperature is None else f"temperature {temperature:g}"


def _after(revisions: int) -> str:
    return "after 1 revision" if revisions == 1 else f"after {revisions} revisions"
