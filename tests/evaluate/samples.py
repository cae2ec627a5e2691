"""Trails of a made-up model that adds: each revision mends a wrong digit with one chance and breaks a right one with
another, so what an evaluation should find is known."""

from __future__ import annotations

import random
from typing import Any

from srpo.judge import single
from srpo.judge.single import Judge
from srpo.revise.trail import Answer, Trail
from srpo.score.pooling import Resampling, grouped
from srpo.score.results import Results
from srpo.score.scores import ScoredTrails, TrailsKey, score
from srpo.score.summary import Question, summarise, usual_questions

QUICK = Resampling(draws=400)


def sums(n: int, seed: int) -> list[tuple[str, str]]:
    """Prompts and gold answers, five digits plus five digits."""
    chance = random.Random(f"sums {seed}")
    pairs = [(chance.randrange(100_000), chance.randrange(100_000)) for _ in range(n)]
    return [(f"{a:05}+{b:05}=", f"{a + b:06}") for a, b in pairs]


def trails(
    prompts: list[tuple[str, str]],
    *,
    wrong: float,
    mends: float,
    breaks: float = 0.0,
    revisions: int = 3,
    seed: int = 0,
) -> list[Trail]:
    """One trail per prompt.

    Args:
        wrong: chance that a digit of a draft is wrong.
        mends, breaks: chance per revision that a wrong digit becomes right, and a right one wrong.
    """
    chance, made = random.Random(f"trails {seed} {wrong} {mends} {breaks}"), []
    for prompt, gold in prompts:
        text = "".join(other(digit, chance) if chance.random() < wrong else digit for digit in gold)
        answers = [Answer(text, 7)]
        for _ in range(revisions):
            text = "".join(revised(ours, right, mends, breaks, chance) for ours, right in zip(text, gold, strict=True))
            answers.append(Answer(text, 7))
        made.append(Trail(prompt, tuple(answers), meta={"gold": gold}))
    return made


def other(digit: str, chance: random.Random) -> str:
    """Another digit."""
    return chance.choice([each for each in "0123456789" if each != digit])


def revised(ours: str, right: str, mends: float, breaks: float, chance: random.Random) -> str:
    if ours != right:
        return right if chance.random() < mends else ours
    return other(right, chance) if chance.random() < breaks else ours


# system → wrong, mends, breaks
# Judges that compare texts; the others need gold answers of their own kind.
JUDGES = {
    name: single.JUDGES[name] for name in ("exact_match", "per_character", "numeric", "edit_similarity", "rouge_l")
}
SYSTEMS = {"SRPO": (0.12, 0.3, 0.002), "DPO": (0.14, 0.02, 0.01), "base": (0.2, 0.0, 0.0)}


def cells(
    *, prompts: int = 200, seeds: int = 2, temperatures: tuple[float | None, ...] = (0.0,), revisions: int = 3
) -> dict[tuple[int, str, str, float | None], list[Trail]]:
    """Two splits, the second one harder, and three systems of which the first is good at revising."""
    return {
        (seed, system, split, temperature): trails(
            sums(prompts, 10 * seed + (split == "out")),
            wrong=wrong + 0.1 * (split == "out") + 0.05 * (temperature or 0),
            mends=mends,
            breaks=breaks,
            revisions=revisions,
            seed=seed + (split == "out"),
        )
        for seed in range(seeds)
        for split in ("in", "out")
        for temperature in temperatures
        for system, (wrong, mends, breaks) in SYSTEMS.items()
    }


def scored(judges: dict[str, Judge] | None = None, **size: Any) -> dict[TrailsKey, ScoredTrails]:
    """`cells` judged by two shipped judges."""
    return score(cells(**size), judges or {name: JUDGES[name] for name in ("exact_match", "per_character")})


def results(questions: list[Question] | None = None, **size: Any) -> Results:
    """`cells` judged and averaged, with the usual comparisons."""
    found = scored(**size)
    asked = usual_questions(grouped(found), "SRPO") if questions is None else questions
    labels = {"in": "in distribution", "out": "out of distribution"}
    return summarise(grouped(found), asked, labels=labels, resampling=QUICK)
