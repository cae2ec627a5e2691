"""What fits a length: nothing is cut unasked, and when it is asked only the oldest part of a prompt goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo.data.read import Pair, Reject
from srpo.errors import ConfigError
from srpo.sequences.fit import SAME_TOKENS, StoredPairs, cut_oldest, longest_of
from srpo.sequences.render import Renderer
from srpo.sequences.templates import REVISION_PRESETS
from srpo.sequences.tree import TokenPair
from srpo.sequences.tree_store import tree_of
from tests.conftest import EOS, make_byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = Renderer(make_byte_tokenizer())
PAIR = Pair("0123456789 abcdefghij", " yes", " no", "rows:3")


def chat(preset: str = "quote") -> Renderer:
    tokenizer = make_byte_tokenizer(chat_template=CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return Renderer(tokenizer, REVISION_PRESETS[preset])


class Fitted(NamedTuple):
    six: list[TokenPair] | Reject
    lengths: tuple[int, ...]
    cut: int


def fit(renderer: Renderer, pair: Pair, limit: int | None, truncate: str = "none") -> Fitted:
    [(_, found, reject)] = StoredPairs(renderer, max_length=limit, truncate=truncate, cache=None).all([pair])
    return Fitted(reject or tree_of(found.ids, found.marks).unpack(), found.lengths, found.cut)


def said(messages: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize("renderer", [TEXT, chat(), chat("turn")], ids=["text", "quote", "turn"])
def test_pairs_within_the_limit_are_rendered_unchanged(renderer: Renderer) -> None:
    six = renderer.six(PAIR)
    for limit in (None, longest_of(six)):
        for truncate in ("none", "prompt"):
            found = fit(renderer, PAIR, limit, truncate)
            assert (found.six, found.cut) == (six, 0)
    lengths = [len(context) + len(answer) for context, answer in six]
    x, w, l = len(six[0].context), len(six[0].answer), len(six[1].answer)
    assert found.lengths == (x, w, l, *lengths, max(lengths))


def test_long_pairs_are_rejected_with_six_lengths() -> None:
    six = TEXT.six(PAIR)
    lengths = [len(context) + len(answer) for context, answer in six]
    found = fit(TEXT, PAIR, max(lengths) - 1)
    assert found.six == Reject(
        "rows:3",
        f"{max(lengths)} tokens, over the limit of {max(lengths) - 1} "
        f"(as drafts {lengths[:2]}, as revisions {lengths[2:]})",
    )
    # An answer that fits alone but not after a draft is too long, too.
    assert max(lengths[:2]) < max(lengths) - 1


@pytest.mark.parametrize("renderer", [TEXT, chat(), chat("turn")], ids=["text", "quote", "turn"])
@pytest.mark.parametrize("over", [1, 4, 10])
def test_truncation_cuts_the_oldest_prompt_tokens_alone(renderer: Renderer, over: int) -> None:
    longest = longest_of(renderer.six(PAIR))
    found = fit(renderer, PAIR, longest - over, "prompt")
    # One id per byte: exactly what is over goes, from the front, and the six are those of the shorter prompt.
    shorter = replace(PAIR, prompt=str(PAIR.prompt)[over:])
    assert found.six == renderer.six(shorter)
    assert found.cut == over
    for (_, answer), text in zip(found.six, [PAIR.chosen, PAIR.rejected] * 3, strict=True):
        assert answer == renderer.answer(text)
        assert answer[-1] == renderer.terminator
    assert found.lengths[-1] == longest


def test_pairs_too_long_without_their_prompt_are_rejected() -> None:
    longest = longest_of(TEXT.six(PAIR))
    for over in (len(str(PAIR.prompt)), longest - 3):
        found = fit(TEXT, PAIR, longest - over, "prompt")
        assert isinstance(found.six, Reject)
        assert found.six.reason.endswith("which cutting its prompt does not mend")


def test_a_letter_of_several_tokens_is_cut_whole() -> None:
    pair = replace(PAIR, prompt="ééé|abc")
    found = fit(TEXT, pair, longest_of(TEXT.six(pair)) - 3, "prompt")
    assert found.six == TEXT.six(replace(pair, prompt="é|abc"))
    assert found.cut == 4


def test_the_oldest_messages_are_cut_first() -> None:
    tokenizer = make_byte_tokenizer()
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": text} for role, text in turns]
    system = turns[:1]
    assert said(cut_oldest(tokenizer, messages, 2)) == [*system, ("user", "e"), *turns[2:]]
    # The first of the user's cut whole takes the answer to it along: a conversation begins with the user.
    assert said(cut_oldest(tokenizer, messages, 3)) == [*system, ("user", "three")]
    assert said(cut_oldest(tokenizer, messages, 6)) == [*system, ("user", "three")]
    assert said(cut_oldest(tokenizer, messages, 8)) == [*system, ("user", "ree")]
    assert cut_oldest(tokenizer, messages, 11) is None
    assert said(messages) == turns  # the caller's are as they were
    found = fit(chat(), Pair(messages, "yes", "no"), longest_of(chat().six(Pair(messages, "yes", "no"))) - 1, "prompt")
    assert found.six == chat().six(Pair([messages[0], {"role": "user", "content": "ne"}, *messages[2:]], "yes", "no"))


@settings(max_examples=50)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.integers(20, 90),
    st.sampled_from(["none", "prompt"]),
)
def test_no_sequence_is_over_the_limit_and_answers_are_whole(prompt: str, limit: int, truncate: str) -> None:
    pair = Pair(prompt, "yes indeed", "no")
    found = fit(TEXT, pair, limit, truncate)
    if isinstance(found.six, Reject):
        assert longest_of(TEXT.six(pair)) > limit
        return
    assert longest_of(found.six) <= limit
    assert [answer for _, answer in found.six] == [TEXT.answer("yes indeed"), TEXT.answer("no")] * 3
    shown = TEXT.tokenizer.decode(found.six[0].context)
    assert prompt.endswith(shown)
    assert (shown == prompt) == (found.cut == 0)


def test_answers_of_the_same_tokens_are_rejected() -> None:
    from tokenizers import normalizers

    tokenizer = make_byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    found = fit(Renderer(tokenizer), Pair("p", "e\u0301", "é", "row 2"), None)
    assert found.six == Reject("row 2", SAME_TOKENS)
    # Control: without a normaliser they are two answers.
    assert not isinstance(fit(TEXT, Pair("p", "e\u0301", "é"), None).six, Reject)
    assert TEXT.terminator == EOS


def test_unknown_ways_to_truncate_are_an_error() -> None:
    with pytest.raises(ConfigError, match="truncate: 'answer'; expected one of none, prompt"):
        fit(TEXT, PAIR, 5, "answer")
