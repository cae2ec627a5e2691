"""Settings of a judge of two answers: flags, YAML keys and the judge they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo.errors import ConfigError
from srpo.generate.settings import EndpointSettings
from srpo.settings import expect_valid, part, setting

LLM = "llm"
MILLION = 1_000_000
OWN_FIELDS = {"model", "messages", "stream", "n"}  # request fields that `judge_body` may not replace


@dataclass(frozen=True)
class LLMSettings:
    """Settings of a language model that judges two answers: server, prompt, sampling, and limits of its cost.

    Attributes:
        price_in, price_out: price of a million tokens read and written, in one currency; both, or None for both.
        max_cost: largest cost in that currency; None sets no limit.
        run: number of this run; another number asks about every pair again, to measure the judge's self-agreement.
        runs: how often each pair is asked about, as runs `run`, `run` + 1, …; the first run gives the verdict.

    Raises:
        ConfigError: a number out of range, `price_in` without `price_out` or the reverse, or `max_cost` without them.
    """

    endpoint: EndpointSettings = part(EndpointSettings, prefix="judge_")
    prompt: str = setting("general", "Judge llm: name of a shipped prompt, or a file.", flag="judge_prompt")
    temperature: float = setting(
        0.0, "Judge llm: sampling temperature; 0 takes the likeliest verdict.", least=0, flag="judge_temperature"
    )
    max_tokens: int = setting(
        1024, "Judge llm: largest number of tokens in a reply, reasoning included.", least=1, flag="judge_max_tokens"
    )
    orders: str = setting(
        "both",
        "Judge llm: both shows the two answers in both orders; one halves the price and keeps the position bias.",
        choices=("both", "one"),
        flag="judge_orders",
    )
    price_in: float | None = setting(
        None, "Judge llm: price of a million tokens that the judge reads.", least=0, below=float("inf")
    )
    price_out: float | None = setting(
        None, "Judge llm: price of a million tokens that the judge writes.", least=0, below=float("inf")
    )
    max_cost: float | None = setting(
        None, "Judge llm: limit of the cost; a call that could exceed it is not made.", least=0, below=float("inf")
    )
    verdicts: str | None = setting("verdicts.jsonl", "Judge llm: file that keeps replies; none is paid for twice.")
    run: int = 0
    runs: int = 1

    def __post_init__(self) -> None:
        expect_valid(self)
        if self.runs < 1:
            raise ConfigError(f"{self.runs}", where="runs", expected="1 or more")
        for name in {*self.body} & OWN_FIELDS:
            raise ConfigError(f"{name!r} cannot be set", where="judge_body", expected="other fields of a request")
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("one price of two", where="price", expected="both, of a million tokens read and written")
        if self.max_cost is not None and self.price_in is None:
            raise ConfigError("a limit without prices", where="max_cost", fix="give price_in and price_out as well")

    @property
    def model(self) -> str:
        """Name of the model at the server."""
        return self.endpoint.model

    @property
    def body(self) -> Mapping[str, Any]:
        """Fields that the user adds to the body of each request."""
        return self.endpoint.body

    @property
    def longest(self) -> int:
        """Largest number of tokens that a reply of the judging model may have."""
        named = [self.body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return max([count for count in named if type(count) is int] or [self.max_tokens])

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Returns the cost of reading and writing so many tokens, in the currency of the prices; 0 without prices."""
        return (tokens_in * (self.price_in or 0.0) + tokens_out * (self.price_out or 0.0)) / MILLION

    def record(self) -> dict[str, Any]:
        """Returns setting → value for the judge's settings that a report prints."""
        names = ("model", "temperature", "max_tokens", "orders", "run", "runs", "price_in", "price_out", "max_cost")
        return {name: getattr(self, name) for name in (*names, "body")}


@dataclass(frozen=True)
class JudgeSettings:
    """Name of a judge of two answers, and settings of the judge "llm"; no judge is the default: it may cost money."""

    judge: str | None = setting(
        None, "Judge of two answers: exact_match, reward:PATH, module:function, votes:FILE, llm; see docs/judges.md."
    )
    llm: LLMSettings = part(LLMSettings)

    def expect_used(self) -> None:
        """Checks that a server or a limit of cost is given for the judge "llm" only.

        Raises:
            ConfigError: another judge is named, which would ignore the server or the limit.
        """
        given = {
            "judge_model": self.llm.model,
            "judge_base_url": self.llm.endpoint.base_url,
            "max_cost": self.llm.max_cost,
        }
        for name, value in given.items():
            if self.judge and self.judge != LLM and value:
                raise ConfigError(f"{self.judge} asks no server", where=name, fix="name the judge llm, or leave it out")

    def files(self) -> dict[str, str | None]:
        """Returns flag → path of each file that the judge uses; None where a flag names no file."""
        if self.judge == LLM:
            prompt = self.llm.prompt
            return {"--verdicts": self.llm.verdicts, "--judge_prompt": prompt if os.path.isfile(prompt) else None}
        kind, _, path = (self.judge or "").partition("votes:")
        return {"--judge": path if not kind and path else None}
