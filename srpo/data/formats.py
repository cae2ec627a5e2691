"""Layouts of preference rows: the columns of each, and the prompt and pairs that a row becomes.

    layout              a row holds                                             prompt                        pairs
    ------------------  ------------------------------------------------------  ----------------------------  -----
    strings             prompt, chosen, rejected: text                          the text                      1
    transcripts         chosen, rejected: "\\n\\nHuman: … \\n\\nAssistant: …"       the turns before the last     1
    implicit strings    chosen, rejected: text                                  the words both begin with     1
    messages            prompt, chosen, rejected: message lists                 the messages                  1
    implicit messages   chosen, rejected: message lists                         the messages both begin with  1
    text to messages    prompt: text; chosen, rejected: message lists           one user message              1
    messages to text    prompt: message list; chosen, rejected: text            the messages                  1
    sharegpt            conversations: message list; chosen, rejected: message  the messages                  1
    rankings            prompt; completions with ranks or scores                text or messages              many
    alpaca_eval         instruction, output_1, output_2, preference             the instruction               1

A message is {"role", "content"} or {"from", "value"}. Answers given as messages may repeat the prompt before them. In
every layout `system` becomes the first message, and `tools` and `chat_template_kwargs` go to the chat template.

A layout is recognised by its columns and the kinds of their values, transcripts also by their marks. The layout of most
of the first rows is the layout of the source; a row of another layout is rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from srpo.data.rankings import ranked_pairs
from srpo.data.values import (
    REASONING,
    Message,
    NoPreference,
    Prompt,
    Row,
    Unusable,
    answer_text,
    as_object,
    is_transcript,
    kind,
    messages,
    number,
    shape,
    text,
    text_or_messages,
    turns,
    with_system,
)

# Columns that may hold the prompt under another name: with one of them, the common beginning of two texts is no prompt.
PROMPT_LIKE = ("instruction", "question", "query", "input", "problem", "post", "context", "history", "conversations")
KINDS = {
    "text": "a string",
    "objects": "a list of messages",
    "object": "a message",
    "texts": "a list of strings",
    "number": "a number",
}


class Answers(NamedTuple):
    """A preferred and a rejected answer; for messages, `tag` numbers them among ranked completions, or is ""."""

    chosen: str
    rejected: str
    tag: str = ""


@dataclass(frozen=True)
class Layout:
    """A known set of columns of preference rows, and the functions that make a prompt and pairs of such a row.

    Attributes:
        name: the layout's name, as in the table at the top of the file.
        holds: a description of a row in words.
        columns: required column → kinds that its value may have.
        prompt: row → its prompt.
        answers: (row, its prompt, one of `rankings.CHOICES`) → the pairs.
        absent: columns that the row must not have.
        only_if: a further condition on the row.

    Example:
        >>> print(layout_of({"prompt": "2+2=", "chosen": "4", "rejected": "5"}))
        strings: prompt, chosen and rejected are text
    """

    name: str
    holds: str
    columns: Mapping[str, tuple[str, ...]]
    prompt: Callable[[Row], Prompt] = field(repr=False)
    answers: Callable[[Row, Prompt, str], list[Answers]] = field(repr=False)
    absent: tuple[str, ...] = ()
    only_if: Callable[[Row], bool] = field(default=lambda row: True, repr=False)

    def fits(self, row: Row) -> bool:
        """True if the row has the columns of this layout, with values of the kinds that the layout allows."""
        if any(key in row for key in self.absent):
            return False
        shaped = all(key in row and shape(row[key]) in kinds for key, kinds in self.columns.items())
        return shaped and self.only_if(row)

    def __str__(self) -> str:
        return f"{self.name}: {self.holds}"


def layout_of(row: Row) -> Layout | None:
    """Returns the first known layout of preference rows that the row fits, or None."""
    return next((layout for layout in LAYOUTS if layout.fits(row)), None)


def detect(rows: Iterable[object]) -> Layout | None:
    """Returns the layout that most rows have (in a tie the one seen first), or None if no row fits a layout."""
    found = [layout for row in rows if isinstance(row, Mapping) and (layout := layout_of(row))]
    counts = Counter(layout.name for layout in found)
    return max(found, key=lambda layout: counts[layout.name], default=None)


def convert(row: object, layout: Layout | None, rankings: str = "all") -> tuple[Prompt, list[Answers]]:
    """Returns the prompt and the pairs of a row; `rankings` is "all" or "best-worst", for ranked completions.

    Raises:
        Unusable: the row is of another layout, or a value is unusable.
    """
    own = ", ".join(layout.columns) if layout and "chosen" not in layout.columns else "prompt, chosen and rejected"
    row = as_object(row, own)
    if layout is None or layout_of(row) is not layout:
        raise Unusable(_mismatch(row, layout) if layout else _no_layout(row))
    prompt = with_system(layout.prompt(row), row)
    pairs = layout.answers(row, prompt, rankings)
    for chosen, rejected, tag in pairs:
        for key, answer in (("chosen", chosen), ("rejected", rejected)):
            if not answer.strip():
                raise NoPreference(f"{key!r} is empty" + (tag and f", {tag}"))
        if chosen == rejected:
            raise NoPreference("chosen and rejected are identical, so neither is preferred" + (tag and f", {tag}"))
    if isinstance(prompt, list) and prompt[-1]["role"] != "user":
        raise Unusable(f"the prompt ends in a message of role {prompt[-1]['role']!r}; want a user message last")
    return prompt, pairs


def reasoned(row: Row) -> bool:
    """True if an answer of the row is a message with its thinking in a separate key, such as `reasoning_content`."""
    lists = (value if isinstance(value, list) else [value] for value in (row.get("chosen"), row.get("rejected")))
    last = [each[-1] for each in lists if each and isinstance(each[-1], Mapping)]
    return any(message.get(part) for message in last for part in REASONING)


def prompt_of(row: object) -> tuple[Prompt, str]:
    """Returns the prompt of a row that may lack answers, and the name of the prompt's column.

    Raises:
        Unusable: the row has no usable prompt.
    """
    row = as_object(row, "a prompt")
    layout = layout_of(row)
    column = next((key for key in ("conversations", "instruction") if layout and key in layout.columns), "prompt")
    if layout is not None:
        prompt = layout.prompt(row)
    elif "prompt" in row:
        prompt = text_or_messages(row["prompt"], "prompt")
    elif "conversations" in row:
        prompt, column = messages(row["conversations"], "conversations"), "conversations"
    else:
        raise Unusable(_no_layout(row) if {"chosen", "rejected"} <= row.keys() else _lacks(row, "prompt"))
    if not prompt:
        raise Unusable(f"{column!r} is empty")
    return with_system(prompt, row), column


# ---------------------------------------------------------------------- why a row does not fit


def _mismatch(row: Row, layout: Layout) -> str:
    for key, kinds in layout.columns.items():
        if key not in row:
            return _lacks(row, key)
        if shape(row[key]) not in kinds:
            wanted = " or ".join(KINDS[each] for each in kinds if each in KINDS)
            return f"{key!r} is {kind(row[key])}; want {wanted}, as in the other rows"
    other = layout_of(row)
    return f"laid out as {other.name if other else 'no known layout'}; want {layout.name}, as the other rows"


def _no_layout(row: Row) -> str:
    for key, name, instead in (
        ("completions", "rankings", "chosen"),
        ("conversations", "sharegpt", "prompt"),
        ("output_1", "alpaca_eval", "chosen"),
    ):
        if key in row and instead not in row:
            return _mismatch(row, next(layout for layout in LAYOUTS if layout.name == name))
    for key in ("chosen", "rejected"):
        if key not in row:
            return _lacks(row, key)
    for key in ("chosen", "rejected", "prompt"):
        if key in row and shape(row[key]) not in ("text", "objects"):
            return f"{key!r} is {kind(row[key])}; want a string or a list of messages"
    if shape(row["chosen"]) != shape(row["rejected"]):
        return f"chosen is {kind(row['chosen'])} but rejected is {kind(row['rejected'])}; want two alike"
    return _lacks(row, "prompt")


def _lacks(row: Row, column: str) -> str:
    like = [key for key in PROMPT_LIKE if key in row] if column == "prompt" else []
    fix = f"; if it is {like[0]!r}, say `--map prompt={like[0]}`" if like else ""
    return f"no {column!r}; this row has {', '.join(map(repr, row)) or 'no keys'}{fix}"


# ---------------------------------------------------------------------- row → prompt


def _prompt_column(row: Row) -> Prompt:
    return text_or_messages(row["prompt"], "prompt")


def _shared_words(row: Row) -> str:
    """The words that both answers begin with. (TRL cuts at the first different letter, even inside a word.)"""
    chosen, rejected = text(row["chosen"], "chosen"), text(row["rejected"], "rejected")
    same, end = 0, min(len(chosen), len(rejected))
    while same < end:  # bisection: a loop over letters would take longer than reading the file
        middle = (same + end + 1) // 2
        same, end = (middle, end) if chosen[:middle] == rejected[:middle] else (same, middle - 1)
    while same and not chosen[same - 1].isspace():
        same -= 1
    shared = chosen[: same - 1] if chosen[:same].endswith(" ") else chosen[:same]  # the space belongs to the answer
    if not shared.strip():
        raise Unusable("no 'prompt'; strings need one beside chosen and rejected, or words that both begin with")
    return shared


def _shared_turns(row: Row) -> Prompt:
    chosen, rejected = (turns(text(row[key], key), key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("the transcripts in 'chosen' and 'rejected' differ before their last turn")
    return chosen[:-1]


def _shared_messages(row: Row) -> Prompt:
    chosen, rejected = (messages(row[key], key) for key in ("chosen", "rejected"))
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if not same:
        raise Unusable("no 'prompt', and chosen and rejected share no message to take it from")
    return chosen[:same]


def _asked(row: Row) -> Prompt:
    """The text prompt as a user message; or all messages of `chosen` before its answer, if they end with that one."""
    asked = [{"role": "user", "content": text(row["prompt"], "prompt")}]
    before = messages(row["chosen"], "chosen")[:-1]
    return before if before[-1:] == asked else asked


def _conversation(row: Row) -> Prompt:
    return messages(row["conversations"], "conversations")


def _instruction(row: Row) -> Prompt:
    return text(row["instruction"], "instruction")


# ---------------------------------------------------------------------- row, prompt, choice among rankings → pairs


def _texts(row: Row, prompt: Prompt, _: str) -> list[Answers]:
    chosen, rejected = text(row["chosen"], "chosen"), text(row["rejected"], "rejected")
    asked = row.get("prompt")
    if isinstance(asked, str) and " " in asked.strip() and chosen.startswith(asked) and rejected.startswith(asked):
        raise Unusable("'chosen' and 'rejected' repeat the prompt; want the answers alone")
    return [Answers(chosen, rejected)]


def _after_shared_words(row: Row, _: Prompt, __: str) -> list[Answers]:
    cut = len(_shared_words(row))
    return [Answers(row["chosen"][cut:], row["rejected"][cut:])]


def _last_turns(row: Row, _: Prompt, __: str) -> list[Answers]:
    return [Answers(*(turns(row[key], key)[-1]["content"] for key in ("chosen", "rejected")))]


def _last_messages(row: Row, prompt: Prompt, _: str) -> list[Answers]:
    prompts = [prompt, prompt[1:]] if row.get("system") else [prompt]  # answers may repeat the prompt without `system`
    return [Answers(*(_after(prompts, messages(row[key], key), key) for key in ("chosen", "rejected")))]


def _single_messages(row: Row, _: Prompt, __: str) -> list[Answers]:
    found = []
    for key in ("chosen", "rejected"):
        value = row[key] if isinstance(row[key], list) else [row[key]]
        found.append(text(row[key], key) if isinstance(row[key], str) else _after([], messages(value, key), key))
    return [Answers(*found)]


def _after(prompts: Iterable[Prompt], listed: list[Message], key: str) -> str:
    """The text of the answer among messages of the column `key`, which may begin with one of `prompts`.

    Raises:
        Unusable: the messages after that prompt are not exactly one, of the assistant.
    """
    for prompt in prompts:
        if prompt and len(listed) > len(prompt) and listed[: len(prompt)] == prompt:
            listed = listed[len(prompt) :]
            break
    if len(listed) != 1 or listed[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in listed) or "nothing"
        raise Unusable(f"{key!r} must be one assistant message after the prompt, got {roles}")
    return answer_text(listed[0])


def _ranked(row: Row, _: Prompt, rankings: str) -> list[Answers]:
    return [Answers(*pair) for pair in ranked_pairs(row, rankings)]


def _judged(row: Row, _: Prompt, __: str) -> list[Answers]:
    first, second = (text(row[key], key) for key in ("output_1", "output_2"))
    if row["preference"] is None:
        raise NoPreference("'preference' is null: no verdict")
    verdict = number(row["preference"], "preference")
    if verdict == 1.5:
        raise NoPreference("'preference' is 1.5, a tie")
    if not 1 <= verdict <= 2:
        raise Unusable(f"'preference' is {verdict:g}; want 1 to 2, below 1.5 if output_1 is the better")
    return [Answers(first, second) if verdict < 1.5 else Answers(second, first)]


# ---------------------------------------------------------------------- the table

_TEXT = {"chosen": ("text",), "rejected": ("text",)}
_LISTS = {"chosen": ("objects",), "rejected": ("objects",)}
_ALL = {**_LISTS, "prompt": ("objects",)}
_ONE = ("object", "objects", "text")
LAYOUTS = (
    Layout("strings", "prompt, chosen and rejected are text", {**_TEXT, "prompt": ("text",)}, _prompt_column, _texts),
    Layout(
        "transcripts",
        "chosen and rejected are transcripts of Human and Assistant, the prompt is all but the last turn",
        _TEXT,
        _shared_turns,
        _last_turns,
        ("prompt",),
        lambda row: is_transcript(row["chosen"]) and is_transcript(row["rejected"]),
    ),
    Layout(
        "implicit strings",
        "chosen and rejected are text, the prompt is the words that both begin with",
        _TEXT,
        _shared_words,
        _after_shared_words,
        ("prompt", *PROMPT_LIKE),
    ),
    Layout("messages", "prompt, chosen and rejected are message lists", _ALL, _prompt_column, _last_messages),
    Layout(
        "implicit messages",
        "chosen and rejected are message lists, the prompt is the messages that both begin with",
        _LISTS,
        _shared_messages,
        _last_messages,
        ("prompt", "conversations"),
    ),
    Layout(
        "text to messages",
        "prompt is text, chosen and rejected are message lists",
        {**_LISTS, "prompt": ("text",)},
        _asked,
        _last_messages,
    ),
    Layout(
        "messages to text",
        "prompt is a message list, chosen and rejected are text",
        {**_TEXT, "prompt": ("objects",)},
        _prompt_column,
        _texts,
    ),
    Layout(
        "sharegpt",
        "conversations is a message list, chosen and rejected are a message each",
        {"conversations": ("objects",), "chosen": _ONE, "rejected": _ONE},
        _conversation,
        _single_messages,
        ("prompt",),
    ),
    Layout(
        "rankings",
        "prompt and a list of completions with ranks or scores",
        {"prompt": ("text", "objects"), "completions": ("texts", "objects")},
        _prompt_column,
        _ranked,
        ("chosen", "rejected"),
    ),
    Layout(
        "alpaca_eval",
        "instruction, output_1, output_2 and the preference between them",
        {"instruction": ("text",), "output_1": ("text",), "output_2": ("text",), "preference": ("number", "null")},
        _instruction,
        _judged,
    ),
)
