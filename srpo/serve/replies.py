"""Builds answers in the shape of OpenAI's API: whole objects, chunks of a stream, usage and trails.

A chain is one prompt with its draft and revisions; a choice is one answer of a request.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from srpo.data.values import THINK_END, THINK_START
from srpo.report.diff import diff
from srpo.revise.chain import Chain
from srpo.revise.trail import Answer
from srpo.serve.problems import Problem

DONE = b"data: [DONE]\n\n"
_WORDS = 8  # words in one delta of a stream
_PIECES = re.compile(rf"(?:\s*\S+){{1,{_WORDS}}}\s*|\s+", re.S)


@dataclass
class Reply:
    """Builds the answer to one request.

    Attributes:
        model: Name of the model as asked for.
        chat: True for `/v1/chat/completions`, False for `/v1/completions`.
        trail: Intermediate answers to add: "" for none, "texts" for draft and revisions, "diff" with their differences.
    """

    model: str
    chat: bool
    trail: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, chains: Sequence[Chain]) -> dict[str, Any]:
        """Returns the JSON object that answers a request without streaming; each of `chains` becomes one choice."""
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [self._choice(place, chain) for place, chain in enumerate(chains)],
            "usage": usage(chains),
        }

    def _choice(self, place: int, chain: Chain) -> dict[str, Any]:
        answer, choice = chain.in_hand, self._outline(place, chain)
        if not self.chat:
            return {**choice, "text": answer.text}
        message = {"role": "assistant", "content": answer.text, **_reasoning(answer)}
        return {**choice, "message": message}

    def _outline(self, place: int, chain: Chain) -> dict[str, Any]:
        """The parts of a choice other than its text: place, reason of the end, revision kept, trail."""
        finish = "stop" if chain.in_hand.finished else "length"
        found: dict[str, Any] = {"index": place, "finish_reason": finish, "logprobs": None, "srpo": _end(chain)}
        if self.trail:
            found["srpo"]["trail"] = [self.event(chain, k) for k in range(len(chain.answers))]
        return found

    def event(self, chain: Chain, k: int) -> dict[str, Any]:
        """Returns answer number `k` of a chain (0 is the draft) as JSON values: text, confidence, policy's decision."""
        answer, fresh = chain.answers[k], chain.policy.fresh
        found: dict[str, Any] = {
            "step": f"draft {k + 1}" if fresh else f"revision {k}" if k else "draft",
            "text": answer.text,
            "confidence": answer.preferred,
            "kept": answer.kept,
            "finished": answer.finished,
            "tokens": answer.tokens,
        }
        if self.trail == "diff":
            old = chain.trail().last_kept(k - 1).text if k and not fresh else answer.text
            found["diff"] = [[piece.change, piece.text] for piece in diff(old, answer.text)]
        return found

    # ------------------------------------------------------------------ streams

    def role_chunk(self, place: int) -> bytes:
        """Returns the first chunk of answer number `place` in a stream, as bytes to send; empty outside chat."""
        return self._chunk(place, {"role": "assistant", "content": ""}, "") if self.chat else b""

    def event_chunk(self, place: int, chain: Chain, k: int) -> bytes:
        """Returns a chunk of a stream with answer number `k` of a chain (0 is the draft), as `event` gives it."""
        return self._chunk(place, {}, "", srpo={"event": self.event(chain, k)})

    def delta_chunk(self, place: int, text: str) -> bytes:
        """Returns a chunk of a stream with the next part of the text of answer number `place`."""
        return self._chunk(place, {"content": text}, text)

    def text_chunks(self, place: int, chain: Chain, sent: str = "", last: Sequence[Chain] = ()) -> Iterator[bytes]:
        """Yields the chunks of the final answer number `place`, its thinking first, then the reason of the end.

        Args:
            sent: The beginning of the answer's text that has been sent.
            last: All chains of the request, to add their usage to the last chunk.

        Raises:
            Problem: The answer begins otherwise than what has been sent.
        """
        if not chain.in_hand.text.startswith(sent):
            raise Problem(500, "the answer differs from the text sent so far", kind="server_error")
        for name, text in _reasoning(chain.in_hand).items():
            yield self._chunk(place, {name: text}, "")
        for piece in _PIECES.findall(chain.in_hand.text.removeprefix(sent)):
            yield self.delta_chunk(place, piece)
        outline, spent = self._outline(place, chain), usage(last) if last else None
        yield self._chunk(place, {}, "", finish=outline["finish_reason"], srpo=_end(chain), spent=spent)

    def usage_chunk(self, chains: Sequence[Chain]) -> bytes:
        """Returns the last chunk of a stream, with the tokens used by the whole request and no text."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _sent({**self._head(kind), "choices": [], "usage": usage(chains)})

    def _chunk(
        self,
        place: int,
        delta: dict[str, Any],
        text: str,
        *,
        finish: str | None = None,
        srpo: object = None,
        spent: dict[str, Any] | None = None,
    ) -> bytes:
        shown = {"delta": delta} if self.chat else {"text": text}
        choice: dict[str, Any] = {"index": place, **shown, "logprobs": None, "finish_reason": finish}
        if srpo is not None:
            choice["srpo"] = srpo
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _sent({**self._head(kind), "choices": [choice], **({"usage": spent} if spent else {})})

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def error_chunk(problem: Problem) -> bytes:
    """Returns the chunk that reports an error in a stream whose HTTP status was sent before."""
    return _sent(problem.body())


def usage(chains: Sequence[Chain]) -> dict[str, Any]:
    """Returns the tokens of a request: those of the draft and every revision of all its answers, kept or not.

    `prompt_tokens` counts the context of each draft once; `forward_tokens` counts everything that policy and reference
    read, contexts of revisions and scoring included.
    """
    drafts = [chain.answers[0] for chain in chains if chain.answers]
    drafted = sum(answer.tokens for answer in drafts)
    revised = sum(answer.tokens for chain in chains for answer in chain.answers[1:])
    read = sum(answer.forward_tokens - answer.tokens for answer in drafts)
    return {
        "prompt_tokens": read,
        "completion_tokens": drafted + revised,
        "total_tokens": read + drafted + revised,
        "completion_tokens_details": {
            "draft_tokens": drafted,
            "revision_tokens": revised,
            "answer_tokens": sum(chain.in_hand.tokens for chain in chains),
            "forward_tokens": sum(answer.forward_tokens for chain in chains for answer in chain.answers),
        },
    }


def _end(chain: Chain) -> dict[str, Any]:
    """Number of revisions drawn, the returned one's number (0 for the draft) and confidence, reason of the end."""
    in_hand = max((k for k, answer in enumerate(chain.answers) if answer.kept), default=0)
    if chain.answers and chain.answers[-1].in_hand is not None:  # a selector chose
        in_hand = chain.answers[-1].in_hand
    found: dict[str, Any] = {"revisions": max(0, len(chain.answers) - 1), "revision": in_hand}
    return {
        **found,
        "confidence": chain.in_hand.preferred,
        "policy": chain.policy.name,
        "stopped": chain.trail().stopped,
    }


def _reasoning(answer: Answer) -> dict[str, str]:
    inner = answer.thinking.strip().removeprefix(THINK_START).removesuffix(THINK_END).strip()
    return {"reasoning_content": inner} if inner else {}


def _sent(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
