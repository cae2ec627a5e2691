"""Presets and files of templates: the texts they make, what they say they assume, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from srpo.errors import TemplateError
from srpo.sequences.render import Renderer
from srpo.sequences.templates import REVISION_PRESETS, TEMPLATE_FILE, RevisionTemplate, template_for
from tests.conftest import make_byte_tokenizer

POST = "SUBREDDIT: r/cats\n\nTITLE: Mine\n\nPOST: It sleeps."
OWN = """{% set form = "turn" %}
{% set chat_template_kwargs = {"enable_thinking": false} %}
{% block draft %}{{ prompt }}{% endblock %}
{% block revision -%}
  Better than {{ draft }}?
{%- endblock %}
"""


def test_tldr_in_the_words_of_the_paper() -> None:
    tldr = REVISION_PRESETS["paper-tldr"]
    ask = "Write a both precise and concise summary of the contents of the POST."
    for prompt in (POST, f"{POST}\n\nTL;DR:", f" {POST}\nTL;DR: "):
        assert tldr.fill_draft(prompt) == (
            f"Below is a reddit POST and the corresponding SUBREDDIT and TITLE. {ask}\n\n{POST}\n\nTL;DR:"
        )
        assert tldr.fill_revision(prompt, " Cat sleeps. ") == (
            "Below is a reddit POST and the corresponding SUBREDDIT, TITLE, and an EXAMPLE SUMMARY. "
            f"{ask}\n\n{POST}\n\n"
            "EXAMPLE SUMMARY: Cat sleeps.\n\nTL;DR:"
        )


def test_xsum_follows_the_same_form() -> None:
    xsum = REVISION_PRESETS["paper-xsum"]
    ask = "Write a both precise and concise summary of the contents of the ARTICLE."
    assert xsum.fill_draft("ARTICLE: a") == (
        f"Below is an ARTICLE and the corresponding ID and TITLE. {ask}\n\nARTICLE: a\n\nTL;DR:"
    )
    assert xsum.fill_revision("ARTICLE: a", "b").startswith(
        f"Below is an ARTICLE and the corresponding ID, TITLE, and an EXAMPLE SUMMARY. {ask}\n\nARTICLE: a\n\nEXAMPLE"
    )


@pytest.mark.parametrize("name", sorted(REVISION_PRESETS))
def test_every_preset_says_what_it_assumes_and_shows_prompt_or_draft(name: str) -> None:
    template = REVISION_PRESETS[name]
    assert template.name == name
    assert template.assumes
    assert "the prompt" in template.fill_draft("the prompt")
    shown = template.fill_revision("the prompt", "the draft")
    assert ("the draft" in shown) == (template.form != "turn")
    if template.form == "text":
        tokenizer = make_byte_tokenizer()
        assert tokenizer.decode(Renderer(tokenizer, template).revision("the prompt", "the draft")) == shown


def test_a_jinja_file_of_two_blocks(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(OWN, "utf-8")
    template = RevisionTemplate.load(file)
    assert (template.name, template.form) == ("own.jinja", "turn")
    assert template.fill_draft(" p\n") == " p\n"
    assert template.fill_revision("p", "d") == "Better than d?"
    assert template.chat_template_kwargs == {"enable_thinking": False}
    # It goes with the model as it is, and comes back from there without the file.
    template.save(tmp_path, "ab")
    file.unlink()
    back = template_for(str(tmp_path), None)
    assert back == template
    assert back is not None
    assert (back.sha256, back.fill_revision("p", "d")) == ("ab", "Better than d?")
    # One that is named is taken as it is.
    named = template_for(str(tmp_path), str(tmp_path / TEMPLATE_FILE))
    assert named == template
    assert named is not None
    assert named.sha256 == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (OWN.replace('{% set form = "turn" %}', ""), "no form is set; expected {% set form"),
        (OWN.replace('"turn"', "prompt"), "no form is set"),
        (OWN.replace('"turn"', '"chat"'), "form 'chat'; expected one of text, quote, turn"),
        (OWN.replace("block draft", "block first"), "no block 'draft'"),
        (OWN.replace("{% endblock %}", ""), "own.jinja:"),
        ("{{ prompt", "not Jinja"),
        (OWN.replace('{"enable_thinking": false}', "[1]"), "chat_template_kwargs is not a mapping"),
    ],
)
def test_jinja_files_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "own.jinja").write_text(text, "utf-8")
    with pytest.raises(TemplateError, match=re.escape(why)):
        RevisionTemplate.load(tmp_path / "own.jinja")


def test_a_block_has_no_access_outside(tmp_path: Path) -> None:
    for inner in ("{{ context }}", "{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{{ 1 // 0 }}"):
        (tmp_path / "own.jinja").write_text(OWN.replace("{{ prompt }}", inner), "utf-8")
        with pytest.raises(TemplateError, match=r"revision template 'own.jinja'"):
            RevisionTemplate.load(tmp_path / "own.jinja").fill_draft("p")


def test_equality_ignores_the_saved_fingerprint() -> None:
    template = REVISION_PRESETS["quote"]
    assert replace(template, sha256="x", assumes="y") == template
    tokenizer = make_byte_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    saved = replace(template, sha256=Renderer(tokenizer, template).fingerprint)
    assert Renderer(tokenizer, saved).fingerprint == saved.sha256
    with pytest.raises(TemplateError, match=r"sha256 abc, and this one makes [0-9a-f]{64}"):
        Renderer(tokenizer, replace(template, sha256="abc"))


def test_a_folder_of_an_earlier_version_without_a_hash(tmp_path: Path) -> None:
    row = {"name": "n", "form": "text", "draft": "{{ prompt }}", "revision": "{{ draft }}"}
    (tmp_path / TEMPLATE_FILE).write_text(json.dumps(row), "utf-8")
    assert RevisionTemplate.load(tmp_path).sha256 == ""
