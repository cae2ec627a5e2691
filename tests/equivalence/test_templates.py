"""Every chat template in TRL's wheel: the ids trained on are the ids generated from, for drafts and for revisions.

The tokenizer has one id per byte, so a text has the same ids wherever it stands, and the control tokens that the
template writes. `EXPECTED` says what each template does that another does not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo.data.read import Pair, Reject
from srpo.errors import DataError, TemplateError
from srpo.sequences.render import Renderer
from srpo.sequences.templates import REVISION_PRESETS
from tests.conftest import BOS, EOS, make_byte_tokenizer

pytest.importorskip("trl")
from tests.equivalence.chat_templates import (
    FOR_PARTS,
    TEMPLATES,
    TEXT,
    THINKING,
    renderer_of,
    table,
    tokenizer_of,
    vendor,
)

# name: the token that ends an answer, then the habits of the template:
#   trims      white space around a message is dropped
#   hides      thinking is left out of earlier answers
#   thinks     the generation prompt opens a block of thinking
#   no-system  a system message is rejected
#   dated      today's date is part of every prompt; it is held still
#   rewrites   "prompt, answer, please revise" does not begin with "prompt, answer": `turn` shares less than it could
# A template and its `_training` twin, which marks the scored text, differ only where both are listed.
EXPECTED = {
    "cohere": "<|END_OF_TURN_TOKEN|> trims",
    "cohere2": "<|END_RESPONSE|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜> hides thinks rewrites",
    "deepseek_r1_distill_training": "<｜end▁of▁sentence｜> thinks rewrites",
    "deepseekv3": "<｜end▁of▁sentence｜> hides thinks rewrites",
    "diffusion_gemma": "<turn|> trims hides",
    "gemma": "<end_of_turn> trims no-system",
    "gemma3": "<end_of_turn> trims",
    "gemma4": "<turn|> trims hides",
    "gemma4_v2": "<turn|> trims hides",
    "gemma4_v3": "<turn|> trims hides",
    "gemma4_v4": "<turn|> trims hides",
    "gemma4_v5": "<turn|> trims hides",
    "glm4moe": "<eos> hides rewrites",
    "glm4moe_training": "<|user|> hides rewrites",
    "gptoss": "<|return|> dated rewrites",
    "lfm2": "<|im_end|>",
    "lfm2_2_5": "<|im_end|> hides",
    "lfm2_2_5_v2": "<|im_end|> hides",
    "lfm2_2_5_vl": "<|im_end|> hides",
    "lfm2_v2": "<|im_end|>",
    "llama3": "<|eot_id|> trims",
    "llama3_1": "<|eot_id|> trims",
    "llama3_2": "<|eot_id|> trims dated",
    "muse_glimmer": "<|eot|> dated rewrites",
    "nemotron_3_5_lightning": "<|im_end|> hides thinks rewrites",
    "nemotron_3_nano": "<|im_end|> hides thinks rewrites",
    "nemotron_3_super": "<|im_end|> hides thinks rewrites",
    "nemotron_3_ultra": "<|im_end|> hides thinks rewrites",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen2_5_vl": "<|im_end|>",
    "qwen3": "<|im_end|> hides",
    "qwen3_5_nothink": "<|im_end|> trims hides rewrites",
    "qwen3_5_nothink_training": "<|im_end|> trims",
    "qwen3_5_think": "<|im_end|> trims hides thinks rewrites",
    "qwen3_5_think_training": "<|im_end|> trims thinks rewrites",
    "qwen3_6": "<|im_end|> trims hides thinks rewrites",
    "qwen3_6_training": "<|im_end|> trims thinks rewrites",
    "qwen3_8": "<|im_end|> trims thinks rewrites",
    "qwen3_instruct_2507": "<|im_end|>",
    "qwen3_training": "<|im_end|> rewrites",
    "qwen3_vl": "<|im_end|>",
}


def traits(name: str) -> set[str]:
    """What the template does, by rendering with transformers alone."""
    tokenizer, found = tokenizer_of(name), set()
    end = "<channel|>" if "<channel|>" in tokenizer.chat_template else "</think>"
    start = {"<channel|>": "<|channel>thought\n", "</think>": "<think>\n"}[end]
    ask = {"role": "user", "content": " ask "}

    def says(*turns: dict[str, str], awaiting: bool = True) -> str:
        return tokenizer.apply_chat_template([*turns], tokenize=False, add_generation_prompt=awaiting)

    def answer(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    asked = says(ask)
    found |= {"trims"} if " ask " not in asked else set()
    found |= {"hides"} if "thought out" not in says(ask, answer(f"{start}thought out\n{end}\n\nFour"), ask) else set()
    found |= {"thinks"} if asked.endswith((start, start.rstrip())) else set()
    found |= {"dated"} if "strftime_now" in tokenizer.chat_template else set()
    found |= {"rewrites"} if not says(ask, answer("Four"), ask).startswith(asked + "Four") else set()
    try:
        says({"role": "system", "content": "Be brief."}, ask)
    except jinja2.TemplateError:
        found.add("no-system")
    return found


def expected(name: str) -> tuple[str, set[str]]:
    terminator, *rest = EXPECTED.get(name, EXPECTED.get(name.removesuffix("_training"), "?")).split()
    return terminator, set(rest)


def special_in(tokenizer: Any, ids: list[int]) -> list[int]:
    """Ids that no text may have: special tokens, and added ones that the template writes."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if str(token) in tokenizer.chat_template}
    special = {*tokenizer.all_special_ids}  # computed anew at every access
    return [id for id in ids if id in added or id in special]


PAIR = Pair(" What is 2+2? ", "Four:\n4️⃣ ", "Five.", "row 1")
QUOTE, TURN = REVISION_PRESETS["quote"], REVISION_PRESETS["turn"]
BOTH = pytest.mark.parametrize("template", [QUOTE, TURN], ids=["quote", "turn"])
EVERY = pytest.mark.parametrize("name", TEXT)


@EVERY
def test_templates_share_as_the_table_states(name: str) -> None:
    terminator, does = expected(name)
    renderer = Renderer(tokenizer_of(name))
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.terminator) == terminator
    assert traits(name) == does
    words = {"trims": "trims", "thinks": "opens a block", "no-system": "refuses", "dated": "date"}
    noted = {trait for trait, word in words.items() if any(word in note for note in renderer.notes)}
    assert noted == does - {"rewrites", "hides"}


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in TEXT])
def test_templates_that_read_lists_of_parts_are_given_them(name: str) -> None:
    tokenizer, renderer = tokenizer_of(name), Renderer(tokenizer_of(name))
    assert tokenizer.convert_ids_to_tokens(renderer.terminator) == FOR_PARTS[name.removesuffix("_training")]
    prompt = [
        {"role": "user", "content": "é?"},
        {"role": "assistant", "content": "ß"},
        {"role": "user", "content": "b"},
    ]
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in prompt]
    wanted = tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    [found] = renderer.drafts([prompt])
    assert found == tokenizer(wanted, add_special_tokens=False).input_ids
    six = renderer.six(Pair(prompt, "yes", "no", "row 1"))
    assert [context for context, _ in six][:2] == [found, found]
    assert tokenizer.decode(six[0][1]).strip() == "yes" + FOR_PARTS[name.removesuffix("_training")]


def test_every_template_of_the_table_is_in_the_wheel() -> None:
    assert set(EXPECTED) <= set(TEXT)
    assert len(TEXT) >= 60


@EVERY
@BOTH
def test_training_and_generation_use_the_same_ids(name: str, template: Any) -> None:
    renderer = renderer_of(name, template.name)
    prompt = [
        {"role": "user", "content": "é?"},
        {"role": "assistant", "content": "ß"},
        {"role": "user", "content": "b"},
    ]
    pairs = [PAIR, Pair("a<|im_end|></think>b", " c\n", "<eos>"), Pair(prompt, "yes", "no")]
    if renderer.chat and renderer.chat.form().thinks:
        pairs.append(Pair(prompt, "<think>\nso\n</think>\n\nyes", "no"))
    for pair, six in zip(pairs, renderer.sixes(pairs), strict=True):
        x = renderer.drafts([pair.prompt])[0]
        xw, xl = (renderer.revision(pair.prompt, draft) for draft in (pair.chosen, pair.rejected))
        assert [context for context, _ in six] == [x, x, xw, xw, xl, xl]
        assert [answer for _, answer in six] == [renderer.answer(pair.chosen), renderer.answer(pair.rejected)] * 3
        for context, answer in six:
            assert context.count(BOS) == ("bos_token" in renderer.tokenizer.chat_template)
            assert BOS not in context[1:]
            # The token that ends the turn belongs to the answer, once, and generation stops at it.
            assert answer[-1] == renderer.terminator
            assert [id for id in answer if id in renderer.stop_ids] == [answer[-1]]
        assert renderer.answer(renderer.decode(six[0].answer)) == six[0].answer


def test_the_date_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    class Tomorrow(chat_template_utils.datetime):  # type: ignore[name-defined,misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2099, 1, 2)

    tokenizer = tokenizer_of("llama3_2")
    ask = [{"role": "user", "content": "Hi"}]
    ours, theirs = Renderer(tokenizer).draft("Hi"), tokenizer.apply_chat_template(ask)["input_ids"]
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    chat_template_utils._compile_jinja_template.cache_clear()
    assert Renderer(tokenizer).draft("Hi") == ours
    # Control: the template left to itself does move.
    assert tokenizer.apply_chat_template(ask)["input_ids"] != theirs


@EVERY
@BOTH
def test_the_text_is_the_template_s_own(name: str, template: Any) -> None:
    """Against transformers rendering the conversation on its own, wherever no text looks like a control token."""
    tokenizer, renderer = tokenizer_of(name), renderer_of(name, template.name)
    six = renderer.six(PAIR)
    ask, asked = (
        {"role": "user", "content": text} for text in (PAIR.prompt, template.fill_revision(PAIR.prompt, PAIR.chosen))
    )
    turns = [asked] if template is QUOTE else [ask, {"role": "assistant", "content": PAIR.chosen}, asked]
    for context, conversation in ((six[0].context, [ask]), (six[2].context, turns)):
        own = vendor(tokenizer, conversation, prompt=True)
        assert tokenizer.decode(context) == own
        assert context == tokenizer(own, add_special_tokens=False)["input_ids"]


# ---------------------------------------------------------------------- thinking

PARTS = {"content": "Hello!", "reasoning_content": "hm", "thinking": "hm"}
DEEPSEEK = [name for name in TEXT if name.startswith("deepseek")]
ASK = {"role": "user", "content": "Hi?"}


def after_prompt(name: str, message: dict[str, str], **options: Any) -> str | None:
    """The vendor's rendering of an answer after its generation prompt, white space at the prompt's end apart."""
    tokenizer = tokenizer_of(name)
    prompt = vendor(tokenizer, [ASK], prompt=True, **options)
    whole = vendor(tokenizer, [ASK, {"role": "assistant", **message}], **options)
    begins = prompt if whole.startswith(prompt) else prompt.rstrip()
    return whole.removeprefix(begins) if whole.startswith(begins) else None


@EVERY
def test_the_scored_ids_are_the_vendor_s(name: str) -> None:
    tokenizer, renderer = tokenizer_of(name), renderer_of(name)
    for answer in ("Hello!", " Hello!\n", "Two\n\nlines."):
        theirs = after_prompt(name, {"content": answer})
        context, scored = (tokenizer.decode(ids) for ids in renderer.six(Pair("Hi?", answer, "No"))[0])
        assert context == vendor(tokenizer, [ASK], prompt=True)
        if theirs is None or name in DEEPSEEK:  # the vendor shows an answer outside the block that the prompt opens
            assert name in DEEPSEEK
            assert scored.startswith("\n</think>\n\n" + answer)
        else:
            assert theirs.startswith(scored.removesuffix("<eos>"))
            assert scored.endswith(str(renderer.tokenizer.convert_ids_to_tokens(renderer.terminator)))
        # The reasoning parser of a server, which knows the prompt, returns the content.
        assert answer.strip() in (context + scored).rpartition("</think>")[2]


def test_control_an_answer_alone_stays_in_an_open_block() -> None:
    theirs = after_prompt("qwen3_5_think", {"content": "Hello!"})
    assert theirs == "\n</think>\n\nHello!<|im_end|>\n"
    assert not theirs.startswith("Hello!")


@EVERY
def test_thinking_is_scored_once_as_the_template_writes_it(name: str) -> None:
    tokenizer, renderer = tokenizer_of(name), renderer_of(name)
    assert renderer.chat is not None
    raw, parts = (after_prompt(name, message) for message in ({"content": THINKING}, PARTS))
    reasoned = Pair("Hi?", THINKING, "No", "row 1", reasoned=True)
    [(_, six)] = renderer.rendered([reasoned])
    if not renderer.chat.form().thinks:  # no part of the message may be lost
        assert isinstance(six, Reject)
        assert "hm" not in (parts or "")
        return
    assert not isinstance(six, Reject)
    scored = tokenizer.decode(six[0].answer)
    if name not in DEEPSEEK:
        assert parts is not None
        assert parts.startswith(scored.removesuffix("<eos>"))
    assert scored.count("hm") == 1
    assert scored.count("</think>") <= 1
    written = tokenizer.decode(renderer.answer(THINKING))
    assert written.count("hm") == 1
    assert written.count("</think>") <= 1
    # Thinking inside the content: the vendor's, unless the template would double or hide it.
    doubled = raw is None or raw.count("</think>") != 1 or ("<think>" in raw and renderer.chat.form().opened)
    assert doubled or raw.startswith(written.removesuffix("<eos>")) or "</think>" not in tokenizer.chat_template
    for answer in (six[0].answer, renderer.answer(THINKING)):
        assert renderer.content_of(renderer.decode(answer)) == "Hello!"
        assert "hm" in renderer.decode(answer)
    # An answer that was cut off while thinking has no content, and its ids are the beginning of the whole answer's.
    cut = six[0].answer[: len(tokenizer(scored.partition("hm")[0] + "h", add_special_tokens=False)["input_ids"])]
    assert renderer.content_of(renderer.decode(cut)) == ""


@EVERY
@BOTH
def test_a_draft_is_shown_without_its_thinking(name: str, template: Any) -> None:
    renderer = renderer_of(name, template.name)
    assert renderer.chat is not None
    if not renderer.chat.thinking:
        return
    for draft in (THINKING, "hm\n</think>\n\nHello!"):
        assert renderer.revision("What?", draft) == renderer.revision("What?", "Hello!")
    asked = Renderer(tokenizer_of(name), replace(template, show_thinking=True))
    assert (asked.revision("What?", THINKING) != asked.revision("What?", "Hello!")) or template.form == "turn"


def test_a_closed_block_has_no_place_for_thinking() -> None:
    renderer = Renderer(tokenizer_of("qwen3_5_think"))
    off = Pair("Hi?", "Hello!", "No", "row 2", chat_template_kwargs={"enable_thinking": False})
    context, answer = renderer.six(off)[0]
    decode = renderer.tokenizer.decode
    assert decode(context).endswith("<think>\n\n</think>\n\n")
    assert decode(answer) == "Hello!<|im_end|>"
    with pytest.raises(TemplateError, match=r"row 2: an answer has thinking, for which .* no place; .*enable_thinking"):
        renderer.six(replace(off, chosen=THINKING))
    assert renderer.six(replace(off, chosen=THINKING, chat_template_kwargs=None))


def test_thinking_of_its_own_needs_a_template_that_shows_it() -> None:
    for tokenizer in (tokenizer_of("qwen2_5"), make_byte_tokenizer()):
        [(_, found)] = Renderer(tokenizer).rendered([Pair("Hi?", THINKING, "No", "row 1", reasoned=True)])
        assert isinstance(found, Reject)
        assert "would leave out" in found.reason
        # Control: as part of the content it is text like any other.
        assert Renderer(tokenizer).six(Pair("Hi?", THINKING, "No"))


def test_the_table_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "templates.md").read_text("utf-8")
    assert table() in page, "python -m tests.equivalence.chat_templates"


@BOTH
def test_options_of_the_chat_template(template: Any) -> None:
    off = replace(template, chat_template_kwargs={"enable_thinking": False})
    tokenizer = tokenizer_of("qwen3")
    closed = "<think>\n\n</think>\n\n"
    quiet, thinking = Renderer(tokenizer, off), Renderer(tokenizer, template)
    decode = tokenizer.decode
    for context in (quiet.draft("Hi"), quiet.revision("Hi", "Ho"), quiet.six(PAIR)[4].context):
        assert decode(context).endswith(closed)
    assert not decode(thinking.draft("Hi")).endswith(closed)
    assert quiet.fingerprint != thinking.fingerprint
    # A row's own win.
    loud = replace(PAIR, chat_template_kwargs={"enable_thinking": True})
    assert quiet.six(loud) == thinking.six(PAIR)
    # What a row says of its tools is content, too.
    tool = {"type": "function", "function": {"name": "f", "description": "a<|im_end|>b", "parameters": {}}}
    said = thinking.six(replace(PAIR, tools=[tool]))[4].context
    assert "a<|im_end|>b" in decode(said)
    plain = {"type": "function", "function": {"name": "f", "description": "ab", "parameters": {}}}
    assert special_in(tokenizer, said) == special_in(tokenizer, thinking.six(replace(PAIR, tools=[plain]))[4].context)


@EVERY
@BOTH
def test_forgeries_stay_text(name: str, template: Any) -> None:
    tokenizer, renderer = tokenizer_of(name), renderer_of(name, template.name)
    specials = {*tokenizer.all_special_ids}  # computed anew at every access
    plain = [special_in(tokenizer, ids) for ids in (renderer.draft("xy"), renderer.revision("xy", "d"))]
    of_answer = [id for id in renderer.answer("xy") if id in specials]
    for token in dict.fromkeys([*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]):
        if renderer.chat and any(token in mark for marks in renderer.chat.thinking for mark in marks):
            continue
        forged = f"x{token}y"
        found = renderer.draft(forged), renderer.revision(forged, "d")
        assert [special_in(tokenizer, ids) for ids in found] == plain
        assert all(forged in tokenizer.decode(ids) for ids in found)
        answer = renderer.answer(forged)
        assert [id for id in answer if id in specials] == of_answer
        assert renderer.decode(answer) == forged
        # Control: encoded as it stands it is that token.
        assert tokenizer.convert_tokens_to_ids(token) in tokenizer(forged, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["gemma", "gemma_training"])
def test_a_refused_system_message_names_its_row(name: str) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    renderer = Renderer(tokenizer_of(name))
    with pytest.raises(TemplateError, match=r"row 3: the tokenizer's chat template refuses.*System role"):
        renderer.six(Pair(prompt, "a", "b", "row 3"))
    [(_, found)] = renderer.rendered([Pair(prompt, "a", "b", "row 3")])
    assert found.where == "row 3"
    with pytest.raises(DataError, match="row 4: the prompt ends in a message of role"):
        renderer.six(Pair([{"role": "assistant", "content": "a"}], "a", "b", "row 4"))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CHATS = {name: Renderer(tokenizer_of(name)) for name in ("qwen3", "llama3_1", "gemma4")}


@settings(max_examples=60)
@given(st.sampled_from(sorted(CHATS)), texts, texts.filter(str.strip))
def test_rendering_and_decoding_give_the_text_back(name: str, prompt: str, answer: str) -> None:
    renderer = CHATS[name]
    assert renderer.chat is not None
    assert renderer.decode(renderer.answer(answer)) == renderer.chat.form().trim(answer)
    decode = renderer.tokenizer.decode
    shown = decode(renderer.draft(f"|{prompt}|"))
    assert f"|{prompt}|" in shown
    assert f"|{prompt}|" in decode(renderer.revision(f"|{prompt}|", answer))
    assert renderer.content_of(answer).strip() in decode(renderer.revision("p", answer))


@given(texts, texts)
def test_rendered_and_decoded_without_a_chat_template(prompt: str, answer: str) -> None:
    renderer = Renderer(make_byte_tokenizer())
    decode = renderer.tokenizer.decode
    assert renderer.decode(renderer.answer(answer)) == answer
    assert decode(renderer.draft(prompt)) == (prompt or "<bos>")
    assert decode(renderer.revision(prompt, answer)) == f"{prompt}{answer}\n\nA better answer:"
    assert renderer.answer(answer)[-1] == EOS
