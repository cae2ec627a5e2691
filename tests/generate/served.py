"""Answers of a well-behaved server, for scripts that let it misbehave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from srpo.tasks.carry import carry_tokenizer
from tests.scripted_server import JSON, Say

VLLM = [{"id": "tiny", "owned_by": "vllm", "max_model_len": 64}]
OTHER = [{"id": "tiny", "owned_by": "somebody"}]


def spoken(body: JSON) -> str:
    """The prompt of a request as text."""
    return str(carry_tokenizer().decode(body["prompt"], skip_special_tokens=True))


def completion(body: JSON, answer: str = "7", **changes: Any) -> JSON:
    """As vLLM answers a request for a completion."""
    tokenizer = carry_tokenizer()
    ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    choice = {"index": 0, "text": answer, "finish_reason": "stop", "token_ids": ids, "prompt_token_ids": body["prompt"]}
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
    return {"choices": [{**choice, **changes}], "usage": usage}


def answering(answer: Callable[[str], str]) -> Callable[[JSON, int], Say]:
    """A script that answers each prompt as a function of its text says."""
    return lambda body, before: Say(completion(body, answer(spoken(body))))


def scoring(model: Any) -> Callable[[JSON, int], Say]:
    """A script that tells a real model's log-probs of the prompt, in the dialect that it is asked in."""

    def script(body: JSON, before: int) -> Say:
        said = completion(body)
        choice = said["choices"][0]
        logps = logps_of(model, body["prompt"])
        if "prompt_logprobs" in body:
            told = zip(body["prompt"][1:], logps, strict=True)
            rows = [{str(id_): {"logprob": logp, "rank": 1}} for id_, logp in told]
            choice["prompt_logprobs"] = [None, *rows]
        else:
            choice["logprobs"] = {"token_logprobs": [None, *logps, -0.5]}
        return Say(said)

    return script


@torch.no_grad()
def logps_of(model: Any, ids: Sequence[int]) -> list[float]:
    """log-prob of each id after those before it, the first left out."""
    rows = model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
    return [float(rows[i, id_]) for i, id_ in enumerate(ids[1:])]
