"""Who judges two answers, as settings: the same names on every command that asks a judge and in settings files."""

from __future__ import annotations

from dataclasses import dataclass, field

from srpo.errors import UsageError
from srpo.evaluate.asking import Asking
from srpo.evaluate.pair_judges import LLM, load_pair_judge
from srpo.evaluate.verdicts import PairJudge
from srpo.evaluate.votes import VOTES, Votes


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
    verdicts: str | None = field(default=None, metadata={"help": "Of llm: file where replies are kept for next time."})

    def load(self) -> PairJudge:
        """The judge they name.

        Raises:
            UsageError: none is named.
            ConfigError, InputError: it cannot be had.

        Example:
            >>> JudgeArguments(judge="exact_match").load().identity
            'exact_match'
        """
        if not self.judge:
            raise UsageError("no judge", fix="add `--judge …` or put it in the settings file")
        if self.judge.startswith(VOTES):
            return Votes(self.judge.removeprefix(VOTES))
        if self.judge != LLM:
            return load_pair_judge(self.judge)
        asking = Asking(
            self.judge_model,
            temperature=self.judge_temperature,
            max_tokens=self.judge_max_tokens,
            orders=self.judge_orders,  # type: ignore[arg-type]  # which Asking checks
            price_in=self.price_in,
            price_out=self.price_out,
            max_cost=self.max_cost,
        )
        return load_pair_judge(
            self.judge,
            asking=asking,
            base_url=self.judge_base_url,
            api_key_env=self.judge_api_key_env,
            prompt=self.judge_prompt,
            verdicts=self.verdicts,
        )
