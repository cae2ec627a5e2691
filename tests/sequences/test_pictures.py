"""Pictures through the model's processor: the ids trained on are those that the processor makes."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch

from srpo.data.pictures import PICTURE, PicturedPrompt, pictures_of
from srpo.data.read import Pair, Reject, read_pairs
from srpo.errors import DataError, TemplateError
from srpo.sequences.chat_template import MARK
from srpo.sequences.fit import StoredPairs, fitted
from srpo.sequences.picture_inputs import PicturedIds
from srpo.sequences.render import Renderer, RevisionTemplate
from srpo.sequences.tree import PrefixTree
from tests.conftest import make_byte_tokenizer
from tests.sequences.pictured import PROCESSORS, gemma_processor, idefics_processor, picture, png, qwen_processor

WIDE = (24, 8)
KINDS = [*PROCESSORS, "parts"]


def processor_of(kind: str) -> Any:
    return idefics_processor(parts=True) if kind == "parts" else PROCESSORS[kind]()


def row(**more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]}]
    return {"prompt": turns, "images": [picture()], "chosen": "red", "rejected": "blue", **more}


def renderer_for(processor: Any, template: str = "quote", **options: Any) -> Renderer:
    return Renderer(processor.tokenizer, RevisionTemplate.preset(template), processor=processor, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["quote", "turn"])
def test_ids_are_those_of_the_processor_for_draft_and_revisions(kind: str, template: str) -> None:
    processor = processor_of(kind)
    renderer = renderer_for(processor, template)
    parts = [{"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}, {"type": "text", "text": "?"}]
    images = [picture(), picture("green", WIDE)]
    asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]
    prompt = [*asked, {"role": "user", "content": parts}]
    [pair] = read_pairs([row(prompt=prompt, images=images)])
    six = renderer.six(pair)
    request = RevisionTemplate.preset(template)
    for context, draft in ((six[0].context, None), (six[2].context, "red"), (six[4].context, "blue")):
        turns = request.asking([*pair.prompt], draft)
        theirs = []
        for turn in turns:
            pieces = turn["content"].split(PICTURE)
            content = [{"type": "text", "text": pieces[0]}]
            for piece in pieces[1:]:
                content += [{"type": "image"}, {"type": "text", "text": piece}]
            theirs.append({"role": turn["role"], "content": [p for p in content if p.get("text") != ""]})
        text = processor.tokenizer.apply_chat_template(theirs, tokenize=False, add_generation_prompt=True)
        wanted = processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")
        assert [*context] == wanted["input_ids"][0].tolist()
        assert isinstance(context, PicturedIds)
        made = [each.tensors["pixel_values"] for each in context.pictures]
        joined = torch.cat(made, 1 if kind in ("idefics3", "parts") else 0)
        torch.testing.assert_close(joined, wanted["pixel_values"].view_as(joined))
        assert context.count(context.pictures[0].token) == sum(each.count for each in context.pictures)
    tree = PrefixTree.pack(six)
    assert tree.unpack() == six
    assert tree.unpack()[3].context.pictures == tree.pictures == six[0].context.pictures


def test_generation_contexts_equal_training_contexts() -> None:
    renderer = renderer_for(qwen_processor())
    [pair] = read_pairs([row()])
    six = renderer.six(pair)
    assert renderer.drafts([pair.prompt]) == [six[0].context]
    assert renderer.revisions([pair.prompt], ["blue"]) == [six[4].context]
    assert renderer.drafts([pair.prompt])[0].pictures == six[0].context.pictures


def test_text_of_control_tokens_is_no_picture() -> None:
    renderer = renderer_for(qwen_processor())
    [pair] = read_pairs([row(chosen="<|image_pad|>")])
    six = renderer.six(pair)
    image = six[0].context.pictures[0].token
    assert image not in six[0].answer
    assert six[2].context.count(image) == six[0].context.count(image)


def test_text_models_refuse_pictures_and_read_text_as_before() -> None:
    tokenizer = make_byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}<eos>")
    [pair] = read_pairs([row()])
    for processor in (None, tokenizer, lambda: tokenizer):
        renderer = Renderer(tokenizer, processor=processor)
        [(_, reject)] = renderer.rendered([pair])
        assert isinstance(reject, Reject)
        assert "the model has no processor for them; a text model cannot be shown them" in reject.reason
        with pytest.raises(DataError, match="row 1: the row has pictures"):
            renderer.six(pair)
    text = Pair(f"a {PICTURE} b", "x", "y")
    assert len(Renderer(tokenizer).six(text)[0].context) > 3


def test_a_text_model_is_asked_for_its_processor_once() -> None:
    tokenizer, asked = make_byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}<eos>"), []
    renderer = Renderer(tokenizer, processor=lambda: asked.append(1))
    found = list(renderer.rendered(read_pairs([row(), row()])))
    assert [type(reject) for _, reject in found] == [Reject, Reject]
    assert len(asked) == 1


def test_letters_around_a_picture_join_letters_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = gemma_processor()
    three = processor.tokenizer.convert_tokens_to_ids("\n\n\n")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look"}]}]
    [pair] = read_pairs([row(prompt=turns)])
    renderer = renderer_for(processor)
    assert renderer.drafts([pair.prompt])[0].count(three) == 1  # the line end of the template, two of the picture
    # The control: as for the other processors, with the ids of each picture made alone.
    monkeypatch.setattr("srpo.sequences.picture_processor._WITH_LETTERS", ())
    with pytest.raises(TemplateError, match="makes other token ids of a prompt with pictures"):
        renderer_for(processor).drafts([pair.prompt])


def test_a_processor_is_sent_to_other_processes_without_kept_pictures() -> None:
    processor = idefics_processor()
    renderer = renderer_for(processor)
    [pair] = read_pairs([row()])
    context = renderer.six(pair)[0].context
    again = pickle.loads(pickle.dumps(renderer.pictures))
    assert again.inputs(pictures_of(pair.prompt)) == context.pictures


def test_pictures_need_a_chat_template() -> None:
    processor = qwen_processor()
    renderer = Renderer(processor.tokenizer, no_chat_template=True, processor=processor)
    [(_, reject)] = renderer.rendered(read_pairs([row()]))
    assert reject.reason.startswith("pictures need a chat template, and none is used")
    assert "save the template it contains as chat_template.jinja" in reject.reason


def test_a_template_that_writes_no_place_is_an_error() -> None:
    processor = qwen_processor()
    processor.tokenizer.chat_template = processor.tokenizer.chat_template.replace("<|image_pad|>", "")
    with pytest.raises(TemplateError, match="writes 0 places for 1 pictures"):
        renderer_for(processor).six(read_pairs([row()])[0])


def test_a_processor_whose_ids_depend_on_the_text_around_is_refused() -> None:
    processor = qwen_processor()
    plain = type(processor).__call__

    class Padding(type(processor)):  # type: ignore[misc]
        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            found = plain(self, images=images, text=text, **options)
            if len(text[0]) > 20:
                found["input_ids"] = [[*found["input_ids"][0], 1]]
            return found

    processor.__class__ = Padding
    with pytest.raises(TemplateError, match="makes other token ids of a prompt with pictures"):
        renderer_for(processor).six(read_pairs([row()])[0])


def test_a_picture_that_the_processor_refuses_is_a_reject() -> None:
    renderer = renderer_for(qwen_processor())
    [pair] = read_pairs([row(images=[picture(size=(2000, 2))])])
    [(_, reject)] = renderer.rendered([pair])
    assert "the processor refuses the picture" in reject.reason
    assert "aspect ratio" in reject.reason


def test_prompts_with_pictures_are_not_cut() -> None:
    renderer = renderer_for(qwen_processor())
    [pair] = read_pairs([row()])
    [found] = fitted(renderer, [pair], 20)
    assert found.kind == "TooLong"
    assert found.reason.endswith("and prompts with pictures are not cut")


def test_rendered_pictures_are_not_stored(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srpo.sequences.tree_store.STORED_FROM", 1)
    renderer = renderer_for(qwen_processor())
    pairs, text = read_pairs([row()]), read_pairs([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    for again in range(2):
        stored = StoredPairs(renderer, max_length=None, truncate="none", cache=tmp_path)
        assert len([*stored.all([*pairs, *text], 1)]) == 2
        assert stored.tokenised == 2 - again  # the control: the text is stored


def test_marks_in_text_do_not_stop_the_comparison_of_later_rows() -> None:
    renderer = renderer_for(qwen_processor())
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<|im_end|>"}]}]
    [marked, plain] = read_pairs([row(prompt=turns), row()])
    assert MARK in renderer._context(marked.prompt, None)
    assert renderer.six(marked)[0].context.count(renderer.pictures.placeholder) == 4
    assert not renderer.pictures._compared
    renderer.six(plain)
    assert renderer.pictures._compared


def test_the_keys_of_pictures_follow_content_and_processor() -> None:
    pairs = read_pairs([row(images=[each]) for each in (picture(), png(picture()), picture("green"))])
    shown = [pictures_of(pair.prompt) for pair in pairs]
    processor = qwen_processor()
    keys = [renderer_for(processor).pictures.keys(each) for each in shown]
    assert keys[0] == keys[1] != keys[2]
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert renderer_for(processor).pictures.keys(shown[0]) != keys[0]
    assert dataclasses.replace(pairs[0], where="") == dataclasses.replace(pairs[1], where="")
    assert isinstance(pairs[0].prompt, PicturedPrompt)
