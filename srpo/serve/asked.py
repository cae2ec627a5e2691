"""Checks a request's JSON body field by field.

The server acts on a field, or accepts it because its value changes nothing (`NEUTRAL`, `LABELS`), or refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo.data.read import PromptRow, read_prompts
from srpo.errors import ConfigError, SRPOError, did_you_mean
from srpo.revise.policy import AUTO, Policy
from srpo.serve.pictures import NO_PICTURES, PictureLimits, with_decoded
from srpo.serve.problems import Problem, invalid, unsupported

Fields = Mapping[str, Any]
HONOURED = {
    *("model", "temperature", "seed", "n", "stop", "max_tokens", "max_completion_tokens", "stream", "stream_options"),
    *("n_revisions", "policy", "return_trail", "chat_template_kwargs"),
}
LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}  # change no answer
# Field → the values with which it has no effect here. Other values are refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
}
STOPS = 4  # stop texts, as many as OpenAI takes


@dataclass(frozen=True)
class Asked:
    """A checked request for answers.

    Attributes:
        model: Name of the model as asked for.
        rows: One prompt, or several of `/v1/completions`.
        n: Number of answers to each prompt.
        temperature, max_new_tokens: Sampling; None takes the server's default.
        seed: Seed of the draws; None draws anew for each request.
        policy: Name of the policy; "" takes the server's.
        revisions: Largest number of revisions; None takes the server's.
        stop: Texts that end an answer.
        stream: True for server-sent events.
        usage_chunk: True for a chunk of usage at the end of a stream.
        trail: Intermediate answers in the reply: "" for none, "texts" for draft and revisions, "diff" for their
            differences as well.
    """

    model: str
    rows: tuple[PromptRow, ...]
    n: int
    temperature: float | None
    max_new_tokens: int | None
    seed: int | None
    policy: str
    revisions: int | None
    stop: tuple[str, ...]
    stream: bool
    usage_chunk: bool
    trail: str


def asked(
    body: object, *, chat: bool, name: str, most: int, choices: int, pictures: PictureLimits = NO_PICTURES
) -> Asked:
    """Checks the parsed JSON body of a request for answers, and returns its fields.

    Args:
        chat: True for `/v1/chat/completions`, False for `/v1/completions`.
        name: Name of the served model.
        most: Largest number of revisions allowed.
        choices: Largest number of answers allowed.
        pictures: Limits of pictures in messages.

    Raises:
        Problem: A field is missing, unknown, unusable or not honoured.
    """
    if not isinstance(body, dict):
        raise Problem(400, "the body is not a JSON object")
    own = "messages" if chat else "prompt"
    _expect_honoured(body, own)
    policy, revisions = _options(body, name)
    if revisions is not None and revisions > most:
        raise invalid("n_revisions", f"{revisions}; this server allows {most}")
    n = _integer(body, "n", least=1) or 1
    rows = _rows(body, pictures, chat=chat)
    if n * len(rows) > choices:
        raise invalid("n", f"{n * len(rows)} answers in one request; this server allows {choices}")
    limits = {key: _integer(body, key, least=1) for key in ("max_tokens", "max_completion_tokens")}
    named = [limit for limit in limits.values() if limit is not None]
    if len({*named}) > 1:
        raise invalid("max_tokens", "differs from max_completion_tokens")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or {*options} - {"include_usage", "include_obfuscation"}:
        raise unsupported("stream_options", "an object with include_usage is expected")
    return Asked(
        model=body["model"],
        rows=rows,
        n=n,
        temperature=_temperature(body),
        max_new_tokens=named[0] if named else None,
        seed=_integer(body, "seed", least=None),
        policy=policy,
        revisions=revisions,
        stop=_stop(body),
        stream=_boolean(body, "stream"),
        usage_chunk=options.get("include_usage") is True,
        trail=_trail(body),
    )


def vote_of(body: object) -> dict[str, Any]:
    """Checks the parsed JSON body of a vote on two answers, and returns the arguments of `append_vote`.

    Raises:
        Problem: A field is missing, unknown or of another kind.
    """
    if not isinstance(body, dict):
        raise Problem(400, "the body is not a JSON object")
    needed, more = {"prompt", "first", "second", "vote"}, {"shown", "blind"}
    if wrong := ({*body} - needed - more) or (needed - {*body}):
        raise Problem(400, f"fields of a vote: {', '.join(sorted(needed | more))}", param=min(wrong))
    chat = not isinstance(body["prompt"], str)
    _rows({"messages" if chat else "prompt": body["prompt"]}, NO_PICTURES, chat=chat)
    for key in ("first", "second", "vote"):
        if not isinstance(body[key], str):
            raise invalid(key, "a text is expected")
    shown = body.get("shown") or {}
    if not isinstance(shown, dict) or not all(isinstance(each, str) for each in shown.values()):
        raise invalid("shown", "an object of texts is expected")
    return {**body, "shown": {**shown}, "blind": _boolean(body, "blind")}


def _expect_honoured(body: Fields, own: str) -> None:
    known = HONOURED | LABELS | {own} | NEUTRAL.keys()
    for key, value in body.items():
        if key not in known:
            raise Problem(
                400,
                f"unknown field {key!r}; {did_you_mean(key, known)}".rstrip("; "),
                param=key,
                code="unknown_parameter",
            )
        if key in NEUTRAL and value is not None and not any(value == each for each in NEUTRAL[key]):
            raise unsupported(key, "this server does not honour it; leave it out")


def _options(body: Fields, name: str) -> tuple[str, int | None]:
    """Returns policy and number of revisions of a request; "" and None take the server's.

    Both may be after "@" in the model's name ("my-model@k=2") or in the fields `policy` and `n_revisions`.

    Raises:
        Problem: the model's name is missing or another one, a value is unusable, or name and field differ.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model", "the name of a model is missing")
    base, _, tail = model.partition("@")
    if base != name:
        message = f"the model {model!r} does not exist; this server has {name!r}"
        raise Problem(404, message, param="model", code="model_not_found")
    found: dict[str, Any] = {}
    for option in tail.split(",") if tail else []:
        key, _, value = option.partition("=")
        if option == "draft":
            found["n_revisions"] = 0
        elif key == "k" and value.isascii() and value.isdigit() and len(value) < 6:
            found["n_revisions"] = int(value)
        elif key == "policy" and value:
            found["policy"] = value
        else:
            message = f"{option!r} in the model's name; @draft, @k=2 and @policy=always are known"
            raise Problem(404, message, param="model", code="model_not_found")
    for key in ("n_revisions", "policy"):
        given = body.get(key)
        if given is not None and found.setdefault(key, given) != given:
            raise invalid(key, "differs from the model's name")
    policy = found.get("policy", "")
    if not isinstance(policy, str):
        raise invalid("policy", "a name is expected")
    if policy not in ("", AUTO):
        try:
            Policy.named(policy)
        except ConfigError as error:
            raise Problem(400, str(error), param="policy", code="invalid_value") from None
    return "" if policy == AUTO else policy, _integer(found, "n_revisions", least=0)


def _rows(body: Fields, pictures: PictureLimits, *, chat: bool) -> tuple[PromptRow, ...]:
    key = "messages" if chat else "prompt"
    value = body.get(key)
    prompts = [value] if chat or isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts:
        raise invalid(key, "a text or a list of texts is expected")
    kind = list if chat else str
    if not all(isinstance(each, kind) for each in prompts):
        raise invalid(key, "a list of messages is expected" if chat else "texts are expected; token ids are not taken")
    if chat:
        prompts = [with_decoded(prompts[0], pictures)]
    options = body.get("chat_template_kwargs")
    given = [{"prompt": _as_in_data(each), "chat_template_kwargs": options} for each in prompts]
    try:
        rows = read_prompts(given)
    except SRPOError as error:
        raise Problem(400, f"{key}: {error.what}", param=key, code="invalid_value") from None
    return tuple(rows)


def _as_in_data(prompt: Any) -> Any:
    """Returns the text of a conversation that is one user message, and any other prompt unchanged.

    Models without a chat template take text alone; a chat template gives the same context for both forms.
    """
    lone = isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict)
    if lone and {"role", "content"} <= {*prompt[0]} <= {"role", "content", "type"} and prompt[0]["role"] == "user":
        return prompt[0]["content"] if isinstance(prompt[0]["content"], str) else prompt
    return prompt


def _temperature(body: Fields) -> float | None:
    value = body.get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise invalid("temperature", "a number from 0 to 2 is expected")
    return float(value)


def _stop(body: Fields) -> tuple[str, ...]:
    value = body.get("stop")
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > STOPS or not all(isinstance(each, str) and each for each in found):
        raise invalid("stop", f"a text, or up to {STOPS} texts, none of them empty")
    return tuple(found)


def _trail(body: Fields) -> str:
    value = body.get("return_trail")
    if value not in (None, False, True, "diff"):
        raise invalid("return_trail", 'true, false or "diff" is expected')
    return "texts" if value is True else value or ""


def _boolean(body: Fields, key: str) -> bool:
    value = body.get(key)
    if value not in (None, False, True) or (isinstance(value, int) and not isinstance(value, bool)):
        raise invalid(key, "true or false is expected")
    return bool(value)


def _integer(body: Fields, key: str, *, least: int | None) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not int or (least is not None and value < least) or abs(value) >= 2**63:
        raise invalid(key, "an integer is expected" if least is None else f"an integer of {least} or more is expected")
    return value
