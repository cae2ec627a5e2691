"""Every chat template in TRL's wheel: the ids trained on are the ids generated from, for drafts and for revisions.

The tokenizer has one id per byte, so a text has the same ids wherever it stands, and the control tokens that the
template writes. `EXPECTED` says what each template does that another does not.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo.data.read import Pair
from srpo.errors import DataError, TemplateError
from srpo.sequences.render import Renderer
from srpo.sequences.templates import REVISION_PRESETS
from tests.conftest import BOS, EOS, make_byte_tokenizer

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"

# Pictures' templates read a message as a list of parts, and a text as none: refused when the renderer is made.
FOR_PARTS = {
    "idefics3": "leaves out the user's text",
    "smolvlm": "leaves out the user's text",
    "llava_next": "'str object' has no attribute 'text'",
}

# name: the token that ends an answer, then what sets the template apart:
#   trims      white space around a message is dropped
#   hides      thinking is left out of earlier answers, so a draft is shown without it, whichever the preset
#   thinks     the generation prompt opens a block of thinking: an answer continues it, in training as in generation
#   no-system  a system message is refused
#   dated      today's date is part of every prompt; it is held still
#   lead       control tokens stand between generation prompt and answer; they are given, not scored
#   rewrites   "prompt, answer, please revise" does not begin with "prompt, answer": `turn` shares less than it could
# A template and its `_training` twin, which marks what is scored, differ only where both are listed.
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
    "gptoss": "<|return|> dated lead rewrites",
    "lfm2": "<|im_end|>",
    "lfm2_2_5": "<|im_end|> hides",
    "lfm2_2_5_v2": "<|im_end|> hides",
    "lfm2_2_5_vl": "<|im_end|> hides",
    "lfm2_v2": "<|im_end|>",
    "llama3": "<|eot_id|> trims",
    "llama3_1": "<|eot_id|> trims",
    "llama3_2": "<|eot_id|> trims dated",
    "muse_glimmer": "<|eot|> dated lead rewrites",
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

TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
TEXT = [name for name in TEMPLATES if name.removesuffix("_training") not in FOR_PARTS]

PLAIN_TAGS = {"<start_of_turn>", "<end_of_turn>", "<sop>", "[gMASK]"}
TAGS = re.compile(r"<[|｜][^'\"\s<>{}]+?[|｜]?>|<[^'\"\s<>{}|｜]+?[|｜]>|</?[a-z_]+>|\[[a-zA-Z]*MASK\]")


def tokenizer_of(name: str) -> Any:
    """The byte tokenizer with a template's control tokens: those in bars are special, tags like <think> are not."""
    source = (FOLDER / f"{name}.jinja").read_text("utf-8")
    tokenizer = make_byte_tokenizer(chat_template=source)
    tags = set(TAGS.findall(source)) - set(tokenizer.all_special_tokens)
    special = {tag for tag in tags if "|" in tag or "｜" in tag} | tags & PLAIN_TAGS
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special)})
    tokenizer.add_tokens(sorted(tags - special))
    return tokenizer


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

    asked, finished = says(ask), says(ask, answer("Four"), awaiting=False)
    found |= {"trims"} if " ask " not in asked else set()
    found |= {"hides"} if "thought out" not in says(ask, answer(f"{start}thought out\n{end}\n\nFour"), ask) else set()
    found |= {"thinks"} if asked.endswith((start, start.rstrip())) else set()
    found |= {"dated"} if "strftime_now" in tokenizer.chat_template else set()
    between = finished.partition(asked)[2].partition("Four")[0]
    found |= {"lead"} if "<|" in between else set()
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
    return [id for id in ids if id in added or id in tokenizer.all_special_ids]


PAIR = Pair(" What is 2+2? ", "Four:\n4️⃣ ", "Five.", "row 1")
QUOTE, TURN = REVISION_PRESETS["quote"], REVISION_PRESETS["turn"]
BOTH = pytest.mark.parametrize("template", [QUOTE, TURN], ids=["quote", "turn"])
EVERY = pytest.mark.parametrize("name", TEXT)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_table_holds(name: str) -> None:
    why = FOR_PARTS.get(name.removesuffix("_training"))
    if why is not None:
        with pytest.raises(TemplateError, match=re.escape(why)):
            Renderer(tokenizer_of(name))
        return
    terminator, does = expected(name)
    renderer = Renderer(tokenizer_of(name))
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.terminator) == terminator
    assert traits(name) == does
    words = {
        "trims": "trims",
        "hides": "leaves thinking out",
        "thinks": "opens a block",
        "no-system": "refuses",
        "dated": "date",
        "lead": "given and not scored",
    }
    said = {trait for trait, word in words.items() if any(word in note for note in renderer.notes)}
    assert said == does - {"rewrites"}


def test_every_template_of_the_table_is_in_the_wheel() -> None:
    assert set(EXPECTED) <= set(TEXT)
    assert len(TEXT) >= 60


@EVERY
@BOTH
def test_trained_on_is_generated_from(name: str, template: Any) -> None:
    renderer = Renderer(tokenizer_of(name), template)
    prompt = [
        {"role": "user", "content": "é?"},
        {"role": "assistant", "content": "ß"},
        {"role": "user", "content": "b"},
    ]
    pairs = [PAIR, Pair("a<|im_end|></think>b", " c\n", "<eos>"), Pair(prompt, "<think>\nso\n</think>\n\nyes", "no")]
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
        assert renderer.decode(renderer.answer(pair.chosen)) == pair.chosen


def test_the_date_is_held_still(monkeypatch: pytest.MonkeyPatch) -> None:
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
    tokenizer, does = tokenizer_of(name), expected(name)[1]
    renderer = Renderer(tokenizer, template)
    six = renderer.six(PAIR)
    ask, asked = (
        {"role": "user", "content": text} for text in (PAIR.prompt, template.fill_revision(PAIR.prompt, PAIR.chosen))
    )
    turns = [asked] if template is QUOTE else [ask, {"role": "assistant", "content": PAIR.chosen}, asked]
    for context, conversation in ((six[0].context, [ask]), (six[2].context, turns)):
        own = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        if "dated" in does:
            own = re.sub(r"\d{4}-\d\d-\d\d(?=\.?\n\nReason)|\d\d \w{3} 20\d\d", "26 Jul 2024", own)
        own += renderer.chat.lead if renderer.chat else ""
        assert tokenizer.decode(context) == own
        assert context == tokenizer(own, add_special_tokens=False)["input_ids"]


@EVERY
@BOTH
def test_a_thinking_draft_is_shown_as_the_template_shows_an_answer(name: str, template: Any) -> None:
    does, renderer = expected(name)[1], Renderer(tokenizer_of(name), template)
    ends = ["<channel|>"] if "<channel|>" in renderer.tokenizer.chat_template else ["</think>"]
    starts = {"<channel|>": "<|channel>thought\n", "</think>": "<think>\n"}
    for end in ends:
        for draft in (f"{starts[end]}two and two\n{end}\n\nFour", f"two and two\n{end}\n\nFour"):
            shown = renderer.tokenizer.decode(renderer.revision("What?", draft))
            assert "Four" in shown
            assert ("two and two" in shown) == ("hides" not in does)
            if "hides" in does:
                assert renderer.revision("What?", draft) == renderer.revision("What?", "Four")


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
    tokenizer = tokenizer_of(name)
    renderer = Renderer(tokenizer, template)
    for token in dict.fromkeys([*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]):
        if token in (renderer.chat.thinking_ends if renderer.chat else ()):
            continue
        forged = f"x{token}y"
        for ids, plain in (
            (renderer.draft(forged), renderer.draft("xy")),
            (renderer.revision(forged, "d"), renderer.revision("xy", "d")),
        ):
            assert special_in(tokenizer, ids) == special_in(tokenizer, plain)
            assert forged in tokenizer.decode(ids)
        answer = renderer.answer(forged)
        assert [id for id in answer[:-1] if id in tokenizer.all_special_ids] == []
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
    assert renderer.decode(renderer.answer(answer)) == answer
    decode = renderer.tokenizer.decode
    shown = decode(renderer.draft(f"|{prompt}|"))
    assert f"|{prompt}|" in shown
    assert f"|{prompt}|" in decode(renderer.revision(f"|{prompt}|", answer))
    assert renderer.chat is not None
    assert renderer.chat.shown(answer).strip() in decode(renderer.revision("p", answer))


@given(texts, texts)
def test_rendered_and_decoded_without_a_chat_template(prompt: str, answer: str) -> None:
    renderer = Renderer(make_byte_tokenizer())
    decode = renderer.tokenizer.decode
    assert renderer.decode(renderer.answer(answer)) == answer
    assert decode(renderer.draft(prompt)) == (prompt or "<bos>")
    assert decode(renderer.revision(prompt, answer)) == f"{prompt}{answer}\n\nA better answer:"
    assert renderer.answer(answer)[-1] == EOS
