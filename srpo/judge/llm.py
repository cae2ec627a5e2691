"""A language model as the judge of two answers, behind any OpenAI-compatible server.

Each pair is shown in both orders by default; orders that disagree make a tie. The cost is announced before the first
call. Every reply is cached as soon as it arrives, so nothing is asked or paid for twice.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

from srpo.data.values import prompt_text
from srpo.errors import ConfigError, InputError, Interrupted
from srpo.generate.http import Endpoint, UnusableAnswer
from srpo.judge.prompt import JudgePrompt, nonce_for
from srpo.judge.settings import LLMSettings
from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, Verdict, combine
from srpo.judge.verdict_cache import CachedReply, VerdictCache, cache_key

log = logging.getLogger("srpo")
PROGRESS = 500  # calls between two progress lines
LONG_STREAK = 64  # failures in a row for one reason that end the run: the server will refuse the other calls too
BYTES_PER_TOKEN = 3  # UTF-8 bytes per token in estimates: English has 4 to 5, scripts with three-byte letters about 3
OVERHEAD = 40  # tokens that a chat template adds around two messages, for estimates


class _Showing(NamedTuple):
    """A record of one call: a pair, its two texts in the order shown, and the key of the reply in the cache."""

    key: str
    pair: AnswerPair
    shown: tuple[str, str]


class _Body(dict[str, Any]):
    """The JSON body of one request, a dict that also carries its `_Showing`, nonce and maximum cost (`most`)."""

    def __init__(self, showing: _Showing, nonce: str, most: float, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.showing, self.nonce, self.most = showing, nonce, most


class _Reply(NamedTuple):
    text: str
    truncated: bool
    model: str
    tokens_in: int | None
    tokens_out: int | None


class Estimate(NamedTuple):
    """Calls, tokens and cost that a language model will need to judge a list of comparisons.

    Attributes:
        comparisons: number of pairs.
        identical: pairs with identical texts, which tie without a call.
        kept: calls saved, because their reply is cached or the list asks for it twice.
        calls: calls to make, one for each order and run of a pair.
        tokens_in: tokens the judge reads, estimated from the length of the texts.
        tokens_out: largest number of tokens the judge writes.
        cost: cost of the tokens read alone, and the largest total cost; None without prices.
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
        """The cost from least to most as text, or that it is unknown for lack of prices."""
        return "cost unknown, no prices given" if self.cost is None else "cost {:.2f} to {:.2f}".format(*self.cost)

    def __str__(self) -> str:
        return (
            f"{self.comparisons} comparisons, {self.identical} of identical texts: {self.calls} calls, {self.kept} "
            f"already answered; about {self.tokens_in:,} tokens to read, {self.tokens_out:,} at most to write; "
            f"{self.price}"
        )


@dataclass
class Spent:
    """Counts of a language model's calls, tokens and cost as a judge; tokens by the server's count if it sends one.

    Attributes:
        calls, failed: answered and failed calls.
        tokens_in, tokens_out: tokens read and written.
        cost: in the currency of the prices; 0 without prices.
        uncounted: calls whose tokens the server did not count, so that they are estimated.
        models: name of the model in the server's answers → number of answers.
    """

    calls: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    uncounted: int = 0
    models: dict[str, int] = field(default_factory=dict)


class LLMJudge:
    """A judge of two answers that asks a language model behind an OpenAI-compatible server.

    Args:
        endpoint: connection to the server.
        prompt: the judge's instructions.
        asking: the model, its sampling and its price.
        cache: replies of earlier calls; new replies are added.
        nonce: function from the texts of a call to the mark that fences them. The mark must not occur in the
            texts; a predictable mark gives no protection.

    Attributes:
        spent: calls, tokens and cost so far; cached replies cost nothing.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompt: JudgePrompt,
        asking: LLMSettings,
        cache: VerdictCache | None = None,
        nonce: Callable[..., str] = nonce_for,
    ) -> None:
        self.endpoint, self.prompt, self.asking, self.nonce = endpoint, prompt, asking, nonce
        self.cache = cache if cache is not None else VerdictCache(None)
        self.spent = Spent()
        self._lock, self._reserved = threading.Lock(), 0.0  # _reserved: maximum cost of the calls under way

    @property
    def identity(self) -> str:
        """One line with all that the verdicts depend on: server, model, prompt, sampling, orders and run."""
        asking = self.asking
        run = f", run {asking.run}" if asking.run else ""
        return (
            f"{asking.model} at {self.endpoint.url}, prompt {self.prompt.name} {self.prompt.digest}, "
            f"{', '.join(f'{name} {value}' for name, value in self._sampling.items())}, "
            f"{'both orders' if asking.orders == 'both' else 'one order'}{run}"
        )

    @property
    def _sampling(self) -> dict[str, Any]:
        """The fields of a request, other than model and messages, that its reply depends on."""
        asking = self.asking
        return {"temperature": asking.temperature, "max_tokens": asking.max_tokens, **asking.body}

    def record(self) -> dict[str, Any]:
        """Returns the judge's settings, prompt and usage so far as a dict, for a report."""
        return {
            "identity": self.identity,
            "url": self.endpoint.url,
            **self.asking.record(),
            "prompt": self.prompt.name,
            "prompt_digest": self.prompt.digest,
            "system": self.prompt.system,
            "user": self.prompt.user,
            "spent": asdict(self.spent),
        }

    def estimate(self, comparisons: Iterable[AnswerPair]) -> Estimate:
        """Returns the calls, tokens and cost that `compare` would need for these comparisons, without any call."""
        pairs = list(comparisons)
        return self._estimate(pairs, self._missing(pairs))

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields a verdict for each pair of answers, in order, as soon as the model's replies for it have arrived.

        Raises:
            ConfigError: the tokens read would alone cost more than `max_cost`, found before the first call; or the
                server refuses the key or does not know the model.
            InputError: no server answers, every call fails, or a long streak of calls fails for one reason, which the
                message names. Replies so far are cached.
            Interrupted: the next call could exceed `max_cost`. Replies so far are cached.
            OutputError: a reply cannot be cached.
        """
        pairs = list(comparisons)
        missing = self._missing(pairs)
        self._announce(self._estimate(pairs, missing))
        failures: dict[str, str] = {}
        replies, scored = self._ask(missing, failures), False
        for pair in pairs:
            if pair.identical:
                yield TIE
                continue
            runs = [self._showings(pair, run) for run in self._runs]
            while not all(self.cache.get(each.key) or each.key in failures for each in chain.from_iterable(runs)):
                next(replies)
            first, *others = (combine([self._order(each, failures) for each in showings]) for showings in runs)
            scored = scored or first.score is not None
            yield replace(first, again=tuple(other.score for other in others))
        for _ in replies:
            pass
        if failures and not scored:
            raise self._refused(list(failures.values()))
        if failures:
            reasons = _commonest(failures.values())
            log.warning("srpo: judge %s: %d calls failed: %s", self.asking.model, len(failures), reasons)

    # ------------------------------------------------------------------ showings and their cost

    @property
    def _runs(self) -> range:
        return range(self.asking.run, self.asking.run + self.asking.runs)

    def _showings(self, pair: AnswerPair, run: int) -> list[_Showing]:
        """The calls for one pair in one run: one for each order of its answers, or one alone, as the settings ask.

        A key depends on the texts as shown, so a pair with its answers exchanged finds the same replies in the cache.
        """
        shown = [(pair.first, pair.second), (pair.second, pair.first)][: 2 if self.asking.orders == "both" else 1]
        # The key leaves out `orders` and prices: a run in one order reuses half the replies of a run in both.
        asking = self.asking
        who = json.dumps([self.endpoint.url, asking.model, self._sampling, run], sort_keys=True)
        return [_Showing(cache_key(who, self.prompt.digest, pair.prompt, *texts), pair, texts) for texts in shown]

    def _missing(self, pairs: Sequence[AnswerPair]) -> list[_Showing]:
        found: dict[str, _Showing] = {}
        for pair in pairs:
            for showing in [] if pair.identical else chain.from_iterable(self._showings(pair, n) for n in self._runs):
                if self.cache.get(showing.key) is None:
                    found.setdefault(showing.key, showing)
        return list(found.values())

    def _estimate(self, pairs: Sequence[AnswerPair], missing: Sequence[_Showing]) -> Estimate:
        identical = sum(pair.identical for pair in pairs)
        showings = (len(pairs) - identical) * (2 if self.asking.orders == "both" else 1) * self.asking.runs
        tokens_in = sum(self._tokens_in(each) for each in missing)
        tokens_out = len(missing) * self.asking.longest
        least, most = self.asking.cost(tokens_in, 0), self.asking.cost(tokens_in, tokens_out)
        cost = None if self.asking.price_in is None else (least, most)
        return Estimate(len(pairs), identical, showings - len(missing), len(missing), tokens_in, tokens_out, cost)

    def _tokens_in(self, showing: _Showing) -> int:
        texts = (self.prompt.system, self.prompt.user, prompt_text(showing.pair.prompt), *showing.shown)
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
            log.warning("srpo: max_cost %g may stop this run early if replies are long", limit)

    # ------------------------------------------------------------------ requests and replies

    def _ask(self, missing: Sequence[_Showing], failures: dict[str, str]) -> Iterator[None]:
        """Sends the calls whose reply is missing; adds each reply to the cache, or its error to `failures` by key.

        Yields None after each call, so that the caller can use the reply at once.
        """
        at, in_a_row = 0, list[str]()
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
                in_a_row = [] if reply.value is not None else [*in_a_row[-LONG_STREAK:], reply.failed]
                done = at + number + 1
                same = len(in_a_row) > LONG_STREAK and len({*in_a_row}) == 1
                if same or len(failures) == done > max(8, self.endpoint.concurrency):
                    raise self._refused(in_a_row)
                if done % PROGRESS == 0 or done == len(missing):
                    log.info("srpo: %d of %d calls, %d failed", done, len(missing), self.spent.failed)
                yield
            if not sent:
                raise Interrupted(
                    f"the next call could pass it: {self.spent.cost:.4f} spent, {len(missing) - at} calls not made",
                    where=f"max_cost {self.asking.max_cost:g}",
                    fix="replies so far are kept; raise the limit, and the same command goes on",
                )
            at += len(sent)

    def _refused(self, reasons: Sequence[str]) -> InputError:
        fix = """check the account, or change the request's fields (--judge_body '{"max_tokens": null}'); then repeat"""
        what = f"{len(reasons)} calls in a row failed: {_commonest(reasons)}"
        return InputError(what, where=self.endpoint.url, fix=fix)

    def _affordable(self, waiting: Sequence[_Showing], sent: list[_Body]) -> Iterator[_Body]:
        """Yields the request of each waiting call, added to `sent`; stops before the cost could exceed `max_cost`."""
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
        prompt, asking = showing.pair.prompt, self.asking
        nonce = self.nonce(prompt_text(prompt), *showing.shown, self.prompt.system, self.prompt.user)
        messages = self.prompt.messages(prompt, *showing.shown, nonce)
        content = {"model": asking.model, "messages": messages, **self._sampling}
        most = asking.cost(self._tokens_in(showing), asking.longest)
        return _Body(showing, nonce, most, {key: value for key, value in content.items() if value is not None})

    def _keep(self, body: Mapping[str, Any], found: _Reply) -> None:
        assert isinstance(body, _Body)  # `_ask` sends no other type of body
        label, reason = self.prompt.read(found.text, body.nonce)
        if reason and found.truncated:
            reason = f"{reason} in {self.asking.longest} tokens"
        # Each call has its own nonce; replacing it makes equal replies equal in the cache.
        text = found.text.replace(body.nonce, "NONCE")
        self._count(body, found)
        reply = CachedReply(label, reason, text, found.model, found.tokens_in, found.tokens_out)
        self.cache.add(body.showing.key, reply)

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
        reply = self.cache.get(showing.key)
        if reply is None:
            return OrderVerdict(None, "", failures[showing.key])
        worth = self.prompt.verdicts.get(reply.label)
        if worth is None:
            return OrderVerdict(None, reply.label, reply.reason or "unscored")
        exchanged = showing.shown != (showing.pair.first, showing.pair.second)
        return OrderVerdict(1 - worth if exchanged else worth, reply.label)


def _commonest(reasons: Iterable[str]) -> str:
    """The three commonest reasons of failed calls with their counts."""
    return "; ".join(f"{reason} ({count} times)" for reason, count in Counter(reasons).most_common(3))


def _read(answer: Any) -> _Reply:
    """Takes the text, model name and token counts from a server's answer, and whether the text was cut off.

    Raises:
        UnusableAnswer: the message's content is not text.
        KeyError, IndexError, TypeError: the answer has no choice or no message.
    """
    choice = answer["choices"][0]
    text = choice["message"].get("content")
    if text is not None and not isinstance(text, str):
        raise UnusableAnswer("the message is no text")
    usage = answer.get("usage")
    counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    read, wrote = (count if type(count) is int else None for count in counts)
    # A model that refuses, or spends all its tokens on reasoning, sends null; the call still costs money.
    return _Reply(text or "", choice.get("finish_reason") == "length", str(answer.get("model") or ""), read, wrote)
