"""Completions from an OpenAI-compatible server.

    CompletionsEngine   `/completions`: sends contexts as the token ids of training, and compares the number of tokens
                        the server read with the number sent
    ChatEngine          `/chat/completions`: sends messages, which the server renders with its own template. The model
                        may see another context than in training.

The server samples: equal (seed, key) send equal requests and seeds, and the draws are the server's. Greedy answers
equal those of the engine in this process up to rounding.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from srpo.errors import BackendError, ConfigError, InputError, did_you_mean
from srpo.generate.engine import Completion, ContextAnswer, Decoding, Keep, seed_of
from srpo.generate.http import Endpoint, JSONObject, Refused, Reply, UnusableAnswer
from srpo.generate.journal import Journal

log = logging.getLogger("srpo")

DIALECTS = ("auto", "vllm", "openai")
# Servers have sampling defaults that change the distribution; vLLM reads them from generation_config.json.
UNSHAPED = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
UNSHAPED_VLLM = {**UNSHAPED, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

# Names of the field with the largest number of new tokens; newer chat models reject the first one.
LIMITS = ("max_tokens", "max_completion_tokens")
# Words in a server's error that rejects a field's name, not its value.
_ABOUT_NAMES = re.compile(
    r"unsupported|unknown|unrecogni[sz]ed|unexpected|not (supported|permitted|allowed)|extra", re.I
)

Body = dict[str, Any]


class CompletionsEngine:
    """An engine that completes token ids with a model on an OpenAI-compatible server.

    Args:
        endpoint: The server.
        model: Name of the model or adapter on the server; "" takes the only one.
        batch_size: Prompts passed together; None takes four times the number of concurrent requests.
        dialect: "vllm" sends vLLM's own fields too, "openai" the standard ones; "auto" asks which server it is.
        journal: Stores each answer as it arrives; a stored answer is not requested again.
        fields: More fields of each request, name → value; the value None removes a field that the engine sends.

    Attributes:
        max_length: Largest number of context and answer tokens; None if the server does not report one.

    Raises:
        ConfigError: An unknown model or dialect.
        InputError: The server does not list its models.
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
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if dialect not in DIALECTS:
            raise ConfigError(f"{dialect!r}", where="dialect", expected="one of " + ", ".join(DIALECTS))
        self.endpoint, self.journal, self.fields = endpoint, journal, fields or {}
        self._renamed: dict[str, str | None] = {}  # field → the name the server wants, None to leave the field out
        self.batch_size = batch_size or 4 * endpoint.concurrency
        self.model, self.max_length, owner = _model_card(endpoint, model)
        self.dialect = dialect if dialect != "auto" else "vllm" if owner == "vllm" else "openai"

    def complete(
        self,
        contexts: Sequence[Sequence[object]],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        keep: Keep | None = None,
    ) -> list[Completion]:
        """Returns one completion per context, in order; a failed request gives a completion with `failed` set.

        The arguments are those of `Engine.complete`.

        Raises:
            BackendError: The server read other tokens than it was sent.
        """
        bodies = []
        for context, key in zip(contexts, keys, strict=True):
            body = {"model": self.model, "max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}
            body |= {"seed": seed_of(decoding.seed, key)} if decoding.temperature > 0 else {}
            body |= {**self._fields(context, decoding.stop_ids), **self.fields}
            bodies.append({name: value for name, value in body.items() if value is not None})
        done = {} if self.journal is None else self.journal.known(bodies)

        def store(place: int, body: JSONObject, completion: Completion) -> None:
            self._expect_same_context(body, completion)
            if self.journal is not None:
                self.journal.add(bodies[place], completion)
            if keep is not None:
                keep(place, completion)

        while missing := [i for i in range(len(bodies)) if i not in done]:
            before = dict(self._renamed)
            done |= self._request({i: self._adapted(bodies[i]) for i in missing}, store)
            if self._renamed == before:
                break
        return [done[i] for i in range(len(bodies))]

    def _request(
        self, bodies: dict[int, Body], store: Callable[[int, JSONObject, Completion], None]
    ) -> dict[int, Completion]:
        """Sends request bodies by index, stores each answer, and returns the completions by index.

        Returns early if the server rejects a field that `_adapt` can rename or omit; the caller sends the rest again.
        """
        done: dict[int, Completion] = {}
        places = {id(body): place for place, body in bodies.items()}
        replies = self.endpoint.each(
            self.path, bodies.values(), self._read, lambda body, found: store(places[id(body)], body, found)
        )
        for place, reply in zip(bodies, replies, strict=True):
            if reply.failed and not reply.worn_out and self._adapt(reply.failed, bodies[place]):
                return done
            done[place] = _completion(reply)
        return done

    def _adapted(self, body: Body) -> Body:
        """Returns a copy of a request body with the fields renamed and omitted as `_adapt` has found necessary."""
        names = {name: self._renamed.get(name, name) for name in body}
        return {new: body[name] for name, new in names.items() if new is not None}

    def _adapt(self, refusal: str, body: Body) -> bool:
        """Learns from a refused request which of its fields to rename or omit in later requests.

        A field is omitted only if its value leaves the distribution of answers unchanged.

        Args:
            refusal: the server's error.
            body: the request.

        Returns:
            False if no field can be changed, so that the request has failed.
        """
        named = [name for name in body if re.search(rf"\b{name}\b", refusal)]
        if LIMITS[0] in named and (LIMITS[1] in refusal or _ABOUT_NAMES.search(refusal)) and self.path != "completions":
            self._renamed[LIMITS[0]] = LIMITS[1]
        else:
            neutral = {**UNSHAPED_VLLM, "temperature": 1.0}
            dropped = [name for name in named if neutral.get(name) == body[name] and name in neutral]
            if not dropped:
                return False
            self._renamed |= dict.fromkeys(dropped)
        log.info("srpo: the server rejects fields of a request, which change to %s: %s", self._renamed, refusal)
        return True

    def logps(self, pairs: Sequence[ContextAnswer]) -> list[float]:
        """Returns log π of the answer in each (context ids, answer ids) pair: nats, summed over the answer's tokens.

        An answer that the server could not score gets nan and a warning.
        """
        vllm = self.dialect == "vllm"
        ask: Body = {"prompt_logprobs": 0} if vllm else {"echo": True, "logprobs": 1}
        bodies = [
            {"model": self.model, "prompt": [*context, *answer], "max_tokens": 1, "temperature": 0.0, **ask}
            for context, answer in pairs
        ]
        sums = []
        replies = self.endpoint.each(self.path, bodies, _prompt_logps if vllm else _echoed_logps)
        for (context, answer), reply in zip(pairs, replies, strict=True):
            if reply.value is None:
                log.warning("srpo: no log-probs: %s", reply.failed)
                sums.append(float("nan"))
            else:
                sums.append(sum(reply.value([*context, *answer])[len(context) :]))
        return sums

    def _fields(self, context: Sequence[object], stop_ids: Sequence[int]) -> Body:
        """Returns the request fields of the path `/completions`: the context's token ids and the stop ids."""
        if self.dialect != "vllm":
            return {"prompt": list(context), **UNSHAPED}
        # Use the end tokens of training; the model's own files may name others.
        ends = {"ignore_eos": True, "stop_token_ids": list(stop_ids)}
        return {"prompt": list(context), **UNSHAPED_VLLM, **ends, "return_token_ids": True}

    def _read(self, answer: JSONObject) -> Completion:
        choice, finished, tokens, read = _ending(answer)
        ids, text = choice.get("token_ids"), choice["text"]
        if ids is not None:
            if not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
                raise UnusableAnswer("token ids that are not integers")
            if not ids:
                raise UnusableAnswer("an empty completion")
            prompt = choice.get("prompt_token_ids")
            return Completion(tuple(ids), finished, 0.0, read=read if prompt is None else len(prompt))
        return _text_completion(text, finished, tokens, read)

    def _expect_same_context(self, body: JSONObject, done: Completion) -> None:
        if done.read is not None and done.read != len(body["prompt"]):
            raise BackendError(
                f"the server read {done.read} tokens where {len(body['prompt'])} were sent",
                where=f"{self.endpoint.url}/{self.path}",
                fix="the server must read prompts as token ids, unchanged; otherwise use --engine chat",
            )


class ChatEngine(CompletionsEngine):
    """An engine that completes chat messages with a model on a server; contexts come from a `MessageRenderer`.

    The server chooses the chat template, the end of an answer, and how thinking is shown.
    """

    path = "chat/completions"

    def _fields(self, context: Sequence[object], stop_ids: Sequence[int]) -> Body:
        return {"messages": list(context), **(UNSHAPED_VLLM if self.dialect == "vllm" else UNSHAPED)}

    def _read(self, answer: JSONObject) -> Completion:
        choice, finished, tokens, read = _ending(answer)
        return _text_completion(choice["message"]["content"], finished, tokens, read)

    def _expect_same_context(self, body: JSONObject, done: Completion) -> None:
        pass  # only the server knows the token ids of the messages


# ---------------------------------------------------------------------- reading a server's answer


def _ending(answer: JSONObject) -> tuple[JSONObject, bool, int | None, int | None]:
    """Reads a server's answer: its first choice, whether the model ended it, tokens generated, tokens of context.

    A number of tokens that the server does not report is None.

    Raises:
        Refused: a content filter has withheld the answer.
        UnusableAnswer: the answer ended for another reason than its end or its length.
    """
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise Refused("withheld by the server's content filter")
    if reason not in ("stop", "length"):
        raise UnusableAnswer(f"ended by {reason!r}")
    return choice, reason == "stop", usage.get("completion_tokens"), usage.get("prompt_tokens")


def _text_completion(text: object, finished: bool, tokens: int | None, read: int | None) -> Completion:
    if not isinstance(text, str):
        raise UnusableAnswer("an answer without text")
    if not text and (not finished or tokens == 0):
        raise UnusableAnswer("an empty completion")
    return Completion((), finished, 0.0, text=text, tokens=tokens, read=read)


def _completion(reply: Reply[Completion]) -> Completion:
    if reply.value is None:
        return Completion((), False, reply.seconds, failed=reply.failed)
    return replace(reply.value, seconds=reply.seconds)


LogpsOf = Callable[[list[int]], list[float]]  # ids of the prompt → log-prob of each


def _prompt_logps(answer: JSONObject) -> LogpsOf:
    """Returns a function from a prompt's ids to their log-probs, read from `prompt_logprobs` in vLLM's answer."""
    rows = answer["choices"][0].get("prompt_logprobs")
    if not rows:
        raise UnusableAnswer("no log-probs of the prompt")
    if any(not row for row in rows[1:]):
        raise UnusableAnswer("a position without log-probs")

    def logps_of(ids: list[int]) -> list[float]:
        _expect_length(rows, ids)
        return [float("nan"), *(float(row[str(id_)]["logprob"]) for row, id_ in zip(rows[1:], ids[1:], strict=True))]

    return logps_of


def _echoed_logps(answer: JSONObject) -> LogpsOf:
    """Returns a function from a prompt's ids to their log-probs, for an answer to `echo` with `logprobs`."""
    rows = (answer["choices"][0].get("logprobs") or {}).get("token_logprobs")
    if not rows or any(row is None for row in rows[1:]):
        raise UnusableAnswer("no log-probs of the prompt")

    def logps_of(ids: list[int]) -> list[float]:
        _expect_length(rows[:-1], ids)
        return [float("nan"), *map(float, rows[1:-1])]

    return logps_of


def _expect_length(rows: Sequence[Any], ids: Sequence[int]) -> None:
    if len(rows) != len(ids):
        raise BackendError(f"the server scored {len(rows)} tokens where {len(ids)} were sent", where="completions")


def _model_card(endpoint: Endpoint, model: str) -> tuple[str, int | None, str]:
    """Returns name, context length and owner of the model, from the server's list of models.

    Raises:
        ConfigError: An unknown model, or no name and several models.
        InputError: No name and no list of models.
    """
    reply = endpoint.get("models", lambda answer: {card["id"]: card for card in answer["data"]})
    if reply.value is None:  # some servers have no list
        if not model:
            fix = "name the model with --served_model"
            raise InputError(f"no list of models: {reply.failed}", where=endpoint.url, fix=fix)
        return model, None, ""
    cards = reply.value
    roots = [name for name, card in cards.items() if not card.get("parent")]
    name = model or (roots[0] if len(roots) == 1 else "")
    if name not in cards:
        problem = f"the server has no model {model!r}" if model else "the server has several models"
        fix = did_you_mean(model, cards) or "name one with --served_model"
        expected = f"one of {', '.join(cards) or 'none'}"
        raise ConfigError(problem, where=endpoint.url, expected=expected, fix=fix)
    card = cards[name]
    length = card.get("max_model_len") or cards.get(card.get("parent") or "", {}).get("max_model_len")
    return name, length, str(card.get("owned_by", ""))
