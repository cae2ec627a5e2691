"""Completions from an OpenAI-compatible server.

    CompletionsEngine   `/completions`: contexts go over as the token ids of training, token for token, and what the
                        server says it read is compared with what was sent
    ChatEngine          `/chat/completions`: messages go over and the server renders them with a template of its own, so
                        nobody here can promise that the model is shown what it was trained on

Sampling is the server's: equal (seed, key) make equal requests, their seed included, and what comes of a seed is the
server's affair. Greedy answers are those of the in-process engine up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from srpo.errors import BackendError, ConfigError, InputError, did_you_mean
from srpo.generate.engine import Completion, ContextAnswer, expect_temperature, seed_of
from srpo.generate.http import Endpoint, Refused, Reply, UnusableAnswer
from srpo.generate.journal import Journal

log = logging.getLogger("srpo")

DIALECTS = ("auto", "vllm", "openai")
# A server may have defaults of its own that shape a distribution; vLLM takes those of generation_config.json.
UNSHAPED = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
UNSHAPED_VLLM = {**UNSHAPED, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

Body = dict[str, Any]


class CompletionsEngine:
    """Completes token ids with a served model.

    Args:
        endpoint: the server.
        model: the name it serves the model or adapter under; "" takes the only one there is.
        batch_size: prompts handed over together; None takes four times the requests that run at once.
        dialect: vllm, or openai for a server that takes the standard fields alone; auto asks the server.
        journal: keeps every answer as it comes, so that one asked for is never asked for again.

    Attributes:
        max_length: tokens that fit, where the server tells.

    Raises:
        ConfigError: no such model or dialect.
        InputError: the server says nothing of its models.
    """

    same_batch_same_bits = False
    path = "completions"

    def __init__(
        self,
        endpoint: Endpoint,
        model: str = "",
        *,
        batch_size: int | None = None,
        dialect: str = "auto",
        journal: Journal | None = None,
    ) -> None:
        if dialect not in DIALECTS:
            raise ConfigError(f"{dialect!r}", where="dialect", expected="one of " + ", ".join(DIALECTS))
        self.endpoint, self.journal = endpoint, journal
        self.batch_size = batch_size or 4 * endpoint.concurrency
        self.model, self.max_length, owner = _card(endpoint, model)
        self.dialect = dialect if dialect != "auto" else "vllm" if owner == "vllm" else "openai"

    def complete(
        self,
        contexts: Sequence[Any],
        keys: Sequence[str],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        seed: int = 0,
        guesses: Sequence[Sequence[int]] | None = None,
    ) -> list[Completion]:
        """As `Engine` says. What fails is a completion that says why.

        Raises:
            BackendError: the server read other tokens than it was sent.
        """
        expect_temperature(temperature)
        bodies = []
        for context, key in zip(contexts, keys, strict=True):
            body = {"model": self.model, "max_tokens": max_new_tokens, "temperature": temperature}
            body |= {"seed": seed_of(seed, key)} if temperature > 0 else {}
            bodies.append({**body, **self._asked(context, stop_ids)})
        done = {} if self.journal is None else self.journal.among(bodies)
        missing = [i for i in range(len(bodies)) if i not in done]

        def keep(body: Mapping[str, Any], completion: Completion) -> None:
            self._expect_read(body, completion)
            if self.journal is not None:
                self.journal.add(body, completion)

        replies = self.endpoint.each(self.path, (bodies[i] for i in missing), self._read, keep)
        done.update((i, _ended(reply)) for i, reply in zip(missing, replies, strict=True))
        return [done[i] for i in range(len(bodies))]

    def logps(self, pairs: Sequence[ContextAnswer]) -> list[float]:
        """log π of each answer after its context, nats, summed over the answer's tokens; nan, and a warning, for what
        the server could not score."""
        vllm = self.dialect == "vllm"
        ask: Body = {"prompt_logprobs": 0} if vllm else {"echo": True, "logprobs": 1}
        bodies = [
            {"model": self.model, "prompt": [*context, *answer], "max_tokens": 1, "temperature": 0.0, **ask}
            for context, answer in pairs
        ]
        sums = []
        replies = self.endpoint.each(self.path, bodies, _told_logps if vllm else _echoed_logps)
        for (context, answer), reply in zip(pairs, replies, strict=True):
            if reply.value is None:
                log.warning("srpo: no log-probs: %s", reply.failed)
                sums.append(float("nan"))
            else:
                sums.append(sum(reply.value([*context, *answer])[len(context) :]))
        return sums

    def _asked(self, context: Any, stop_ids: Sequence[int]) -> Body:
        """The part of a request that is this path's own."""
        if self.dialect != "vllm":
            return {"prompt": list(context), **UNSHAPED}
        # An answer ends where it ended in training and nowhere else, whatever the model's own files call an end.
        ends = {"ignore_eos": True, "stop_token_ids": list(stop_ids)}
        return {"prompt": list(context), **UNSHAPED_VLLM, **ends, "return_token_ids": True}

    def _read(self, answer: Any) -> Completion:
        choice, finished, tokens, read = _ending(answer)
        ids, text = choice.get("token_ids"), choice["text"]
        if ids is not None:
            if not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
                raise UnusableAnswer("token ids that are none")
            if not ids:
                raise UnusableAnswer("an empty completion")
            asked = choice.get("prompt_token_ids")
            return Completion(tuple(ids), finished, 0.0, read=read if asked is None else len(asked))
        return _of_text(text, finished, tokens, read)

    def _expect_read(self, body: Mapping[str, Any], done: Completion) -> None:
        if done.read is not None and done.read != len(body["prompt"]):
            raise BackendError(
                f"the server read {done.read} tokens where {len(body['prompt'])} were sent",
                where=f"{self.endpoint.url}/{self.path}",
                fix="it must take prompts as token ids, add none and cut none; else ask it by chat",
            )


class ChatEngine(CompletionsEngine):
    """Answers messages with a served model; contexts are those of a `MessageRenderer`.

    Where an answer ends, how thinking is shown and which template stands around the messages is the server's choice.
    """

    path = "chat/completions"

    def _asked(self, context: Any, stop_ids: Sequence[int]) -> Body:
        return {"messages": list(context), **(UNSHAPED_VLLM if self.dialect == "vllm" else UNSHAPED)}

    def _read(self, answer: Any) -> Completion:
        choice, finished, tokens, read = _ending(answer)
        return _of_text(choice["message"]["content"], finished, tokens, read)

    def _expect_read(self, body: Mapping[str, Any], done: Completion) -> None:
        pass  # nobody here knows what the messages became


# ---------------------------------------------------------------------- reading what a server says


def _ending(answer: Any) -> tuple[Mapping[str, Any], bool, int | None, int | None]:
    """(the choice, whether the model ended it, tokens generated, tokens read) of an answer."""
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise Refused("kept back by the server's content filter")
    if reason not in ("stop", "length"):
        raise UnusableAnswer(f"ended by {reason!r}")
    return choice, reason == "stop", usage.get("completion_tokens"), usage.get("prompt_tokens")


def _of_text(text: Any, finished: bool, tokens: int | None, read: int | None) -> Completion:
    if not isinstance(text, str):
        raise UnusableAnswer("an answer without text")
    if not text and (not finished or tokens == 0):
        raise UnusableAnswer("an empty completion")
    return Completion((), finished, 0.0, text=text, tokens=tokens, read=read)


def _ended(reply: Reply[Completion]) -> Completion:
    if reply.value is None:
        return Completion((), False, reply.seconds, failed=reply.failed)
    return replace(reply.value, seconds=reply.seconds)


Told = Callable[[list[int]], list[float]]  # ids of the prompt → log-prob of each


def _told_logps(answer: Any) -> Told:
    """vLLM's `prompt_logprobs`: per position a mapping of token ids, that of the prompt among them."""
    rows = answer["choices"][0].get("prompt_logprobs")
    if not rows:
        raise UnusableAnswer("no log-probs of the prompt")
    if any(not row for row in rows[1:]):
        raise UnusableAnswer("a position without log-probs")

    def told(ids: list[int]) -> list[float]:
        _expect_length(rows, ids)
        return [float("nan"), *(float(row[str(id_)]["logprob"]) for row, id_ in zip(rows[1:], ids[1:], strict=True))]

    return told


def _echoed_logps(answer: Any) -> Told:
    """`echo` with `logprobs`: the prompt's own come first, then those of the token that was generated."""
    rows = (answer["choices"][0].get("logprobs") or {}).get("token_logprobs")
    if not rows or any(row is None for row in rows[1:]):
        raise UnusableAnswer("no log-probs of the prompt")

    def told(ids: list[int]) -> list[float]:
        _expect_length(rows[:-1], ids)
        return [float("nan"), *map(float, rows[1:-1])]

    return told


def _expect_length(rows: Sequence[Any], ids: Sequence[int]) -> None:
    if len(rows) != len(ids):
        raise BackendError(f"the server scored {len(rows)} tokens where {len(ids)} were sent", where="completions")


def _card(endpoint: Endpoint, model: str) -> tuple[str, int | None, str]:
    """(name, tokens that fit, owner) of the model, from the server's list of models.

    Raises:
        ConfigError: it does not serve that model, or none is named and it serves several.
    """
    reply = endpoint.get("models", lambda answer: {card["id"]: card for card in answer["data"]})
    if reply.value is None:  # a server may keep no list
        if not model:
            fix = "name the model with --served_model"
            raise InputError(f"no list of models: {reply.failed}", where=endpoint.url, fix=fix)
        return model, None, ""
    cards = reply.value
    roots = [name for name, card in cards.items() if not card.get("parent")]
    name = model or (roots[0] if len(roots) == 1 else "")
    if name not in cards:
        has = ", ".join(cards) or "none"
        problem = f"the server has no model {model!r}" if model else "the server has several models"
        fix = did_you_mean(model, cards) or "name one with --served_model"
        raise ConfigError(problem, where=endpoint.url, expected=f"one of {has}", fix=fix)
    card = cards[name]
    fits = card.get("max_model_len") or cards.get(card.get("parent") or "", {}).get("max_model_len")
    return name, fits, str(card.get("owned_by", ""))
