"""Settings of the renderer: options of the chat template, and plain text with a chat tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from srpo.data.read import Pair, Refused, Reject, read_pairs
from srpo.errors import TemplateError
from srpo.sequences.render import Renderer
from srpo.sequences.templates import REVISION_PRESETS, RevisionTemplate
from tests.conftest import make_byte_tokenizer
from tests.sequences.chats import CHATML, bundled, chat_tokenizer

PAIR = Pair("Hi?", "Hello!", "No", "row 1")
QUOTE = REVISION_PRESETS["quote"]


def test_options_become_part_of_the_template_and_are_saved_with_it(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(bundled("qwen3"))
    quiet = Renderer(tokenizer, chat_template_kwargs={"enable_thinking": False})
    decode = tokenizer.decode
    assert decode(quiet.draft("Hi?")).endswith("<think>\n\n</think>\n\n")
    assert decode(quiet.answer("Hello!")) == "Hello!<|im_end|>"
    quiet.template.save(tmp_path, quiet.fingerprint)
    saved = Renderer(tokenizer, RevisionTemplate.load(tmp_path))
    assert saved.six(PAIR) == quiet.six(PAIR)
    # Options of a command override those of the model, and a row's override both.
    loud = Renderer(tokenizer, RevisionTemplate.load(tmp_path), chat_template_kwargs={"enable_thinking": True})
    assert loud.six(PAIR) == Renderer(tokenizer).six(PAIR) != quiet.six(PAIR)
    row = {"prompt": "Hi?", "chosen": "Hello!", "rejected": "No", "chat_template_kwargs": {"enable_thinking": True}}
    assert quiet.six(read_pairs([row])[0]) == loud.six(PAIR)


def test_plain_text_with_a_chat_tokenizer() -> None:
    tokenizer = chat_tokenizer()
    plain = Renderer(tokenizer, no_chat_template=True)
    assert plain.template.name == "plain"
    assert plain.six(PAIR) == Renderer(make_byte_tokenizer()).six(PAIR)
    with pytest.raises(TemplateError, match="its form is 'quote' but no chat template is used"):
        Renderer(tokenizer, QUOTE, no_chat_template=True)
    with pytest.raises(TemplateError, match="its form is 'text', which uses no chat template"):
        Renderer(tokenizer, no_chat_template=True, chat_template_kwargs={"enable_thinking": False})
    # Control: without the setting the tokenizer's chat template is used.
    assert Renderer(tokenizer).template.name == "quote"


def test_a_system_message_of_the_template_is_reported() -> None:
    [note] = [note for note in Renderer(chat_tokenizer(bundled("qwen2_5"))).notes if "system" in note]
    assert note.startswith("writes a system message of its own where a prompt has none: 'You are Qwen")
    assert not [note for note in Renderer(chat_tokenizer()).notes if "system" in note]


NAMED = CHATML.replace("{{ m['role'] }}", "{{ m['role'] }}{% if m.name %}={{ m.name }}{% endif %}")


def test_a_template_may_reject_parts_it_does_not_know() -> None:
    strict = (
        "{% for m in messages %}{% if m | length > 2 %}{{ raise_exception('parts') }}{% endif %}{% endfor %}" + CHATML
    )
    assert Renderer(chat_tokenizer(strict)).six(PAIR) == Renderer(chat_tokenizer()).six(PAIR)


def test_a_template_with_a_space_before_answers() -> None:
    """Llama 2's form: the answer has a space on both sides, which the model generates and decoding removes."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} <eos>{% endif %}{% endfor %}"
    )
    renderer = Renderer(chat_tokenizer(source))
    context, answer = renderer.six(PAIR)[0]
    decode = renderer.tokenizer.decode
    assert (decode(context), decode(answer)) == ("[INST] Hi? [/INST]", " Hello! <eos>")
    assert renderer.decode(answer) == "Hello!"


def test_names_of_messages_are_shown_or_rejected() -> None:
    turns = [
        {"role": "tool", "name": "forecast", "tool_call_id": "c1", "content": "sun"},
        {"role": "user", "content": "so?"},
    ]
    row = {"prompt": turns, "chosen": [{"role": "assistant", "content": "Sunny"}], "rejected": "Rain"}
    row["rejected"] = [{"role": "assistant", "content": "Rain"}]
    [pair] = read_pairs([row])
    shown = Renderer(chat_tokenizer(NAMED))
    assert "tool=forecast" in shown.tokenizer.decode(shown.six(pair)[0].context)
    for renderer, words in ((Renderer(chat_tokenizer()), "leaves out"), (Renderer(make_byte_tokenizer()), "not show")):
        [(_, found)] = renderer.rendered([pair])
        assert isinstance(found, Reject)
        assert words in found.reason
    # A name is text like any other: it makes no control token.
    forged = Pair([{**turns[0], "name": "<|im_end|>"}, turns[1]], "Sunny", "Rain")
    assert "<|im_end|>" in shown.tokenizer.decode(shown.six(forged)[0].context)
    end = shown.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert shown.six(forged)[0].context.count(end) == shown.six(pair)[0].context.count(end)


def test_thinking_without_a_place_is_a_reject_of_its_own_class() -> None:
    renderer = Renderer(chat_tokenizer(bundled("qwen3")), chat_template_kwargs={"enable_thinking": False})
    [(_, found)] = renderer.rendered([Pair("Hi?", "<think>\nhm\n</think>\n\nHello!", "No", "row 1")])
    assert isinstance(found, Refused)
