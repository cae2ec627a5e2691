"""Loads a judge of two answers by name: a language model, a reward model, votes, or a judge of single answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from srpo.errors import ConfigError
from srpo.judge.asking import Asking
from srpo.judge.single import JUDGES, REWARD, Judge, import_judge, load_judge, score_answer
from srpo.judge.verdict import TIE, AnswerPair, PairJudge, Verdict, prefer_higher
from srpo.judge.votes import VOTES, Votes

LLM = "llm"
OTHERS = (VOTES + "FILE", LLM)  # judges that only compare two answers


@dataclass(frozen=True)
class ScoreJudge:
    """A judge of single answers as a judge of two: the higher score wins, equal scores tie.

    Attributes:
        identity: the judge's name; a function has no settings.
        judge: the function that scores each answer.

    Example:
        >>> from srpo.judge.single import exact_match
        >>> judge = ScoreJudge("exact_match", exact_match)
        >>> [verdict.score for verdict in judge.compare([AnswerPair("2+2=", "5", "4", gold="4")])]
        [0.0]
    """

    identity: str
    judge: Judge

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields a verdict for each pair.

        Raises:
            DataError: the judge cannot use the gold answer.
            ConfigError: a score is not a number in [0, 1].
        """
        for row, pair in enumerate(comparisons, 1):
            if pair.identical:
                yield TIE
                continue
            where = f"{self.identity}, row {row}"
            first, second = (
                score_answer(self.judge, pair.prompt, text, pair.gold, where=where)
                for text in (pair.first, pair.second)
            )
            yield prefer_higher(pair, first, second)


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
    """Loads a judge of two answers. The arguments after `name` are for `llm` only.

    Args:
        name: `llm`, a model behind an OpenAI-compatible server; `votes:` and a file; `reward:` and a path or hub name;
            a key of `JUDGES`; or `module:name` of a function that scores single answers, or of an object with
            `identity` and `compare`.
        asking: the model and its sampling.
        base_url: the server's address; it has no default, because any call might cost money.
        api_key_env: name of the environment variable that holds the key.
        prompt: a shipped prompt or a file.
        verdicts: file that caches replies.
        concurrency, timeout, tries: as in `Endpoint`.

    Raises:
        ConfigError: the judge does not exist, or `llm` lacks a server or a model.
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
