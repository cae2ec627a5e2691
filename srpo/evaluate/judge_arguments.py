"""Who judges two answers, as settings: the same names on every command that asks a judge and in settings files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from srpo.errors import ConfigError, UsageError
from srpo.evaluate.asking import Asking
from srpo.evaluate.pair_judges import LLM, load_pair_judge
from srpo.evaluate.verdicts import PairJudge


@dataclass
class JudgeArguments:
    """Which judge, and for a model behind a server how it is asked. There is no default judge: any might cost money."""

    judge: str | None = field(
        default=None, metadata={"help": "exact_match, reward:PATH, module:name, votes:FILE, llm, …"}
    )
    judge_base_url: str = field(default="", metadata={"help": "Of llm: the server, http://localhost:8000/v1."})
    judge_model: str = field(default="", metadata={"help": "Of llm: its name at that server."})
    judge_key_env: str = field(default="", metadata={"help": "Of llm: environment variable that holds the key."})
    judge_prompt: str = field(
        default="general", metadata={"help": "Of llm: general, tldr, dialogue, arena-hard or FILE."}
    )
    judge_temperature: float = field(default=0.0, metadata={"help": "Of llm: of its replies."})
    judge_max_tokens: int = field(default=1024, metadata={"help": "Of llm: of one reply."})
    judge_orders: str = field(default="both", metadata={"help": "Of llm: both, or one at half the price."})
    judge_body: str = field(default="{}", metadata={"help": "Of llm, JSON: further fields of a request."})
    judge_price: list[float] | None = field(
        default=None, metadata={"help": "Of llm: of a million tokens, read and written.", "nargs": 2}
    )
    max_cost: float | None = field(
        default=None, metadata={"help": "Of llm: no call that could take it above this."}
    )
    verdicts: str = field(default="verdicts.jsonl", metadata={"help": "Of llm: file that keeps replies."})
    judge_concurrency: int = field(default=16, metadata={"help": "Of llm: calls under way at once."})
    judge_timeout: float = field(default=120.0, metadata={"help": "Of llm: seconds for one try of a call."})

    def load(self, run: int = 0) -> PairJudge:
        """The judge they name.

        Args:
            run: of an llm; another number asks everything again.

        Raises:
            UsageError: none is named.
            ConfigError: settings that do not fit together, or no such judge.
            InputError: a file or a model cannot be read.

        Example:
            >>> JudgeArguments(judge="exact_match").load().identity
            'exact_match'
        """
        if not self.judge:
            raise UsageError("no judge", fix="add `--judge …` or put it in the settings file")
        if self.judge != LLM:
            for name in ("judge_base_url", "judge_model", "max_cost"):
                if getattr(self, name):
                    raise ConfigError(f"{self.judge} asks no server", where=f"--{name}", fix="add --judge llm")
            return load_pair_judge(self.judge)
        return load_pair_judge(
            LLM,
            asking=self._asking(run) if self.judge_model else None,
            base_url=self.judge_base_url,
            api_key_env=self.judge_key_env,
            prompt=self.judge_prompt,
            verdicts=self.verdicts,
            concurrency=self.judge_concurrency,
            timeout=self.judge_timeout,
        )

    def _asking(self, run: int) -> Asking:
        price_in, price_out = self.judge_price or (None, None)
        return Asking(
            self.judge_model,
            temperature=self.judge_temperature,
            max_tokens=self.judge_max_tokens,
            orders=self.judge_orders,  # type: ignore[arg-type]  # which Asking checks
            run=run,
            price_in=price_in,
            price_out=price_out,
            max_cost=self.max_cost,
            body=self._body(),
        )

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self.judge_body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ConfigError("not a JSON object", where="--judge_body", expected='{"seed": 1}, say')
        return body
