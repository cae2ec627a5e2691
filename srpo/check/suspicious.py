"""Counts pairs that can be trained on and look wrong, for `srpo check` and before every training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from hashlib import blake2b

from srpo.data.read import Pair, Stream
from srpo.data.source import AnySource
from srpo.data.values import Message, last_message
from srpo.sequences.chat_template import ControlTokens
from srpo.sequences.render import Renderer

PLACES = 5  # number of rows named per finding
_SPEAKER = re.compile(r"(?m)^\s*(?:#+\s*)?(human|user|assistant|bot|gpt|system)\s*:", re.IGNORECASE)
_ANSWERS = {"assistant", "bot", "gpt"}


class Suspicious:
    """Counts pairs that look wrong, such as duplicates and evaluation prompts; rows are compared by 8-byte hashes.

    Attributes:
        duplicates: number of pairs equal to an earlier one, word for word.
        prompts: hashes of the data's prompts.
        evaluation_rows: number of pairs in the evaluation set.
        leaked_prompts: place in the evaluation set → place of the same prompt in the data.
        leaked_pairs: places in the evaluation set whose prompt and answers are in the data.
    """

    def __init__(self, renderer: Renderer, evaluation: AnySource | None = None) -> None:
        self.duplicates = self.evaluation_rows = 0
        self.leaked_prompts: dict[str, str] = {}
        self.leaked_pairs: set[str] = set()
        self.prompts: set[bytes] = set()
        self._renderer, self._control = renderer, ControlTokens(renderer.tokenizer)
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._tokens: dict[str, None] = {}
        self._seen: set[bytes] = set()
        self._evaluation: dict[bytes, list[tuple[str, bytes]]] = {}
        if evaluation is not None:
            self.expect_apart(each for each in Stream(evaluation) if isinstance(each, Pair))

    def expect_apart(self, evaluation: Iterable[Pair]) -> None:
        """Registers pairs of an evaluation set, to find out which of them the data contains; call it before `add`."""
        for pair in evaluation:
            self.evaluation_rows += 1
            self._evaluation.setdefault(_digest(_turns(pair)), []).append((pair.where, _whole(pair)))

    def add(self, pair: Pair) -> None:
        """Checks one pair of the data, and adds anything suspicious in it to the counts."""
        whole, swapped = _whole(pair), _digest([_turns(pair), pair.rejected, pair.chosen])
        prompt = _digest(_turns(pair))
        self.prompts.add(prompt)
        self.duplicates += whole in self._seen
        if swapped in self._seen and whole not in self._seen:
            self._count("contradict an earlier pair: the same prompt and answers, preferred the other way round", pair)
        self._seen.add(whole)
        for where, theirs in self._evaluation.get(prompt, []):
            self.leaked_prompts.setdefault(where, f"{where} is {pair.where}")
            if theirs == whole:
                self.leaked_pairs.add(where)
        self._look(pair)

    def _look(self, pair: Pair) -> None:
        texts = [(message["content"], message["role"] == "assistant") for message in _turns(pair)]
        texts += [(pair.chosen, True), (pair.rejected, True)]
        if tokens := [token for text, answer in texts for token in self._control.as_text(text, answer=answer)]:
            self._tokens.update(dict.fromkeys(tokens))
            self._count(_TEMPLATED, pair)
        asked = last_message(pair.prompt)
        if not asked.strip():
            self._count("have an empty prompt", pair)
        if self._renderer.chat is not None and _is_transcript(asked):
            self._count("hold a transcript inside their prompt, which becomes one turn of the user", pair)
        content: Callable[[str], str] = self._renderer.content_of
        if not content(pair.chosen).strip() or not content(pair.rejected).strip():
            self._count("have an answer that is empty but for its thinking", pair)

    def _count(self, finding: str, pair: Pair) -> None:
        self._counts[finding] = self._counts.get(finding, 0) + 1
        places = self._places.setdefault(finding, [])
        if len(places) < PLACES:
            places.append(pair.where)

    def sentences(self) -> list[str]:
        """Returns suspicious findings as lines, with the places of the first few pairs; [] if nothing looks wrong."""
        found = []
        for finding, count in self._counts.items():
            words = finding.format(tokens=", ".join([*self._tokens][:PLACES])) if finding is _TEMPLATED else finding
            places = self._places[finding]
            more = ", …" if count > len(places) else ""
            found.append(f"{count} pairs {words} ({', '.join(places)}{more})")
        if self.leaked_prompts:
            found.append(
                f"of {self.evaluation_rows} evaluation pairs {len(self.leaked_prompts)} have a prompt that is trained "
                f"on, {len(self.leaked_pairs)} are trained on with both answers"
            )
        return found


_TEMPLATED = (
    "hold control tokens as text ({tokens}), which are encoded as letters; if a chat template wrote them, give the "
    "messages without it"
)


def _is_transcript(text: str) -> bool:
    speakers = [speaker.lower() for speaker in _SPEAKER.findall(text)]
    return bool(_ANSWERS.intersection(speakers[:-1])) and len({*speakers}) > 1


def _turns(pair: Pair) -> list[Message]:
    """The pair's prompt as messages, so that a text and a single user message with that text are equal."""
    return [{"role": "user", "content": pair.prompt}] if isinstance(pair.prompt, str) else pair.prompt


def _whole(pair: Pair) -> bytes:
    return _digest([_turns(pair), pair.chosen, pair.rejected])


def _digest(value: object) -> bytes:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).digest()
