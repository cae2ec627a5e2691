"""The chat templates in TRL's wheel with a byte tokenizer, and the table of docs/templates.md that they make.

`python -m tests.equivalence.chat_templates` prints the table.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import trl

from srpo.data.read import Pair
from srpo.sequences.render import Renderer
from srpo.sequences.templates import REVISION_PRESETS
from tests.conftest import make_byte_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
# Templates of models that take pictures, which read a message as a list of parts, with their terminators.
FOR_PARTS = {"idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "llava_next": "</s>"}
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
TEXT = [name for name in TEMPLATES if name.removesuffix("_training") not in FOR_PARTS]
PLAIN_TAGS = {"<start_of_turn>", "<end_of_turn>", "<sop>", "[gMASK]"}
TAGS = re.compile(r"<[|｜][^'\"\s<>{}]+?[|｜]?>|<[^'\"\s<>{}|｜]+?[|｜]>|</?[a-z_]+>|\[[a-zA-Z]*MASK\]")
THINKING = "<think>\nhm\n</think>\n\nHello!"
ASK = {"role": "user", "content": "Hi?"}
HELD = re.compile(r"\d{4}-\d\d-\d\d(?=\.?\n\nReason)|\d\d \w{3} 20\d\d")  # today's date, which srpo holds still


@functools.cache
def tokenizer_of(name: str) -> Any:
    """The byte tokenizer with a template's control tokens: those in bars are special, tags like <think> are not.

    All tests share it, and none may change it.
    """
    source = (FOLDER / f"{name}.jinja").read_text("utf-8")
    tokenizer = make_byte_tokenizer(chat_template=source)
    tags = set(TAGS.findall(source)) - set(tokenizer.all_special_tokens)
    special = {tag for tag in tags if "|" in tag or "｜" in tag} | tags & PLAIN_TAGS
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special)})
    tokenizer.add_tokens(sorted(tags - special))
    return tokenizer


@functools.cache
def renderer_of(name: str, preset: str = "quote") -> Renderer:
    """The renderer of that chat template and a preset; all tests share it, since probing a template takes long."""
    return Renderer(tokenizer_of(name), REVISION_PRESETS[preset])


def vendor(tokenizer: Any, turns: list[dict[str, str]], *, prompt: bool = False, **options: Any) -> str:
    """The conversation as transformers renders it, with the date that srpo holds still."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **options)
    return HELD.sub("26 Jul 2024", text)


class Row(NamedTuple):
    """A template's row of the table, as text."""

    prompt: str
    plain: str
    thinking: str
    vendors: str


def row_of(name: str) -> Row:
    """The end of the draft's context, and the scored text of an answer without and with thinking."""
    renderer = renderer_of(name)
    decode = renderer.tokenizer.decode
    prompt = decode(renderer.draft("Hi?")).rpartition("Hi?")[2]
    texts, equal = [], []
    parts = {"content": "Hello!", "reasoning_content": "hm", "thinking": "hm"}
    for answer, messages in (("Hello!", [{"content": "Hello!"}]), (THINKING, [{"content": THINKING}, parts])):
        [(_, six)] = renderer.rendered([Pair("Hi?", answer, "No")])
        if not isinstance(six, list):
            texts.append("rejected")
            continue
        texts.append(decode(six[0].answer) if renderer.chat and renderer.chat.thinking else "as text")
        begins, scored = decode(six[0].context).rstrip(), decode(six[0].answer).removesuffix("<eos>")
        wholes = [vendor(renderer.tokenizer, [ASK, {"role": "assistant", **message}]) for message in messages]
        equal.append(any(whole.startswith(begins) and scored in whole for whole in wholes))
    if texts[0] == "as text" or decode(renderer.answer("Hello!")).startswith("Hello!"):
        texts[0] = "`Hello!`"
    return Row(prompt, *texts, "yes" if all(equal) else "no")


def table() -> str:
    """The table, templates with equal rows together."""
    rows = defaultdict(list)
    for name in TEXT:
        rows[row_of(name)].append(name)
    cells = [(", ".join(f"`{name}`" for name in names), *map(_code, row[:3]), row[3]) for row, names in rows.items()]
    head = (
        "templates",
        "end of the draft's context",
        "scored without thinking",
        "scored with thinking `hm`",
        "vendor's",
    )
    lines = [head, tuple("---" for _ in head), *sorted(cells)]
    return "\n".join("| " + " | ".join(each) + " |" for each in lines)


def _code(text: str) -> str:
    if text in ("as text", "rejected") or text.startswith("`"):
        return text
    return "`" + repr(text)[1:-1].replace("|", "\\|") + "`"


if __name__ == "__main__":
    print(table())
