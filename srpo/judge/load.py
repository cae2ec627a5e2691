"""Names → judges of two answers: a model behind a server, a reward model, or any judge of single answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from srpo.errors import ConfigError
from srpo.judge.asking import Asking
from srpo.judge.single import JUDGES, REWARD, Judge, import_judge, load_judge, score_answer
from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, PairJudge, Verdict, combine
from srpo.judge.votes import VOTES, Votes

LLM = "llm"
OTHERS = (VOTES + "FILE", LLM)  # judges of two answers that no name of a judge of single ones stands for


@dataclass(frozen=True)
class ScoreJudge:
    """A judge of single answers as a judge of two: the higher score is better, equal scores tie.

    Attributes:
        name: what it is called.
        judge: prompt, answer, gold → a score in [0, 1].

    Example:
        >>> from srpo.judge.single import exact_match
        >>> judge = ScoreJudge("exact_match", exact_match)
        >>> [verdict.score for verdict in judge.compare([AnswerPair("2+2=", "5", "4", gold="4")])]
        [0.0]
    """

    name: str
    judge: Judge

    @property
    def identity(self) -> str:
        """Its name: a function has no settings."""
        return self.name

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """One showing each: such a judge does not see the other answer, so no order can sway it.

        Raises:
            DataError: the gold answer is not of the judge's kind.
            ConfigError: what came back is not a number between 0 and 1.
        """
        for row, item in enumerate(comparisons, 1):
            if item.identical:
                yield TIE
                continue
            first, second = (
                score_answer(self.judge, item.prompt, text, item.gold, where=f"{self.name}, row {row}")
                for text in (item.first, item.second)
            )
            yield combine([OrderVerdict(0.5 + 0.5 * ((first > second) - (first < second)), f"{first:g} {second:g}")])


def load_pair_judge(
    name: str,
    *,
    asking: Asking | None = None,
    base_url: str = "",
    api_key_env: str = "",
    prompt: str = "general",
    verdicts: str | None = None,
    concurrency: int = 16,
    timeout: float = 120.0,
    tries: int = 6,
) -> PairJudge:
    """The judge of that name.

    Args:
        name: `llm`, a model behind an OpenAI-compatible server; `votes:` and a file; `reward:` and a path or hub name;
            a key of `JUDGES`; or `module:name` of a function that scores single answers, or of an object with
            `identity` and `compare`.
        asking: for `llm`, which model and how.
        base_url: for `llm`, where; there is no default, because any would cost somebody money.
        api_key_env: for `llm`, the name of the variable of the environment that holds the key, if one is needed.
        prompt: for `llm`, a shipped prompt or a file.
        verdicts: for `llm`, the file where replies are kept.
        concurrency, timeout, tries: for `llm`, as in `Endpoint`.

    Raises:
        ConfigError: no such judge, or an `llm` without a server or a model.
        InputError: a file or model cannot be read.

    Example:
        >>> load_pair_judge("numeric").identity
        'numeric'
    """
    if name == LLM:
        from srpo.generate.http import Endpoint
        from srpo.judge.llm import LLMJudge
        from srpo.judge.prompt import load_prompt
        from srpo.judge.verdict_cache import VerdictCache

        if not base_url or asking is None:
            expected = "a server's URL and a model's name; there is no default, since any would cost somebody money"
            raise ConfigError("no model is named", where="judge llm", expected=expected)
        endpoint = Endpoint(base_url, api_key_env=api_key_env, timeout=timeout, tries=tries, concurrency=concurrency)
        return LLMJudge(endpoint, load_prompt(prompt), asking, VerdictCache(verdicts))
    if base_url or asking is not None:
        raise ConfigError(f"{name} asks no server", where="judge", fix=f"name the judge {LLM!r}, or no model")
    if name.startswith(VOTES):
        return Votes(name.removeprefix(VOTES))
    found: Any = load_judge(name) if name in JUDGES or name.startswith(REWARD) else import_judge(name, OTHERS)
    if not isinstance(found, type) and hasattr(found, "compare") and hasattr(found, "identity"):
        compares: PairJudge = found
        return compares
    return ScoreJudge(name, load_judge(name))
