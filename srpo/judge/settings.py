"""Who judges two answers, as settings: the same names on every command that asks a judge and in settings files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from srpo.errors import ConfigError, UsageError
from srpo.judge.asking import Asking
from srpo.judge.load import LLM, load_pair_judge
from srpo.judge.verdict import PairJudge


@dataclass
class JudgeArguments:
    """Which judge, and for a model behind a server how it is asked. There is no default judge: any might cost money."""

    judge: str | None = field(
        default=None,
        metadata={"help": "exact_match, reward:PATH, module:function, votes:FILE, llm, …"},
    )
    judge_model: str = field(default="", metadata={"help": "Of llm: the model's name at the server."})
    judge_base_url: str = field(default="", metadata={"help": "Of llm: the server, http://localhost:8000/v1."})
    judge_api_key_env: str = field(default="", metadata={"help": "Of llm: the variable that holds its key."})
    judge_prompt: str = field(default="general", metadata={"help": "Of llm: a shipped prompt or a file."})
    judge_temperature: float = field(default=0.0, metadata={"help": "Of llm: 0 for the likeliest verdict."})
    judge_max_tokens: int = field(default=1024, metadata={"help": "Of llm: tokens of one reply."})
    judge_orders: str = field(default="both", metadata={"help": "Of llm: both, or one, at half the price."})
    price_in: float | None = field(default=None, metadata={"help": "Of llm: price of a million tokens read."})
    price_out: float | None = field(default=None, metadata={"help": "Of llm: price of a million tokens written."})
    max_cost: float | None = field(default=None, metadata={"help": "Of llm: no call that could take it above this."})
    judge_body: str = field(default="{}", metadata={"help": "Of llm: JSON, other fields of a request; null: none."})
    judge_concurrency: int = field(default=16, metadata={"help": "Of llm: calls under way at the same time."})
    judge_timeout: float = field(default=120.0, metadata={"help": "Of llm: seconds that one call may take."})
    verdicts: str = field(default="verdicts.jsonl", metadata={"help": "Of llm: file where replies are kept."})

    def load(self, run: int = 0, runs: int = 1) -> PairJudge:
        """The judge they name.

        Args:
            run: of llm: another number asks everything anew.
            runs: of llm: how often everything is asked, to see how far the judge agrees with itself.

        Raises:
            UsageError: none is named.
            ConfigError, InputError: it cannot be had.

        Example:
            >>> JudgeArguments(judge="exact_match").load().identity
            'exact_match'
        """
        if not self.judge:
            raise UsageError("no judge", fix="add `--judge …` or put it in the settings file")
        if self.judge != LLM:
            return load_pair_judge(self.judge)
        if not self.judge_model or not self.judge_base_url:
            fix = "name judge_model and judge_base_url; there is no default, since any would cost somebody money"
            raise ConfigError("no model is named", where="judge llm", fix=fix)
        asking = Asking(
            self.judge_model,
            temperature=self.judge_temperature,
            max_tokens=self.judge_max_tokens,
            orders=self.judge_orders,  # type: ignore[arg-type]  # which Asking checks
            price_in=self.price_in,
            price_out=self.price_out,
            max_cost=self.max_cost,
            run=run,
            runs=runs,
            body=self._body(),
        )
        return load_pair_judge(
            self.judge,
            asking=asking,
            base_url=self.judge_base_url,
            api_key_env=self.judge_api_key_env,
            prompt=self.judge_prompt,
            verdicts=self.verdicts,
            concurrency=self.judge_concurrency,
            timeout=self.judge_timeout,
        )

    def expect_used(self) -> None:
        """For one judge alone: a limit or a server that nobody looks at would be a false comfort.

        Raises:
            ConfigError: one is given, and the judge asks no server.
        """
        for name in ("judge_model", "judge_base_url", "max_cost"):
            if self.judge and self.judge != LLM and getattr(self, name):
                raise ConfigError(f"{self.judge} asks no server", where=name, fix="name the judge llm, or leave it out")

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self.judge_body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ConfigError("not a JSON object", where="judge_body", expected='{"seed": 1}, say')
        return body
