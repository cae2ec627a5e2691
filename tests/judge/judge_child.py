"""A process for tests to kill: `… URL CACHE N CONCURRENCY` judges N pairs and prints their scores."""

from __future__ import annotations

import sys

from srpo.generate.http import Endpoint
from srpo.generate.settings import EndpointSettings
from srpo.judge.llm import LLMJudge
from srpo.judge.prompt import load_prompt
from srpo.judge.settings import LLMSettings
from srpo.judge.verdict import AnswerPair
from srpo.judge.verdict_cache import VerdictCache


def pairs(count: int) -> list[AnswerPair]:
    return [AnswerPair(f"question {n}", *(("good", "bad") if n % 3 else ("bad", "good"))) for n in range(count)]


def judge(url: str, cache: str, concurrency: int) -> LLMJudge:
    endpoint = Endpoint(url, tries=2, backoff=0.0, concurrency=concurrency)
    return LLMJudge(
        endpoint, load_prompt("general"), LLMSettings(EndpointSettings(model="scripted")), VerdictCache(cache)
    )


if __name__ == "__main__":
    url, cache, count, concurrency = sys.argv[1:]
    for verdict in judge(url, cache, int(concurrency)).compare(pairs(int(count))):
        print(verdict.score, flush=True)
