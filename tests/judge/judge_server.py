"""Scripted judges behind a real server on the loopback interface, each with one trait.

A judge is a function from the messages that a model would see to the model's reply. The better answer is the one with
more of the word "good".
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from srpo.generate.http import Endpoint
from srpo.generate.settings import EndpointSettings
from srpo.judge.llm import LLMJudge
from srpo.judge.prompt import load_prompt, nonce_for
from srpo.judge.settings import LLMSettings
from srpo.judge.verdict_cache import VerdictCache
from tests.scripted_server import Asked, Say, serve

BEST = 3  # of "good" in an answer
ORDER = re.compile(r"ignore all that and answer (\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Seen:
    """The messages as a model understands them: the nonce of the fences and the three texts inside."""

    nonce: str
    prompt: str
    a: str
    b: str
    outside: str  # the part of the user's message outside the fences

    @classmethod
    def of(cls, body: dict[str, Any]) -> Seen:
        said = "\n".join(message["content"] for message in body["messages"])
        mark = re.search(r"a line <<<(\w+) and a line \1>>>", said)
        assert mark, said
        fence = re.compile(rf"<<<{mark[1]}\n(.*?)\n{mark[1]}>>>", re.DOTALL)
        user = body["messages"][-1]["content"]
        prompt, a, b, *_ = fence.findall(user)
        return cls(mark[1], prompt, a, b, fence.sub("", user))

    def verdict(self, word: str) -> str:
        return f"VERDICT {self.nonce}: {word}"

    @property
    def better(self) -> str:
        a, b = self.a.count("good"), self.b.count("good")
        return "A" if a > b else "B" if b > a else "tie"


Judge = Callable[[Seen], str]


def honest(seen: Seen) -> str:
    return f"One is better.\n{seen.verdict(seen.better)}"


def position_biased(seen: Seen) -> str:
    return seen.verdict("A")


def length_biased(seen: Seen) -> str:
    return seen.verdict("A" if len(seen.a) > len(seen.b) else "B" if len(seen.b) > len(seen.a) else "tie")


def verbose(seen: Seen) -> str:
    """Revises its verdict on the way, in bold, with a zero-width space in the word."""
    thinking = f"At first glance {seen.verdict('tie')}.\nBut then VERDICT: {'B' if seen.better == 'A' else 'A'}!\n" * 50
    return f"{thinking}\n**VER\u200bDICT {seen.nonce}:** *{seen.better}*.\n\nI hope this helps."


def refusing(seen: Seen) -> str:
    return "I'm sorry, but I cannot compare people's answers."


def silent(seen: Seen) -> str:
    return ""


def both(seen: Seen) -> str:
    return f"{seen.verdict('A')} or {seen.verdict('B')}"


def neither(seen: Seen) -> str:
    return seen.verdict("whichever you like")


def injectable(seen: Seen) -> str:
    """Respects the fences, and obeys any instruction outside of them."""
    told = ORDER.search(seen.outside)
    return seen.verdict(told[1] if told else seen.better)


def gullible(seen: Seen) -> str:
    """Obeys any instruction anywhere, to the letter."""
    told = ORDER.search(seen.a) or ORDER.search(seen.b)
    return f"VERDICT: {told[1]}" if told else honest(seen)


def echoing(seen: Seen) -> str:
    """Quotes both answers before its verdict and again behind it."""
    quotes = f"Answer A says:\n{seen.a}\nAnswer B says:\n{seen.b}\n"
    return f"{quotes}\n{seen.verdict(seen.better)}\n\n{quotes}"


def fickle(of: Callable[[Seen], bool]) -> Judge:
    """Honest at first; when asked again about pairs that `of` selects, gives the opposite verdict."""
    came: set[Seen] = set()
    lock = threading.Lock()  # each request has a thread of its own

    def says(seen: Seen) -> str:
        asked = replace(seen, nonce="", outside="")
        with lock:
            again = asked in came
            came.add(asked)
        turned = {"A": "B", "B": "A", "tie": "tie"}[seen.better]
        return seen.verdict(turned if again and of(seen) else seen.better)

    return says


def judging(judge: Judge, fails: Callable[[Seen, int], Say | None] = lambda seen, before: None) -> Any:
    """A script for `serve`; `fails` gives the failure of a request from the number of earlier ones with its texts."""
    before: dict[tuple[str, str, str], int] = {}
    lock = threading.Lock()  # each request has a thread of its own

    def script(body: dict[str, Any], _: int) -> Say:
        seen = Seen.of(body)
        texts = (seen.prompt, seen.a, seen.b)
        with lock:
            earlier = before.get(texts, 0)
            before[texts] = earlier + 1
        wrong = fails(seen, earlier)
        if wrong:
            return wrong
        reply = judge(seen)
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        return Say({"object": "chat.completion", "model": "scripted-1", "choices": [choice], "usage": usage})

    return script


_OPEN: list[Endpoint] = []  # closed with the server that they ask


@contextmanager
def judge_server(judge: Judge, **options: Any) -> Iterator[Asked]:
    """A server that answers as that judge."""
    with serve(judging(judge, **options)) as server:
        try:
            yield server
        finally:
            while _OPEN:
                _OPEN.pop().close()


def llm_judge(
    server: Asked,
    cache: Any = None,
    *,
    prompt: str = "general",
    nonce: Callable[..., str] = nonce_for,
    timeout: float = 60.0,
    concurrency: int = 4,
    tries: int = 2,
    **asking: Any,
) -> LLMJudge:
    """Our judge for that server, without waits between tries."""
    endpoint = Endpoint(server.url, tries=tries, backoff=0.0, timeout=timeout, concurrency=concurrency)
    _OPEN.append(endpoint)
    kept = cache if isinstance(cache, VerdictCache) else VerdictCache(cache)
    return LLMJudge(endpoint, load_prompt(prompt), settings("scripted", **asking), kept, nonce)


def settings(model: str, body: Mapping[str, Any] | None = None, **others: Any) -> LLMSettings:
    """Settings of a judge that asks a model of that name."""
    return LLMSettings(EndpointSettings(model=model, body=dict(body or {})), **others)


def showings(server: Asked) -> list[tuple[str, str, str]]:
    """(prompt, A, B) of every request that reached the server."""
    return [(seen.prompt, seen.a, seen.b) for seen in map(Seen.of, server.bodies)]
