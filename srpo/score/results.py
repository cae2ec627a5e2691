"""`Results`: every number of an evaluation, and the sentences that state them.

Scores are shares between 0 and 1. Sentences and tables show scores in percent and differences in percentage points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

from srpo.statistics.percent import percent, points

POOL = "pool"
Finding = Literal["better", "worse", "level"]
LEAST_UNEQUAL = 6  # smallest number of unequal scores with which a two-sided sign test can reach p < 0.05
# Printed names of built-in judges, splits and systems, unless the caller labels them.
IN_PRINT = {
    "exact_match": "exactly right answers",
    "per_character": "right characters",
    "unit_tests": "answers that pass their tests",
    "json_schema": "answers that fit their schema",
    "all": "all prompts",
    "gold": "the gold answers",
}


class Row(TypedDict):
    """Numbers of one system after k revisions, on one split at one temperature, for one seed or all seeds pooled.

    `mean`, `low` and `high` are the primary score in [0, 1] with its interval; `secondary` holds the same three numbers
    for every other judge. `n` counts scored prompts, over all seeds in a pooled row; `unscored` counts prompts without
    a verdict. `gain` is the score minus the draft's, paired by prompt; `p` is its p-value, adjusted by Holm's
    correction for all revisions of the system, None for drafts. `mended` and `broken` are the shares of prompts that
    score higher and lower than their draft. `changed` is the share of answers that differ from the previous revision,
    None for drafts. `tokens` and `seconds` are cumulative means per prompt of forward tokens and time, None if not
    measured. `length` is the mean length in words or characters; `edited` is the mean edit distance to the draft as a
    share of the longer text, and `copied` the share of the answer that is copied from the draft.
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
    """Win rate of a system against one opponent after k revisions, all seeds pooled.

    `opponent` is "gold", "draft" (the system's own draft) or another system after k revisions. `win`, `low` and `high`
    are the win rate in [0, 1], ties counted half. `controlled` and its ends are the win rate at equal length, None if
    all pairs of texts are identical. `longer` is the mean length of the system's answers minus the opponent's, in words
    or characters. `n` counts prompts with a verdict, `unscored` prompts without one.
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


class BestRevision(NamedTuple):
    """The number of revisions of one system that scored best on half of the prompts, and its score on the other half.

    `chosen_on` and `n` count the prompts of the halves; `mean` is the score in [0, 1], `gain` that minus the draft's.
    """

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
        """Returns a sentence with a system's best number of revisions and its score on prompts that did not choose it.

        `name` is the printed name of the system, `level` the coverage of the interval, in (0, 1).
        """
        here = f"chosen on {self.chosen_on:,} prompts, measured on the other {self.n:,}"
        if not self.revision:
            return f"{name} does best without revision ({here}): {percent(self.mean)}."
        gain = f"{points(self.gain)} points over its drafts"
        interval = f"{100 * level:g} % interval {points(self.gain_low)} to {points(self.gain_high)}"
        best = f"{name} does best {_after(self.revision)}"
        return f"{best} ({here}): {percent(self.mean)}, {gain} ({interval})."


class Side(NamedTuple):
    """One side of a comparison: a system after a number of revisions, 0 for its drafts."""

    system: str
    revision: int


class Difference(NamedTuple):
    """Score of side a minus score of side b, for one seed or all pooled (`POOL`), with the ends of its interval.

    Scores are in [0, 1]. `smallest` is the smallest true difference that this many prompts would show four times in
    five, None if unknown. `higher` and `lower` count the prompts on which side a scores higher and lower than side b;
    if seeds share a prompt, their mean decides. `changed` counts the answers whose texts differ. These three are None
    in older files.
    """

    seed: int | str
    n: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    smallest: float | None = None
    higher: int | None = None
    lower: int | None = None
    changed: int | None = None

    @property
    def unequal(self) -> int:
        """Number of prompts on which the two sides' scores differ; all `n` prompts in older files without the count."""
        return self.n if self.higher is None or self.lower is None else self.higher + self.lower


@dataclass(frozen=True)
class SystemComparison:
    """Comparison of two sides, each a system after some revisions, over the same prompts.

    Attributes:
        a, b: the sides; positive differences favour `a`.
        split, temperature: the split of the prompts and the sampling temperature.
        pool: the difference over all seeds that both sides have.
        seeds: the difference for each seed that both sides have.
    """

    a: Side
    b: Side
    split: str
    temperature: float | None
    pool: Difference
    seeds: tuple[Difference, ...]

    @property
    def finding(self) -> Finding:
        """The finding on side a: "better" or "worse" if the pooled interval lies above or below zero, else "level".

        With fewer than `LEAST_UNEQUAL` unequal scores the finding is "level", whatever the interval.
        """
        if self.pool.unequal < LEAST_UNEQUAL:
            return "level"
        if self.pool.low > 0:
            return "better"
        return "worse" if self.pool.high < 0 else "level"

    def sentence(self, labels: Mapping[str, str], level: float) -> str:
        """Returns the finding on side a and its numbers as one sentence; the arguments are those of `claim`."""
        return ": ".join(self.claim(labels, level)) + "."

    def claim(self, labels: Mapping[str, str], level: float) -> tuple[str, str]:
        """Returns the finding on side a in words ("… does better than …"), and its numbers in words.

        `labels` maps systems to printed names; `level` is the coverage of the intervals, in (0, 1).
        """
        a, b = (labels.get(side.system, side.system) for side in (self.a, self.b))
        pool, scores = self.pool, f"{percent(self.pool.a)} against {percent(self.pool.b)}"
        if self.a.system == self.b.system:
            rival = f"its answers {_after(self.b.revision)}" if self.b.revision else "its drafts"
            scores = f"{percent(pool.a)} {_after(self.a.revision)} against {percent(pool.b)} for {rival}"
            lead = {
                "better": f"Revision helps {a}",
                "worse": f"Revision hurts {a}",
                "level": f"{a} {_after(self.a.revision)} and {rival} cannot be told apart",
            }[self.finding]
        else:
            at = f"At k = {self.a.revision}, "
            if self.a.revision != self.b.revision:
                at, a, b = "", f"{a} at k = {self.a.revision}", f"{b} at k = {self.b.revision}"
            lead = {
                "better": f"{at}{a} does better than {b}",
                "worse": f"{at}{a} does worse than {b}",
                "level": f"{at}{a} and {b} cannot be told apart",
            }[self.finding]
        interval = f"{100 * level:g} % interval {points(pool.low)} to {points(pool.high)}"
        basis = f"n = {pool.n:,}"
        if len(self.seeds) > 1:
            first, last = (points(end(seed.difference for seed in self.seeds)) for end in (min, max))
            basis += f"; {len(self.seeds)} seeds from {first} to {last}"
        own = self.a.system == self.b.system
        if pool.higher is not None:
            up, down = ("corrected", "broken") if own else ("higher", "lower")
            basis += f"; {pool.higher:,} {up}, {pool.lower:,} {down}"
        if pool.changed is not None and pool.changed < LEAST_UNEQUAL:
            basis += f"; {pool.changed} of {pool.n:,} answers differ: too few changed answers to tell"
        elif pool.unequal < LEAST_UNEQUAL:
            basis += f"; {pool.unequal} of {pool.n:,} scores differ: too few to tell"
        elif self.finding == "level" and pool.smallest:
            basis += f"; enough to show {points(pool.smallest).lstrip('+')} points"
        return lead, f"{scores}, {points(pool.difference)} points ({interval}; {basis})"


@dataclass(frozen=True)
class Results:
    """All numbers of an evaluation: scores, win rates and comparisons of every system.

    Attributes:
        rows: one row per seed, system, split, temperature and revision, then the rows pooled over seeds.
        comparisons: one per `Question` given to `summarise`.
        highlight: the system that the evaluation is about.
        labels: printed names of systems, splits and judges; an unlabelled name is printed as it is.
        settings: judges, resampling and the pooling of seeds.
        wins: win rates by system, opponent and revision.
        choices: the best number of revisions per system, split and temperature, where there are enough prompts.
        judging: counts of comparisons, ties and unreadable verdicts; one dict per pair judge and opponent.
    """

    rows: list[Row]
    comparisons: list[SystemComparison]
    highlight: str
    labels: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    wins: list[WinRow] = field(default_factory=list)
    choices: list[BestRevision] = field(default_factory=list)
    judging: list[dict[str, Any]] = field(default_factory=list)

    def label(self, name: str) -> str:
        """Returns the printed name of a system, split or judge; a name without a label is returned unchanged."""
        return self.labels.get(name, IN_PRINT.get(name, name))

    def values(self, key: Literal["seed", "system", "split", "temperature", "revision"]) -> list[Any]:
        """Returns the different values of one column of `rows`, in order of appearance."""
        return list(dict.fromkeys(row[key] for row in self.rows))

    @property
    def drawn(self) -> list[str]:
        """Names of the systems that the figures show, in their order."""
        return list(self.settings.get("curves") or self.values("system"))

    @property
    def seeds(self) -> list[int | str]:
        """The seeds that `rows` has numbers for; the pooled rows have no seed."""
        return [seed for seed in self.values("seed") if seed != POOL]

    @property
    def level(self) -> float:
        """Nominal coverage of the intervals, in (0, 1)."""
        return float(self.settings.get("level", 0.95))

    @property
    def places(self) -> list[tuple[str, float | None]]:
        """The different pairs of split and temperature, in order of appearance."""
        return list(dict.fromkeys((row["split"], row["temperature"]) for row in self.rows))

    def curves(self, split: str, temperature: float | None, seed: int | str = POOL) -> dict[str, list[Row]]:
        """Returns system → its rows by number of revisions, for one split, temperature and seed (or pooled)."""
        found = {system: self.curve(system, split, temperature, seed) for system in self.values("system")}
        return {system: rows for system, rows in found.items() if rows}

    def curve(self, system: str, split: str, temperature: float | None, seed: int | str = POOL) -> list[Row]:
        """Returns one system's rows by number of revisions, for one split, temperature and seed; empty if not run."""
        wanted = (system, split, temperature, seed)
        found = (r for r in self.rows if (r["system"], r["split"], r["temperature"], r["seed"]) == wanted)
        return sorted(found, key=lambda row: row["revision"])

    def rate(self, system: str, opponent: str, split: str, temperature: float | None) -> list[WinRow]:
        """Returns a system's win rates against one opponent by number of revisions; empty if not compared."""
        wanted = (system, opponent, split, temperature)
        found = (r for r in self.wins if (r["system"], r["opponent"], r["split"], r["temperature"]) == wanted)
        return sorted(found, key=lambda row: row["revision"])

    @property
    def cautions(self) -> list[str]:
        """Sentences on prompts left out, and a warning if the judge gives all answers the same score, 0 or 1."""
        found = list(self.settings.get("notes", ()))
        rows = [row for row in self.rows if row["seed"] == POOL and row["system"] not in self.bounds]
        constant = {0.0: "gave no answer a point", 1.0: "gave every answer a full point"}
        for share, fact in constant.items():
            if rows and all(row["mean"] == share for row in rows):
                judge = self.settings.get("judge", "The judge")
                fix = "Read the answers in the report, or choose another judge."
                found.append(f"{judge} {fact}: its scores cannot compare these systems. {fix}")
        return found

    @property
    def bounds(self) -> list[str]:
        """Names of systems that use the gold answer or the judge, as no real one can: upper bounds, not opponents."""
        return list(self.settings.get("bounds", ()))

    def strongest(self, split: str, temperature: float | None) -> SystemComparison | None:
        """Returns the highlighted system's comparison with its strongest opponent; None without an opponent.

        The strongest opponent has the highest pooled score. The system's own drafts count as one; `bounds` do not.
        """
        place = (split, temperature)
        rivals = [each for each in self.comparisons if (each.split, each.temperature) == place]
        rivals = [each for each in rivals if each.a.system == self.highlight and each.b.system not in self.bounds]
        return max(rivals, key=lambda each: each.pool.b, default=None)

    @property
    def claims(self) -> list[tuple[SystemComparison, str, str]]:
        """Each comparison with its finding and its numbers in words.

        Of each split and temperature, the comparison with the strongest opponent comes first.
        """
        found = []
        for place in dict.fromkeys((each.split, each.temperature) for each in self.comparisons):
            strongest = self.strongest(*place)
            here = [each for each in self.comparisons if (each.split, each.temperature) == place]
            for each in sorted(here, key=lambda each: each is not strongest):
                lead, numbers = each.claim(self.labels, self.level)
                if each is strongest and len({other.b for other in here if other.b.system not in self.bounds}) > 1:
                    name = "its drafts" if each.b.system == each.a.system else self.label(each.b.system)
                    lead = f"The strongest opponent is {name}. {lead}"
                found.append((each, lead, numbers))
        return found

    @property
    def advice(self) -> list[str]:
        """Sentences with the highlighted system's best number of revisions, one per split and temperature."""
        ours = [each for each in self.choices if each.system == self.highlight]
        return [self._where(each) + each.sentence(self.label(each.system), self.level) for each in ours]

    @property
    def verdict(self) -> list[str]:
        """Sentences with finding and numbers of each comparison, with split and temperature if there are several."""
        return [f"{self._where(each)}{lead}: {numbers}." for each, lead, numbers in self.claims]

    def _where(self, each: SystemComparison | BestRevision) -> str:
        parts = [self.label(each.split)] if len(self.values("split")) > 1 else []
        parts += [heat(each.temperature)] if len(self.values("temperature")) > 1 else []
        return capital(", ".join(parts)) + ". " if parts else ""


# ---------------------------------------------------------------------- in print


def capital(text: str) -> str:
    """Returns the text with a capital first letter and the rest unchanged."""
    return text[:1].upper() + text[1:]


def counted(curves: Iterable[list[Row]]) -> str:
    """Returns the number of prompts behind the means as text: "n = 600", or "n = 500 to 600" if the rows differ."""
    n = {row["n"] for rows in curves for row in rows}
    return f"n = {min(n):,}" if len(n) == 1 else f"n = {min(n):,} to {max(n):,}"


def heat(temperature: float | None) -> str:
    """Returns a sampling temperature as text for headings: "temperature 1", or "temperature not stated" for None."""
    return "temperature not stated" if temperature is None else f"temperature {temperature:g}"


def _after(revisions: int) -> str:
    return "after 1 revision" if revisions == 1 else f"after {revisions} revisions"
