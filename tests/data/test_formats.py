"""Every layout and every kind of file gives the same pair; what is laid out otherwise is refused, never guessed."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo.data.formats import LAYOUTS, detect, layout_of
from srpo.data.rankings import ranked_pairs
from srpo.data.read import Pair, Reject, Source, Stream, Undecided, columns_of, read, read_pairs, read_prompts
from srpo.data.values import Unusable
from srpo.errors import ConfigError, DataError, InputError

Example = tuple[str, str, str]
SUMS: list[Example] = [("What is 2+2?", "It is 4.", "It is 5."), ("And 1+2?", "3 it is.", "4 it is.")]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# layout → a question and two answers in that layout
WRITE: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "strings": lambda x, w, l: {"prompt": x, "chosen": w, "rejected": l},
    "transcripts": lambda x, w, l: {
        "chosen": f"\n\nHuman: {x}\n\nAssistant: {w}",
        "rejected": f"\n\nHuman: {x}\n\nAssistant: {l}",
    },
    "implicit strings": lambda x, w, l: {"chosen": f"{x} {w}", "rejected": f"{x} {l}"},
    "messages": lambda x, w, l: {"prompt": [user(x)], "chosen": [says(w)], "rejected": [says(l)]},
    "implicit messages": lambda x, w, l: {"chosen": [user(x), says(w)], "rejected": [user(x), says(l)]},
    "text to messages": lambda x, w, l: {"prompt": x, "chosen": [user(x), says(w)], "rejected": [user(x), says(l)]},
    "messages to text": lambda x, w, l: {"prompt": [user(x)], "chosen": w, "rejected": l},
    "sharegpt": lambda x, w, l: {
        "conversations": [{"from": "human", "value": x}],
        "chosen": {"from": "gpt", "value": w},
        "rejected": {"from": "gpt", "value": l},
    },
    "rankings": lambda x, w, l: {"prompt": x, "completions": [l, w], "ranks": [2, 1]},
    "alpaca_eval": lambda x, w, l: {
        "instruction": x,
        "output_1": l,
        "output_2": w,
        "preference": 2.0,
        "generator_1": "a",
        "generator_2": "b",
    },
}
AS_TEXT = ("strings", "implicit strings", "rankings", "alpaca_eval")


def rows(name: str) -> list[dict[str, Any]]:
    if name == "implicit strings":  # which shares its words up to the first that differs
        return [{"chosen": f"{x} {w}", "rejected": f"{x} {l}"} for x, w, l in (("2+2 is", "four", "five"),) * 2]
    return [WRITE[name](*each) for each in SUMS]


def plain(pair: Pair) -> tuple[str, str, str]:
    """The pair without regard to text or messages."""
    prompt = pair.prompt if isinstance(pair.prompt, str) else "|".join(each["content"] for each in pair.prompt)
    return prompt, pair.chosen.strip(), pair.rejected.strip()


def reason(*listed: Any, **settings: Any) -> str:
    """Why the last of these rows is refused."""
    rejects: list[Reject] = []
    for each in Stream(Source(listed, **settings)):
        if isinstance(each, Reject):
            rejects.append(each)
    assert rejects
    assert rejects[-1].where == f"row {len(listed)}"
    return rejects[-1].reason


# ---------------------------------------------------------------------- layouts


def test_every_layout_is_written_here() -> None:
    assert [layout.name for layout in LAYOUTS] == [*WRITE]
    assert all(str(layout).startswith(layout.name) for layout in LAYOUTS)


@pytest.mark.parametrize("name", WRITE)
def test_a_layout_is_named_and_read(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "srpo"):
        found = read(rows(name))
    assert found.layout is not None
    assert found.layout.name == name
    assert f"rows: read as {name}: " in caplog.text
    expected = SUMS if name != "implicit strings" else [("2+2 is", "four", "five")] * 2
    assert [plain(pair) for pair in found.pairs] == expected
    assert all(isinstance(pair.prompt, str) == (name in AS_TEXT) for pair in found.pairs)
    assert [row.prompt for row in read_prompts(rows(name))] == [pair.prompt for pair in found.pairs]


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("other", WRITE)
def test_a_row_of_another_layout_is_refused(name: str, other: str) -> None:
    listed = [*rows(name), rows(other)[0]]
    found = [type(each) for each in Stream(listed)]
    assert found == [Pair, Pair, Pair if name == other else Reject]
    if name != other:
        assert "want" in reason(*listed) or "no '" in reason(*listed)


def test_most_rows_decide_and_the_first_of_two_equals() -> None:
    one, two = rows("strings"), rows("messages")
    assert detect([two[0], *one]).name == "strings"  # type: ignore[union-attr]
    assert detect([two[0], one[0]]).name == "messages"  # type: ignore[union-attr]
    assert detect([None, {}, 3, {"prompt": 1}]) is None
    assert detect([]) is None


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None)
@given(words, words, words)
def test_texts_come_through_every_layout(asked: str, good: str, bad: str) -> None:
    for name, write in WRITE.items():
        if name in ("transcripts", "implicit strings") or good == bad:  # which have rules about what a text holds
            continue
        row = write(asked, good, bad)
        if name == "strings" and " " in asked.strip() and good.startswith(asked) and bad.startswith(asked):
            assert "repeat the prompt" in reason(row)
            continue
        [pair] = read_pairs([row])
        assert pair.prompt == (asked if name in AS_TEXT else [user(asked)])
        assert (pair.chosen, pair.rejected) == (good, bad)


tame = st.text(st.sampled_from("ab?. "), min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(tame, min_size=1, max_size=5).filter(lambda said: len(said) % 2 == 1), tame, tame)
def test_transcripts_of_several_turns(said: list[str], good: str, bad: str) -> None:
    marks = [("\n\nHuman: ", "\n\nAssistant: ")[i % 2] + text for i, text in enumerate(said)]
    row = {side: "".join(marks) + f"\n\nAssistant: {text}" for side, text in (("chosen", good), ("rejected", bad))}
    if good == bad:
        assert "identical" in reason(row)
    else:
        [pair] = read_pairs([row])
        assert pair.prompt == [(user, says)[i % 2](text) for i, text in enumerate(said)]
        assert (pair.chosen, pair.rejected) == (good, bad)


def test_ambiguous_transcripts_are_rejected() -> None:
    good = rows("transcripts")[0]
    assert "differ before their last turn" in reason(good, {**good, "rejected": good["rejected"].replace("2+2", "2+3")})
    assert "goes Human, Assistant, Human; want" in reason(good, {**good, "chosen": good["chosen"] + "\n\nHuman: Bye"})
    assert "goes Human, Human, Assistant" in reason(good, {**good, "chosen": "\n\nHuman: Eh?" + good["chosen"]})
    assert "want transcripts, as the other rows" in reason(good, {**good, "chosen": "It is 4."})
    assert "'chosen' is empty" in reason(good, {**good, "chosen": "\n\nHuman: What is 2+2?\n\nAssistant: "})


@settings(deadline=None)
@given(tame, tame)
def test_implicit_strings_are_cut_between_words(chosen: str, rejected: str) -> None:
    """Against a plain second way: the longest list of words that both begin with."""
    same = 0
    first, second = chosen.split(" "), rejected.split(" ")
    while same < min(len(first), len(second)) - 1 and first[same] == second[same]:
        same += 1
    shared = " ".join(first[:same])
    try:
        [pair] = read_pairs([{"chosen": chosen, "rejected": rejected}])
    except DataError:
        assert not shared.strip() or chosen == rejected
    else:
        assert pair.prompt == shared
        assert (shared + pair.chosen, shared + pair.rejected) == (chosen, rejected)


def test_implicit_strings_are_not_guessed_beside_another_prompt() -> None:
    row = {"instruction": "Add.", "chosen": "It is 4.", "rejected": "It is 5."}
    assert layout_of(row) is None
    assert reason(row).endswith("; if it is 'instruction', say `--map prompt=instruction`")
    assert read_pairs(Source([row], columns={"prompt": "instruction"}))[0].prompt == "Add."
    assert read_pairs([{"chosen": "Sky:\nblue", "rejected": "Sky:\nred"}])[0].prompt == "Sky:\n"


def test_a_prompt_repeated_in_the_answers() -> None:
    row = rows("strings")[0]
    again = {**row, "chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    assert "repeat the prompt" in reason(row, again)
    assert read_pairs([{**again, "rejected": row["rejected"]}])  # one of them only: an answer may say so
    system = {"role": "system", "content": "Add."}
    row = {"prompt": "2+2?", "chosen": [system, user("2+2?"), says("4")], "rejected": [system, user("2+2?"), says("5")]}
    assert read_pairs([row])[0].prompt == [system, user("2+2?")]
    assert "got system, user, assistant" in reason({**row, "chosen": [user("2+2?"), says("4")]})


# ---------------------------------------------------------------------- rankings and annotations


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_rankings_give_every_ordered_pair(scores: list[int]) -> None:
    texts = [f"answer {i}" for i in range(len(scores))]
    expected = {(a, b) for a, s in zip(texts, scores, strict=True) for b, t in zip(texts, scores, strict=True) if s > t}
    for row in (
        {"completions": texts, "scores": scores},
        {"completions": texts, "ranks": [-score for score in scores]},
        {"completions": [{"text": t, "score": s, "model": "m"} for t, s in zip(texts, scores, strict=True)]},
        {"completions": [{"response": t, "overall_score": s} for t, s in zip(texts, scores, strict=True)]},
        {"completions": [{"answer": t, "rank": -s} for t, s in zip(texts, scores, strict=True)]},
    ):
        if not expected:
            with pytest.raises(Unusable, match="no completion is ranked above another"):
                ranked_pairs(row, "all")
            continue
        assert {pair[:2] for pair in ranked_pairs(row, "all")} == expected
        [(best, worst, _)] = ranked_pairs(row, "best-worst")
        assert scores[texts.index(best)] == max(scores)
        assert scores[texts.index(worst)] == min(scores)


def test_rankings_name_the_two_completions() -> None:
    row = {"prompt": "2+2?", "completions": ["5", "4", "four"], "scores": [0, 2, 1], "id": 3}
    pairs = read_pairs([row])
    assert [pair.where for pair in pairs] == [f"row 1, completion {i} over {j}" for i, j in ((2, 3), (2, 1), (3, 1))]
    assert [pair.meta for pair in pairs] == [{"scores": [0, 2, 1], "id": 3}] * 3
    assert [pair.where for pair in read_pairs(Source([row], rankings="best-worst"))] == ["row 1, completion 2 over 1"]
    assert len(read_pairs([row, row])) == 6


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"ranks": [1, 2]}, "completions have ranks and scores of ranks, scores,"),
        ({"scores": None}, "completions have none of ranks"),
        ({"scores": [1]}, "'scores' is a list of numbers of 1; want a list of 2 numbers"),
        ({"scores": 1}, "'scores' is a number; want a list of 2 numbers"),
        ({"scores": [1, None]}, "'scores of completion 2' is null; want a number"),
        ({"scores": [1, True]}, "'scores of completion 2' is a boolean"),
        ({"scores": [1, float("nan")]}, "'scores of completion 2' is not a finite number"),
        ({"scores": [1, 10**400]}, "'scores of completion 2' is not a finite number"),
        ({"scores": [1, "2"]}, "'scores of completion 2' is a string"),
        ({"completions": ["a", ""]}, "'chosen' is empty, completion 2 over 1"),
        ({"completions": ["a", "a"]}, "identical, so neither is preferred, completion 2 over 1"),
        ({"completions": ["a", 5]}, "'completions' is a list of strings and numbers; want a list of strings"),
        ({"completions": []}, "'completions' is an empty list"),
        ({"completions": [{"text": "a"}, {}]}, "'completions.text' is null"),
        ({"completions": [{"text": "a", "answer": "b"}, {}]}, "completions have text and answer of text,"),
        ({"completions": [{"words": "a"}, {}]}, "completions have none of text,"),
    ],
)
def test_rankings_that_cannot_be_used(changed: dict[str, Any], why: str) -> None:
    assert why in reason({"prompt": "x", "completions": ["a", "b"], "scores": [1, 2], **changed})


@pytest.mark.parametrize(
    ("preference", "why"),
    [
        (1.5, "'preference' is 1.5, a tie"),
        (0, "'preference' is 0; want"),
        (2.1, "'preference' is 2.1"),
        (None, "'preference' is null: no verdict"),
        (float("nan"), "not a finite number"),
        ("2", "'preference' is a string; want a number"),
    ],
)
def test_annotations_without_a_verdict(preference: Any, why: str) -> None:
    assert why in reason({**rows("alpaca_eval")[0], "preference": preference})


def test_annotations_near_the_middle_are_verdicts() -> None:
    row = rows("alpaca_eval")[0]
    for preference, better in ((1.0, "It is 5."), (1.49, "It is 5."), (1.51, "It is 4.")):
        assert read_pairs([{**row, "preference": preference}])[0].chosen == better


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"conversations": "x"}, "'conversations' is a string; want a list of messages"),
        ({"conversations": []}, "'conversations' is an empty list"),
        ({"conversations": [{"from": "human"}]}, "a message in 'conversations' has no text 'value': got null"),
        ({"conversations": [user("x"), says("y")]}, "ends in a message of role 'assistant'; want a user message last"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "ends in a message of role 'observation'"),
        ({"chosen": user("x")}, "'chosen' must be one assistant message after the prompt, got user"),
        ({"rejected": [says("x"), says("y")]}, "got assistant, assistant"),
        ({"rejected": 5}, "'rejected' is a number; want a message or a list of messages or a string"),
    ],
)
def test_sharegpt_that_cannot_be_used(changed: dict[str, Any], why: str) -> None:
    assert why in reason(rows("sharegpt")[0], rows("sharegpt")[1], {**rows("sharegpt")[0], **changed})


def test_rows_without_a_preference_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    good = rows("strings")[0]
    undecided = [{**good, "rejected": good["chosen"]}, {**good, "chosen": " "}, {**good, "rejected": ""}] * 2
    with caplog.at_level(logging.WARNING, "srpo"):
        found = read([good, *undecided])
    assert len(found.pairs) == 1
    assert {type(each) for each in found.rejects} == {Undecided}
    assert "6 of 7 rows left out: 2 × chosen and rejected are identical" in caplog.text
    assert ", 2 × 'chosen' is empty, 2 × 'rejected' is empty" in caplog.text
    tied = {"prompt": "x", "completions": ["a", "b"], "scores": [1, 1]}
    assert [type(each) for each in Stream([tied, {**rows("alpaca_eval")[0], "preference": 1.5}])] == [Undecided, Reject]
    # Control: a row that is broken stops everything, and where nothing is left so do these.
    with pytest.raises(DataError, match="1 of 8 rows cannot be used as pairs"):
        read_pairs([good, *undecided, {**good, "chosen": 5}])
    with pytest.raises(DataError, match="6 of 6 rows cannot be used as pairs"):
        read_pairs(undecided)


# ---------------------------------------------------------------------- beside prompt and answers


@pytest.mark.parametrize("name", WRITE)
def test_system_is_the_first_message(name: str) -> None:
    row = {**rows(name)[0], "system": "Be kind."}
    [pair] = read_pairs([row])
    without = read_pairs([rows(name)[0]])[0]
    before = [user(without.prompt)] if isinstance(without.prompt, str) else without.prompt
    assert pair.prompt == [{"role": "system", "content": "Be kind."}, *before]
    assert (pair.chosen, pair.rejected) == (without.chosen, without.rejected)
    assert "system" not in pair.meta
    assert read_prompts([row])[0].prompt == pair.prompt
    assert read_pairs([{**row, "system": None}]) == read_pairs([{**row, "system": ""}]) == [without]
    assert "'system' is a number" in reason({**row, "system": 5})


def test_two_system_messages() -> None:
    system = {"role": "system", "content": "Add."}
    row = {"prompt": [system, user("2+2?")], "chosen": [says("4")], "rejected": [says("5")]}
    assert read_pairs([{**row, "system": "Add."}])[0].prompt == row["prompt"]
    assert "differs from the system message" in reason({**row, "system": "Subtract."})


def test_tools_and_template_options() -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": None}}]
    bare = [{"type": "function", "function": {"name": "add"}}]  # a table fills what a row lacks with nulls
    row = {**rows("messages")[0], "tools": tools, "chat_template_kwargs": {"enable_thinking": False, "other": None}}
    written = {**row, "tools": json.dumps(tools), "chat_template_kwargs": '{"enable_thinking": false}'}
    for each in (row, written):
        [pair] = read_pairs([each])
        assert (pair.tools, pair.chat_template_kwargs) == (bare, {"enable_thinking": False})
        assert pair.meta == {}
    for nothing in (None, [], "", {}):
        [pair] = read_pairs([{**row, "tools": nothing, "chat_template_kwargs": nothing}])
        assert (pair.tools, pair.chat_template_kwargs) == (None, None)
    [prompt] = read_prompts([row])
    assert (prompt.tools, prompt.chat_template_kwargs) == (bare, {"enable_thinking": False})


def _prompt_reason(row: Any) -> str:
    with pytest.raises(DataError) as error:
        read_prompts([row])
    return str(error.value)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"tools": 5}, "'tools' is a number; want a list of objects"),
        ({"tools": ["add"]}, "'tools' is a list of strings"),
        ({"tools": "add"}, "'tools' is not a JSON value"),
        ({"tools": [{"a": object()}]}, "'tools' is not a JSON value"),
        ({"tools": [{"a": "\ud800"}]}, "'tools' is not a JSON value"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' is a list of numbers; want an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "may not set 'tokenize'"),
        ({"images": ["a.png"]}, "'images': no file: a.png"),
        ({"image": {"bytes": b""}}, "'image' is empty; want a picture"),
        ({"video": "a.mp4"}, "'video' is not empty, and no model is shown it"),
        ({"prompt": [{**user("x"), "tool_calls": [{}]}]}, "has 'tool_calls', which would be left out"),
        ({"chosen": [{**says("x"), "thinking": "Hm.", "reasoning": "So."}]}, "has two texts of thinking"),
        ({"chosen": [{**says("x"), "content": [{"type": "image"}]}]}, "1 image parts without a picture of their own"),
        ({"chosen": [{**says("x"), "content": [{"type": "audio"}]}]}, "has a part of type 'audio'; want text alone"),
    ],
)
def test_parts_that_a_model_would_not_see_are_rejected(changed: dict[str, Any], why: str) -> None:
    assert why in reason({**rows("messages")[0], **changed})


def test_empty_picture_columns_are_ignored() -> None:
    assert read_pairs([{**rows("messages")[0], "images": [], "image": None}])


# ---------------------------------------------------------------------- other names


def test_columns_by_other_names() -> None:
    rows_ = [{"q": "2+2?", "good": "4", "bad": "5", "chosen": 7, "id": 1}]
    [pair] = read_pairs(Source(rows_, columns=columns_of(" prompt=q, chosen = good,rejected=bad")))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.meta) == ("2+2?", "4", "5", {"id": 1})
    assert "no 'q' to be 'prompt'; this row has 'a'" in reason({"a": 1}, columns={"prompt": "q"})
    assert "expected an object with q" in reason(5, columns={"prompt": "q"})
    with pytest.raises(DataError, match="say which columns are meant with `--map prompt=…"):
        read_pairs([{"question": "a", "good": "b"}])


def test_columns_that_are_joined() -> None:
    rows_ = [
        {"instruction": "Translate.", "input": text, "chosen": "Oui.", "rejected": "Non."}
        for text in ("Yes.", "", None)
    ]
    pairs = read_pairs(Source(rows_, columns=columns_of("prompt=instruction+input")))
    assert [pair.prompt for pair in pairs] == ["Translate.\nYes.", "Translate.", "Translate."]
    assert pairs[0].meta == {}
    assert (
        read_pairs(Source([{"a+b": "x", "chosen": "1", "rejected": "2"}], columns={"prompt": "a+b"}))[0].prompt == "x"
    )
    assert "no 'input' to be 'prompt'" in reason({"instruction": "x"}, columns={"prompt": "instruction+input"})
    assert "'a+b' is a number; want a string" in reason({"a": "x", "b": 1}, columns={"prompt": "a+b"})


# Rows in the layout of well-known sets, with made-up contents: set → row, what to say beside its name, its layout
PUBLISHED: dict[str, tuple[dict[str, Any], str, str]] = {
    "Anthropic/hh-rlhf": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2?\n\nAssistant: 5",
        },
        "",
        "transcripts",
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {
            "prompt": "2+2?",
            "prompt_id": "a1",
            "chosen": [user("2+2?"), says("4")],
            "rejected": [user("2+2?"), says("5")],
            "messages": [user("2+2?"), says("4")],
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        "",
        "text to messages",
    ),
    "openbmb/UltraFeedback": (
        {
            "source": "s",
            "instruction": "2+2?",
            "completions": [
                {"model": "m", "response": "5", "overall_score": 2.0, "fine-grained_score": 1.5, "annotations": {}},
                {"model": "n", "response": "4", "overall_score": 8.0, "fine-grained_score": 4.5, "annotations": {}},
            ],
        },
        "prompt=instruction",
        "rankings",
    ),
    "berkeley-nest/Nectar": (
        {"prompt": "2+2?", "answers": [{"answer": "4", "model": "m", "rank": 1.0}, {"answer": "5", "rank": 2.0}]},
        "completions=answers",
        "rankings",
    ),
    "Intel/orca_dpo_pairs": (
        {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"},
        "prompt=question",
        "strings",
    ),
    "LLaMA-Factory, sharegpt": (
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
            "system": "Be brief.",
        },
        "",
        "sharegpt",
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "Add.", "input": "2+2?", "chosen": "4", "rejected": "5"},
        "prompt=instruction+input",
        "strings",
    ),
    "trl-lib/ultrafeedback_binarized": (
        {"chosen": [user("2+2?"), says("4")], "rejected": [user("2+2?"), says("5")], "score_chosen": 8.0},
        "",
        "implicit messages",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_layouts_of_public_data_sets(name: str) -> None:
    row, columns, layout = PUBLISHED[name]
    found = read(Source([row], columns=columns_of(columns)))
    assert found.layout is not None
    assert found.layout.name == layout
    [pair] = found.pairs
    assert (pair.chosen, pair.rejected) == ("4", "5")
    asked = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"]
    assert asked.endswith("2+2?")
    assert ("system" in row) == (not isinstance(pair.prompt, str) and pair.prompt[0]["role"] == "system")
    if columns:  # and without the names it is refused, not guessed
        with pytest.raises(DataError):
            read([row])


@pytest.mark.parametrize("wrong", ["prompt", "prompt=", "=a", "prompt=a,prompt=b", "prompt=a,", ","])
def test_invalid_maps_are_rejected(wrong: str) -> None:
    with pytest.raises(ConfigError, match="map: "):
        columns_of(wrong)


def test_settings_of_a_source() -> None:
    assert columns_of(None) == columns_of("") == {}
    with pytest.raises(ConfigError, match=r"no column 'promt'.*did you mean 'prompt'"):
        Source([], columns={"promt": "a"})
    with pytest.raises(ConfigError, match="rankings: 'best'; expected one of all, best-worst"):
        Source([], rankings="best")
    with pytest.raises(DataError, match="an object with 'train', 'test'; expected rows, or one split"):
        read_pairs({"train": [], "test": []})  # type: ignore[arg-type]


# ---------------------------------------------------------------------- files


def write_csv(path: Path, listed: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*listed[0]])
        table.writeheader()
        for row in listed:
            table.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})


def write_parquet(path: Path, listed: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(listed), path)


def write_jsonl(path: Path, listed: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in listed), "utf-8")


def write_json(path: Path, listed: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(listed, indent=2), "utf-8")


FILES = {".jsonl": write_jsonl, ".json": write_json, ".csv": write_csv, ".parquet": write_parquet}


def bare(pairs: list[Pair]) -> list[Any]:
    return [(pair.prompt, pair.chosen, pair.rejected, pair.tools) for pair in pairs]


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("suffix", FILES)
def test_every_layout_in_every_file(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{suffix}"
    listed = [{**row, "tools": [{"name": "add"}]} for row in rows(name)]
    FILES[suffix](path, listed)
    found = read(str(path))
    assert found.layout is not None
    assert found.layout.name == name
    assert bare(found.pairs) == bare(read_pairs(listed))
    assert all(pair.where.startswith(f"{path}:") for pair in found.pairs)
    FILES[suffix](path, rows(name))
    assert [row.prompt for row in read_prompts(path)] == [pair.prompt for pair in found.pairs]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("own_cache")
def test_a_folder(tmp_path: Path) -> None:
    import datasets

    listed = rows("text to messages")
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "train.jsonl", listed)
    write_jsonl(tmp_path / "files" / "test.jsonl", listed[:1])
    saved, splits = tmp_path / "saved", tmp_path / "splits"
    whole = datasets.Dataset.from_list(listed)
    whole.save_to_disk(saved)
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(splits)
    for folder in (tmp_path / "files", saved, splits):
        assert bare(read_pairs(str(folder))) == bare(read_pairs(listed)) == bare(read_pairs(whole))
        assert read_pairs(folder)[1].where == f"{folder}, row 2"
        assert Source(str(folder)).has_splits
    for folder in (tmp_path / "files", splits):
        assert len(read_pairs(Source(folder, split="test"))) == 1
        with pytest.raises(InputError, match="nowhere"):
            read_pairs(Source(folder, split="nowhere"))
    (tmp_path / "files" / "train.jsonl").write_text('{"prompt": ', "utf-8")
    with pytest.raises(InputError, match="no such data"):
        read_pairs(tmp_path / "files")


@pytest.mark.usefixtures("own_cache")
def test_unknown_names_are_rejected(tmp_path: Path) -> None:
    for missing in ("no/such", str(tmp_path / "none"), str(tmp_path / "none.csv"), "", "a\0b", "x" * 5000):
        with pytest.raises(InputError) as error:
            read_pairs(missing)
        assert error.value.exit_code == 66


def refused(path: Path) -> list[tuple[str, str]]:
    """(place after the file's name, reason) of each reject."""
    return [(each.where.removeprefix(str(path)), each.reason) for each in Stream(path) if isinstance(each, Reject)]


def test_an_array_is_read_up_to_its_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    good = json.dumps(rows("strings")[0])
    path.write_text(f'\n[{good},\n {{"a": NaN}},\n\n{good[:-1]}, "chosen": ""}}, {good}\n]\n', "utf-8-sig")
    assert [type(each).__name__ for each in Stream(path)] == ["Pair", "Reject", "Reject", "Pair"]
    assert [(at, why[:12]) for at, why in refused(path)] == [(":3", "not JSON: Na"), (":5", "key 'chosen'")]
    for torn in (f"[{good}, {good[:-3]}", f"[{good} {good}]", f"[{good},]", f"[{good}] 1", f"[{good},, {good}]"):
        path.write_text(torn, "utf-8")
        assert [type(each).__name__ for each in Stream(path)] == ["Pair", "Reject"]
        assert refused(path)[0][1].startswith("not JSON")
    path.write_text(f'[{good}, {{"a": ["\\uD83d"]}}, {good}]', "utf-8")
    assert refused(path) == [(":1", "holds half of a surrogate pair, '\\ud83d'")]
    path.write_text(f"{good}\n{good}\n", "utf-8")  # JSONL by another name
    assert len(read_pairs(path)) == 2
    path.write_bytes(b"[\n{}, \n\xff]")
    assert refused(path) == [(":3", "not UTF-8: byte 0xff; nothing is read of an array")]
    path.write_bytes(b"[" * 100_000)
    assert "nested too deeply" in refused(path)[0][1]
    for empty in (b"[]", b" [ ] ", b""):
        path.write_bytes(empty)
        with pytest.raises(DataError, match="no pairs"):
            read_pairs(path)


def test_csv_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    head, good = b"\xef\xbb\xbfprompt,chosen,rejected\r\n", b'"2\n+2?",4,5\r\n'
    path.write_bytes(head + good + b"\r\nx,y\r\n" + good + b"x,\xff,z\r\nx,y,[1]\n")
    assert refused(path) == [
        (":5", "2 cells; want 3, as in the header"),
        (":8", "not UTF-8: a byte in column 'chosen'"),
    ]
    assert [pair.where.removeprefix(str(path)) for pair in read_pairs(path, rejects=[])] == [":2", ":6", ":9"]
    assert read_pairs(path, rejects=[])[0].prompt == "2\n+2?"
    path.write_bytes(head + good + b'x,"y,z\r\n' + good)
    assert [why[:9] for _, why in refused(path)] == ["not CSV: "]
    path.write_bytes(b"a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="the header names 'a' twice"):
        read_pairs(path)
    path.write_bytes(b'prompt,completions,scores\nx,"[1,2",\ny,z,\n')
    assert [why.split(":")[0] for _, why in refused(path)] == ["'completions'", "'completions'"]
    path.write_bytes(b"instruction,output_1,output_2,preference\nx,a,b,1.0\nx,a,b,\n")
    assert refused(path) == [(":3", "'preference' is null: no verdict")]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_line_of_50_megabytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"long{suffix}"
    FILES[suffix](path, rows("strings"))
    good = path.read_bytes()
    for more in (b"x" * 50_000_000, b'"' + b"x" * 50_000_000, b"[" * 50_000_000):
        path.write_bytes(good + more + b"\n")
        pairs = read_pairs(path, rejects=[])
        assert len(pairs) == len(SUMS)
        [(_, reason)] = refused(path)
        assert len(reason) < 200


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", ".jsonl"])
@settings(deadline=None)
@given(content=st.binary(max_size=80), at=st.integers(0, 3000), whole=st.booleans())
def test_any_bytes_in_any_file(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes, at: int, whole: bool
) -> None:
    """Bytes alone, and bytes in the middle of a good file."""
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    if whole:
        path.write_bytes(content)
    else:
        FILES[suffix](path, rows("strings"))
        good = path.read_bytes()
        at %= len(good)
        path.write_bytes(good[:at] + content + good[at + len(content) :])
    for reader in (read_pairs, read_prompts):
        try:
            reader(path, rejects=[])
        except (DataError, InputError) as error:
            str(error).encode()


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "score", "rank", "x"]), inner)
    ),
    max_leaves=8,
)
KEYS = sorted({key for write in WRITE.values() for key in write("x", "w", "l")} | {"system", "tools", "images"})


@settings(deadline=None)
@given(st.sampled_from([*WRITE]), st.dictionaries(st.sampled_from(KEYS), anything, max_size=3), st.booleans())
def test_any_change_to_a_row_of_any_layout(name: str, changed: dict[str, Any], alone: bool) -> None:
    """Never anything but pairs fit for the renderer and rejects."""
    listed = [{**rows(name)[0], **changed}] if alone else [*rows(name), {**rows(name)[0], **changed}]
    for each in Stream(listed):
        if isinstance(each, Pair):
            assert each.chosen.strip()
            assert each.rejected.strip()
            assert each.chosen != each.rejected
            assert isinstance(each.prompt, str) or each.prompt[-1]["role"] == "user"
            json.dumps([each.prompt, each.chosen, each.rejected, each.tools], ensure_ascii=False).encode()
        else:
            assert each.reason
    try:
        read_prompts(listed, rejects=[])
    except DataError as error:
        str(error).encode()
