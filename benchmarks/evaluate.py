"""Time of an evaluation without drawing and judging: 1,024 prompts, 6 revisions, 2 systems, answers given.

    python -m benchmarks.evaluate

A scripted judge answers at once, asked in both orders against gold, own draft and rival; then every number, interval,
figure and the report. Seconds of processor time and of the clock, by stage; the clock's depends on who shares it.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import torch

from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, Verdict, combine
from srpo.report.cases import sample_cases
from srpo.report.page import write_evaluation
from srpo.revise.trail import Answer, Trail
from srpo.score.matches import tallies
from srpo.score.pooling import grouped
from srpo.score.scores import score
from srpo.score.summary import summarise, usual_questions

PROMPTS, REVISIONS, WORDS = 1024, 6, 40


class Instant:
    """A judge without cost: prefers the answer that has the gold answer's word at more places; equal counts tie."""

    identity = "instant"

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        for each in comparisons:
            if each.identical:
                yield TIE
                continue
            gold = str(each.gold).split()
            right = [sum(map(str.__eq__, text.split(), gold)) for text in (each.first, each.second)]
            said = 0.5 + 0.5 * ((right[0] > right[1]) - (right[0] < right[1]))
            yield combine([OrderVerdict(said), OrderVerdict(said)])


def trails(system: str, mends: float) -> list[Trail]:
    """Makes a system's trails: drafts of 40 words, 30 of them right, and revisions.

    Args:
        system: seed of the trails.
        mends: probability that a revision corrects a word.
    """
    chance, rows = random.Random(system), []
    for number in range(PROMPTS):
        gold = [f"w{random.Random(f'{number} {place}').randrange(500)}" for place in range(WORDS)]
        text = [word if chance.random() < 0.75 else f"w{chance.randrange(500)}" for word in gold]
        answers = []
        for _ in range(REVISIONS + 1):
            answers.append(Answer(" ".join(text), WORDS, seconds=0.1, forward_tokens=400))
            text = [right if chance.random() < mends else word for word, right in zip(text, gold, strict=True)]
        rows.append(Trail(f"prompt {number}", tuple(answers), meta={"gold": " ".join(gold)}))
    return rows


def main() -> None:
    torch.set_num_threads(2)
    cells = {(0, name, "all", 1.0): trails(name, mends) for name, mends in (("one", 0.1), ("two", 0.02))}
    judges = {"instant": Instant()}
    took = {"start": (time.process_time(), time.perf_counter())}
    scored = score(cells, judges, versus=("draft", "rivals"))
    took["judging, lengths, edits"] = (time.process_time(), time.perf_counter())
    results = summarise(grouped(scored), usual_questions(grouped(scored), "one"), judging=tallies(scored, judges))
    took["numbers"] = (time.process_time(), time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        write_evaluation(Path(folder), results, title="benchmark", samples=sample_cases(scored, "one", others=True))
    took["report"] = (time.process_time(), time.perf_counter())
    stages = list(took)
    for before, stage in pairwise(stages):
        cpu, clock = (took[stage][i] - took[before][i] for i in (0, 1))
        print(f"{stage:<26}{cpu:7.1f} s of processor{clock:8.1f} s")
    cpu, clock = (took["report"][i] - took["start"][i] for i in (0, 1))
    print(f"{'in all':<26}{cpu:7.1f} s of processor{clock:8.1f} s")


if __name__ == "__main__":
    main()
