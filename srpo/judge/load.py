"""Loads a judge of two answers by name: a language model, a reward model, votes, or a judge of single answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from srpo.data.pictures import refuse_pictures
from srpo.data.values import Prompt
from srpo.errors import ConfigError, UsageError
from srpo.judge.settings import LLM, JudgeSettings, LLMSettings
from srpo.judge.single import JUDGES, REWARD, Judge, import_judge, load_judge, score_answer
from srpo.judge.verdict import TIE, AnswerPair, PairJudge, Verdict, prefer_higher
from srpo.judge.votes import VOTES, Votes

OTHERS = (VOTES + "FILE", LLM)  # judges that only compare two answers
AnyJudge = Judge | PairJudge


def compares(judge: AnyJudge) -> TypeGuard[PairJudge]:
    """True if the judge compares two answers, False if it scores single answers."""
    return hasattr(judge, "compare")


def load_judges(names: Sequence[str], llm: LLMSettings, runs: int = 1) -> dict[str, AnyJudge]:
    """Loads several judges, of single answers or of pairs; returns name → judge in the order of `names`.

    `llm` holds the settings of the judge named "llm", `runs` the number of times that judge is asked.

    Raises:
        ConfigError: a judge cannot be loaded, or `llm` has settings although no judge is named "llm".
        InputError: a file or model cannot be read.
    """
    if LLM not in names:
        JudgeSettings(names[0], llm).expect_used()
        if runs != 1:
            fix = "leave it out: the judge would repeat its scores"
            raise ConfigError(f"{names[0]} asks no server", where="judge_runs", fix=fix)
    return {name: load_any_judge(name, llm, runs) for name in names}


def load_any_judge(name: str, llm: LLMSettings | None = None, runs: int = 1) -> AnyJudge:
    """Loads the judge of that name, which scores single answers or, if no such judge exists, compares two answers.

    Args:
        llm: settings of the judge named "llm"; other judges ignore them.
        runs: number of times the judge named "llm" is asked about every pair.

    Raises:
        ConfigError: the judge does not exist, or `llm` lacks a server or a model.
        InputError: a file or model cannot be read.

    Example:
        >>> load_any_judge("exact_match")("2+2=", "4", "4")
        1.0
    """
    own = ":" in name and name.partition(":")[0] not in ("reward", "votes")
    if name in JUDGES or (own and not compares(import_judge(name))):
        return load_judge(name)
    return judge_from(JudgeSettings(name, llm or LLMSettings()), runs=runs)


@dataclass(frozen=True)
class ScoreJudge:
    """Makes a judge of single answers compare two: the higher score wins, equal scores tie.

    Attributes:
        identity: the judge's name, which identifies it because a function has no settings.
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
        """Scores both answers of each pair and yields one verdict per pair, in order: the higher score wins.

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


def expect_judge_sees(name: str, prompts: Iterable[Prompt], where: str = "") -> None:
    """Checks that the judge `name` sees all of the prompts, or reads answers alone; `where` is their place in errors.

    Raises:
        DataError: a language model or a reward model would judge a prompt without its pictures.
    """
    if name == LLM or name.startswith(REWARD):
        for prompt in prompts:
            refuse_pictures(prompt, f"judge {name}", where)


def load_pair_judge(name: str, llm: LLMSettings | None = None) -> PairJudge:
    """Loads a judge of two answers by name.

    Args:
        name: `llm`, a model behind an OpenAI-compatible server; `votes:` and a file; `reward:` and a path or hub name;
            a key of `JUDGES`; or `module:name` of a function that scores single answers, or of an object with
            `identity` and `compare`.
        llm: settings of judge `llm`; it has no default server or model, because any call might cost money.

    Raises:
        ConfigError: the judge does not exist, or `llm` lacks a server or a model.
        InputError: a file or model cannot be read.

    Example:
        >>> load_pair_judge("numeric").identity
        'numeric'
    """
    if name == LLM:
        from srpo.generate.http import connect
        from srpo.judge.llm import LLMJudge
        from srpo.judge.prompt import load_prompt
        from srpo.judge.verdict_cache import VerdictCache

        if llm is None or not llm.endpoint.base_url or not llm.model:
            fix = "name judge_model and judge_base_url; there is no default, since any might cost money"
            raise ConfigError("no model is named", where="judge llm", fix=fix)
        return LLMJudge(connect(llm.endpoint), load_prompt(llm.prompt), llm, VerdictCache(llm.verdicts))
    if llm is not None:
        raise ConfigError(f"{name} asks no server", where="judge", fix=f"name the judge {LLM!r}, or no model")
    if name.startswith(VOTES):
        return Votes(name.removeprefix(VOTES))
    found: Any = load_judge(name) if name in JUDGES or name.startswith(REWARD) else import_judge(name, OTHERS)
    if not isinstance(found, type) and hasattr(found, "compare") and hasattr(found, "identity"):
        judge: PairJudge = found
        return judge
    return ScoreJudge(name, load_judge(name))


def judge_from(settings: JudgeSettings, run: int = 0, runs: int = 1) -> PairJudge:
    """Loads the judge of two answers named by the settings.

    Args:
        settings: name of the judge, and the settings of the judge "llm".
        run: for the judge "llm", the number of the run; another number asks about every pair again.
        runs: for the judge "llm", the number of times that each pair is asked about.

    Raises:
        UsageError: no judge is named.
        ConfigError: an unknown judge, or settings of "llm" for another judge.
        InputError: a file or a model cannot be read.

    Example:
        >>> judge_from(JudgeSettings("exact_match")).identity
        'exact_match'
    """
    if not settings.judge:
        raise UsageError("no judge", fix="add `--judge …` or put it in the settings file")
    return load_pair_judge(settings.judge, replace(settings.llm, run=run, runs=runs) if settings.judge == LLM else None)
