"""A language model as the judge of two answers, behind any OpenAI-compatible server.

Both orders are asked unless told otherwise, and a disagreement is a tie. What it costs is said before the first call;
every reply is kept as soon as it comes, so that nothing is asked, or paid for, twice.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

from srpo.data.values import prompt_text
from srpo.errors import ConfigError, Interrupted
from srpo.generate.http import Endpoint, UnusableAnswer
from srpo.judge.asking import Asking
from srpo.judge.prompt import JudgePrompt, nonce_for
from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, Verdict, combine
from srpo.judge.verdict_cache import CachedReply, VerdictCache, cache_key

log = logging.getLogger("srpo")
PROGRESS = 500  # calls between two lines about them
BYTES_PER_TOKEN = 3  # of UTF-8, for estimates: too few for English (4 to 5), about right where a letter takes 3
OVERHEAD = 40  # tokens of a chat template around two messages, for estimates


class _Body(dict[str, Any]):
    """One request, with what its reply is for and what it may cost at most."""

    def __init__(self, showing: _Showing, nonce: str, most: float, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.showing, self.nonce, self.most = showing, nonce, most


class _Showing(NamedTuple):
    key: str
    comparison: AnswerPair
    shown: tuple[str, str]


class _Reply(NamedTuple):
    text: str
    cut: bool
    model: str
    tokens_in: int | None
    tokens_out: int | None


class Estimate(NamedTuple):
    """What a list of comparisons will take.

    Attributes:
        comparisons: how many there are.
        identical: of these, with identical texts; nobody is asked about them.
        kept: showings whose reply is there already, or that stand in the list twice.
        calls: showings to ask about.
        tokens_in: to be read, estimated from the length of the texts.
        tokens_out: to be written at most.
        cost: of the reading alone, and at most; None where the prices are not known.
    """

    comparisons: int
    identical: int
    kept: int
    calls: int
    tokens_in: int
    tokens_out: int
    cost: tuple[float, float] | None

    @property
    def price(self) -> str:
        """The cost in words."""
        return "cost unknown, no prices given" if self.cost is None else "cost {:.2f} to {:.2f}".format(*self.cost)

    def __str__(self) -> str:
        return (
            f"{self.comparisons} comparisons, {self.identical} of identical texts: {self.calls} calls, {self.kept} "
            f"already answered; about {self.tokens_in:,} tokens to read, {self.tokens_out:,} at most to write; "
            f"{self.price}"
        )


@dataclass
class Spent:
    """What has been used so far, by the server's own count where it gives one."""

    calls: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    uncounted: int = 0  # calls whose reply did not say; estimated
    models: dict[str, int] = field(default_factory=dict)  # what the server says answered, and how often


class LLMJudge:
    """A `PairJudge` that asks a model.

    Args:
        endpoint: the server.
        prompt: what the judge is told.
        asking: of which model, how, at what price.
        cache: replies that are there already, and where new ones are kept.
        nonce: draws the mark of a call's fences, which stands in none of the texts it is given. One that could be
            guessed is no mark.

    Attributes:
        spent: what this judge has used so far; replies from the cache cost nothing.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompt: JudgePrompt,
        asking: Asking,
        cache: VerdictCache | None = None,
        nonce: Callable[..., str] = nonce_for,
    ) -> None:
        self.endpoint, self.prompt, self.asking, self.nonce = endpoint, prompt, asking, nonce
        self.cache = cache if cache is not None else VerdictCache(None)
        self.spent = Spent()
        self._lock, self._reserved = threading.Lock(), 0.0  # the most that the calls under way may cost

    @property
    def identity(self) -> str:
        """Server, model, prompt and sampling; prices and limits are no part of it."""
        asking = self.asking
        run = f", run {asking.run}" if asking.run else ""
        return (
            f"{asking.model} at {self.endpoint.url}, prompt {self.prompt.name} {self.prompt.digest}, "
            f"{', '.join(f'{name} {value}' for name, value in self._sampling.items())}, "
            f"{'both orders' if asking.orders == 'both' else 'one order'}{run}"
        )

    @property
    def _sampling(self) -> dict[str, Any]:
        """What of a request decides its reply, beside the messages."""
        asking = self.asking
        return {"temperature": asking.temperature, "max_tokens": asking.max_tokens, **asking.body}

    def record(self) -> dict[str, Any]:
        """All there is to tell of this judge in a report: settings, prompt, what was spent."""
        return {
            "identity": self.identity,
            "url": self.endpoint.url,
            **asdict(self.asking),
            "prompt": self.prompt.name,
            "prompt_digest": self.prompt.digest,
            "system": self.prompt.system,
            "user": self.prompt.user,
            "spent": asdict(self.spent),
        }

    def estimate(self, comparisons: Iterable[AnswerPair]) -> Estimate:
        """What `compare` would take; nothing is asked."""
        items = list(comparisons)
        return self._estimate(items, self._missing(items))

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """A verdict for each comparison, in their order, each as soon as it is there.

        Raises:
            ConfigError: the reading alone would cost more than `max_cost`, said before the first call; or the server
                refuses the key or knows no such model.
            InputError: no server answers, or it fails at everything.
            Interrupted: another call could have taken the cost above `max_cost`. What was asked is kept.
            OutputError: a reply cannot be kept.
        """
        items = list(comparisons)
        missing = self._missing(items)
        self._announce(self._estimate(items, missing))
        failures: dict[str, str] = {}
        replies = self._ask(missing, failures)
        for item in items:
            if item.identical:
                yield TIE
                continue
            runs = [self._showings(item, run) for run in self._runs]
            while not all(self.cache.get(each.key) or each.key in failures for each in chain.from_iterable(runs)):
                next(replies)
            first, *others = (combine([self._order(each, failures) for each in showings]) for showings in runs)
            yield replace(first, again=tuple(other.score for other in others))
        for _ in replies:
            pass

    # ------------------------------------------------------------------ what to ask

    @property
    def _runs(self) -> range:
        return range(self.asking.run, self.asking.run + self.asking.runs)

    def _showings(self, item: AnswerPair, run: int) -> list[_Showing]:
        """The pair as it stands, and turned round; the key of one is the other's of the pair turned round."""
        shown = [(item.first, item.second), (item.second, item.first)][: 2 if self.asking.orders == "both" else 1]
        # Neither the orders asked nor the prices change a reply: half a run's replies serve the other half.
        asking = self.asking
        who = json.dumps([self.endpoint.url, asking.model, self._sampling, run], sort_keys=True)
        return [_Showing(cache_key(who, self.prompt.digest, item.prompt, *pair), item, pair) for pair in shown]

    def _missing(self, items: Sequence[AnswerPair]) -> list[_Showing]:
        found: dict[str, _Showing] = {}
        for item in items:
            for showing in [] if item.identical else chain.from_iterable(self._showings(item, n) for n in self._runs):
                if self.cache.get(showing.key) is None:
                    found.setdefault(showing.key, showing)
        return list(found.values())

    def _estimate(self, items: Sequence[AnswerPair], missing: Sequence[_Showing]) -> Estimate:
        identical = sum(item.identical for item in items)
        showings = (len(items) - identical) * (2 if self.asking.orders == "both" else 1) * self.asking.runs
        tokens_in = sum(self._tokens_in(each) for each in missing)
        tokens_out = len(missing) * self.asking.longest
        least, most = self.asking.cost(tokens_in, 0), self.asking.cost(tokens_in, tokens_out)
        cost = None if self.asking.price_in is None else (least, most)
        return Estimate(len(items), identical, showings - len(missing), len(missing), tokens_in, tokens_out, cost)

    def _tokens_in(self, showing: _Showing) -> int:
        texts = (self.prompt.system, self.prompt.user, prompt_text(showing.comparison.prompt), *showing.shown)
        return OVERHEAD + sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN

    def _announce(self, estimate: Estimate) -> None:
        log.info("srpo: judge %s: %s", self.asking.model, estimate)
        limit = self.asking.max_cost
        if limit is None or not estimate.cost:
            return
        least, most = (self.spent.cost + cost for cost in estimate.cost)
        if least > limit:
            raise ConfigError(
                f"reading alone would cost {least:.2f}; nothing was asked",
                where=f"max_cost {limit:g}",
                fix="raise it, or judge fewer",
            )
        if most > limit:
            log.warning("srpo: max_cost %g may stop this before its end, if replies are long", limit)

    # ------------------------------------------------------------------ asking

    def _ask(self, missing: Sequence[_Showing], failures: dict[str, str]) -> Iterator[None]:
        """Asks about all of them; yields after each reply, which by then is kept or among the failures."""
        at = 0
        while at < len(missing):
            sent: list[_Body] = []
            self._reserved = 0.0
            replies = self.endpoint.each("chat/completions", self._affordable(missing[at:], sent), _read, self._keep)
            for number, reply in enumerate(replies):
                if reply.value is None:
                    with self._lock:
                        self._reserved -= sent[number].most
                        self.spent.failed += 1
                    failures[sent[number].showing.key] = reply.failed
                done = at + number + 1
                if done % PROGRESS == 0 or done == len(missing):
                    log.info("srpo: %d of %d calls, %d failed", done, len(missing), self.spent.failed)
                yield
            if not sent:
                raise Interrupted(
                    f"the next call could pass it: {self.spent.cost:.4f} spent, {len(missing) - at} calls not made",
                    where=f"max_cost {self.asking.max_cost:g}",
                    fix="what was asked is kept; raise the limit, and the same command goes on",
                )
            at += len(sent)

    def _affordable(self, waiting: Sequence[_Showing], sent: list[_Body]) -> Iterator[_Body]:
        """Requests, for as long as all that are under way could cost their most without passing the limit."""
        limit = float("inf") if self.asking.max_cost is None else self.asking.max_cost
        for showing in waiting:
            body = self._body(showing)
            with self._lock:
                if self.spent.cost + self._reserved + body.most > limit:
                    return
                self._reserved += body.most
            sent.append(body)
            yield body

    def _body(self, showing: _Showing) -> _Body:
        prompt, asking = showing.comparison.prompt, self.asking
        nonce = self.nonce(prompt_text(prompt), *showing.shown, self.prompt.system, self.prompt.user)
        content = {
            "model": asking.model,
            "messages": self.prompt.messages(prompt, *showing.shown, nonce),
            **self._sampling,
        }
        most = asking.cost(self._tokens_in(showing), asking.longest)
        return _Body(showing, nonce, most, {key: value for key, value in content.items() if value is not None})

    def _keep(self, body: Mapping[str, Any], found: _Reply) -> None:
        assert isinstance(body, _Body)  # `_ask` sends no other
        label, reason = self.prompt.read(found.text, body.nonce)
        if reason and found.cut:
            reason = f"{reason} in {self.asking.longest} tokens"
        # The nonce is of this call alone; without it equal replies are kept alike.
        reply = found.text.replace(body.nonce, "NONCE")
        self._count(body, found)
        self.cache.add(
            body.showing.key, CachedReply(label, reason, reply, found.model, found.tokens_in, found.tokens_out)
        )

    def _count(self, body: _Body, found: _Reply) -> None:
        read = self._tokens_in(body.showing) if found.tokens_in is None else found.tokens_in
        wrote = len(found.text.encode()) // BYTES_PER_TOKEN if found.tokens_out is None else found.tokens_out
        spent = self.spent
        with self._lock:
            self._reserved -= body.most
            spent.calls += 1
            spent.uncounted += found.tokens_in is None or found.tokens_out is None
            spent.tokens_in += read
            spent.tokens_out += wrote
            spent.cost += self.asking.cost(read, wrote)
            spent.models[found.model] = spent.models.get(found.model, 0) + 1

    def _order(self, showing: _Showing, failures: Mapping[str, str]) -> OrderVerdict:
        kept = self.cache.get(showing.key)
        if kept is None:
            return OrderVerdict(None, "", failures[showing.key])
        worth = self.prompt.verdicts.get(kept.label)
        if worth is None:
            return OrderVerdict(None, kept.label, kept.reason or "unscored")
        turned = showing.shown != (showing.comparison.first, showing.comparison.second)
        return OrderVerdict(1 - worth if turned else worth, kept.label)


def _read(answer: Any) -> _Reply:
    """What is wanted of a server's answer.

    Raises:
        UnusableAnswer: what should be text is something else.
        KeyError, IndexError, TypeError: it has no choice or no message.
    """
    choice = answer["choices"][0]
    text = choice["message"].get("content")
    if text is not None and not isinstance(text, str):
        raise UnusableAnswer("the message is no text")
    usage = answer.get("usage")
    counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    read, wrote = (count if type(count) is int else None for count in counts)
    # The content is null where a model refuses, or spent all its tokens on reasoning: paid for, and unscored.
    return _Reply(text or "", choice.get("finish_reason") == "length", str(answer.get("model") or ""), read, wrote)
