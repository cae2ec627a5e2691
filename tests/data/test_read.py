"""Rows from outside: what is taken, what is refused and in which words, and that nothing else is ever raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srpo.data.read import Pair, Reject, jsonl_rows, read_pairs, read_prompts
from srpo.errors import DataError, InputError

ROW = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
GOOD = json.dumps(ROW).encode()
USER = {"role": "user", "content": "2+2="}
FOUR, FIVE = ({"role": "assistant", "content": digit} for digit in "45")

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: bytes) -> Path:
        (tmp_path / "pairs.jsonl").write_bytes(content)
        return tmp_path / "pairs.jsonl"

    return to_file


def reason(row: Any) -> str:
    """Why this row alone is refused."""
    rejects: list[Reject] = []
    with pytest.raises(DataError):
        read_pairs([row], rejects=rejects)
    assert len(rejects) == 1
    return rejects[0].reason


# ---------------------------------------------------------------------- what is taken


def test_strings(write: Write) -> None:
    path = write(json.dumps({**ROW, "id": 7, "note": None}).encode() + b"\n")
    assert read_pairs(path) == [Pair("2+2=", "4", "5", f"{path}:1", {"id": 7, "note": None})]
    assert read_pairs(str(path)) == read_pairs(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]},
        {"prompt": [USER], "chosen": [USER, FOUR], "rejected": [USER, FIVE]},  # the prompt repeated inside
        {"prompt": [USER], "chosen": [USER, FOUR], "rejected": [FIVE]},
        {"chosen": [USER, FOUR], "rejected": [USER, FIVE]},  # the prompt is what they share
        {"prompt": "2+2=", "chosen": [FOUR], "rejected": [FIVE]},
        {"prompt": "2+2=", "chosen": [USER, FOUR], "rejected": [USER, FIVE]},
        {"prompt": [USER], "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [{**FOUR, "tokens": 1}], "rejected": [FIVE]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "2+2="}]}], "chosen": "4", "rejected": "5"},
    ],
)
def test_messages(row: dict[str, Any]) -> None:
    assert read_pairs([row]) == [Pair([USER], "4", "5", "row 1")]


def test_a_conversation_is_shared_up_to_its_last_message() -> None:
    before = [{"role": "system", "content": "Add."}, USER, FIVE, {"role": "user", "content": "Sure?"}]
    assert read_pairs([{"chosen": [*before, FOUR], "rejected": [*before, FIVE]}])[0].prompt == before
    # The answers may themselves share their first words, or all of them: the last message is never the prompt.
    assert "identical" in reason({"chosen": [*before, FOUR], "rejected": [*before, FOUR]})


def test_bom_crlf_and_blank_lines(write: Write) -> None:
    path = write(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n   \n\t\n" + GOOD)
    assert [pair.where for pair in read_pairs(path)] == [f"{path}:1", f"{path}:5"]
    assert [pair.chosen for pair in read_pairs(path)] == ["4", "4"]


def test_text_is_read_unchanged(write: Write) -> None:
    row = {"prompt": " a\r\n", "chosen": "\x00 \u202e<eos>\U0001f600", "rejected": " \\ud83d"}
    escaped, plain = json.dumps(row).encode(), json.dumps(row, ensure_ascii=False).encode()
    assert rb"\ud83d\ude00" in escaped  # JSON may spell a character as the two halves of a pair
    for source in ([row], write(escaped), write(plain)):
        pair = read_pairs(source)[0]
        assert (pair.prompt, pair.chosen, pair.rejected) == tuple(row.values())


def test_an_empty_prompt_is_left_to_the_renderer() -> None:
    assert read_pairs([{**ROW, "prompt": ""}])[0].prompt == ""
    with pytest.raises(DataError, match="'prompt' is empty"):
        read_prompts([{"prompt": ""}])


def test_prompts() -> None:
    without = {"chosen": [USER, FOUR], "rejected": [USER, FIVE]}
    rows = [{"prompt": "2+2=", "gold": "4"}, {"prompt": [USER]}, ROW, without]
    assert [row.prompt for row in read_prompts(rows)] == ["2+2=", [USER], "2+2=", [USER]]
    assert read_prompts(rows)[0].meta == {"gold": "4"}
    assert read_prompts(rows)[2].meta == {"chosen": "4", "rejected": "5"}


# ---------------------------------------------------------------------- what is refused

# what is written as the second line → where in it, why
LINES: dict[str, tuple[bytes, str, str]] = {
    "garbage": (b"chosen: 4", ":1", "not JSON"),
    "torn tail": (b'{"prompt": "2+2=", "chosen": "4", "reje', ":35", "not JSON: Unterminated string"),
    "torn later": (GOOD[:-1], f":{len(GOOD)}", "not JSON"),
    "torn, CRLF": (GOOD[:-1] + b"\r", f":{len(GOOD)}", "not JSON"),
    "two rows": (GOOD + GOOD, f":{len(GOOD) + 1}", "not JSON: Extra data"),
    "NUL bytes": (b"\x00\x00\x00\x00", ":1", "not JSON"),
    "NUL in a string": (b'{"prompt": "\x00"}', ":13", "not JSON: Invalid control character"),
    "latin-1": (b'{"prompt": "caf\xe9"}', ":16", "not UTF-8: byte 0xe9"),
    "UTF-16": (GOOD.decode().encode("utf-16"), ":1", "not UTF-8: byte 0xff"),
    "a later BOM": (b"\xef\xbb\xbf" + GOOD, ":1", "not JSON"),
    "duplicate keys": (GOOD[:-1] + b', "chosen": "6", "id": 1}', "", "key 'chosen' occurs twice"),
    "duplicates within": (b'{"prompt": [{"role": "user", "role": "user"}]}', "", "key 'role' occurs twice"),
    "NaN": (b'{"prompt": NaN}', "", "NaN is not a JSON number"),
    "Infinity": (b'{"prompt": -Infinity}', "", "-Infinity is not a JSON number"),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "", "nested too deeply"),
    "fairly deep": (GOOD.replace(b'"5"', b"[" * 200 + b"]" * 200), "", "'rejected' is a list of lists;"),
    "unending": (b"[" * 100_000, "", "nested too deeply"),
    "a long number": (b'{"prompt": ' + b"1" * 5000 + b"}", "", "a number of thousands of digits"),
    "half a pair": (GOOD.replace(b"5", rb"5\ud83d"), "", r"holds half of a surrogate pair, '\ud83d'"),
    "half elsewhere": (GOOD[:-1] + rb', "id": [{"\uDE00": 1}]}', "", r"holds half of a surrogate pair, '\ude00'"),
    "missing rejected": (b'{"prompt": "a", "chosen": "b"}', "", "no 'rejected'; this row has 'prompt', 'chosen'"),
    "nothing": (b"{}", "", "no 'chosen'; this row has no keys"),
    "a list": (b"[1, 2]", "", "expected an object with prompt, chosen and rejected, got a list of numbers"),
    "a string": (b'"a"', "", "got a string"),
    "a number": (b"1e999", "", "got a number"),
    "null": (b"null", "", "got null"),
}


@pytest.mark.parametrize("name", LINES)
def test_bad_lines(name: str, write: Write) -> None:
    line, column, why = LINES[name]
    path = write(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    with pytest.raises(DataError) as error:
        read_pairs(path)
    assert error.value.exit_code == 65
    assert "1 of 3 rows cannot be used as pairs" in str(error.value)
    assert f"{path}:2{column}: " in str(error.value)
    assert why in str(error.value)
    assert len(str(error.value)) < 600
    rejects: list[Reject] = []
    assert [pair.where for pair in read_pairs(path, rejects=rejects)] == [f"{path}:1", f"{path}:3"]
    assert [reject.where for reject in rejects] == [f"{path}:2{column}"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"rejected": None}, "'rejected' is null; want a string or a list of messages"),
        ({"rejected": 5}, "'rejected' is a number"),
        ({"rejected": True}, "'rejected' is a boolean"),
        ({"rejected": [5, 6]}, "'rejected' is a list of numbers"),
        ({"rejected": [FIVE, "5"]}, "'rejected' is a list of objects and strings"),
        ({"rejected": []}, "'rejected' is an empty list"),
        ({"rejected": FIVE}, "'rejected' is an object"),
        ({"prompt": None}, "'prompt' is null"),
        ({"prompt": []}, "'prompt' is an empty list"),
        ({"prompt": [{"role": "user"}]}, "a message in 'prompt' has no text 'content': got null"),
        ({"prompt": [{"role": 1, "content": "a"}]}, "a message in 'prompt' has no text 'role': got a number"),
        ({"rejected": [FIVE]}, "chosen is a string but rejected is a list of objects; want two alike"),
        ({"rejected": ""}, "'rejected' is empty"),
        ({"chosen": " \n\t"}, "'chosen' is empty"),
        ({"rejected": "4"}, "identical"),
        ({"chosen": [USER], "rejected": [FIVE]}, "'chosen' must be one assistant message after the prompt, got user"),
        ({"chosen": [FOUR, FOUR], "rejected": [FIVE]}, "got assistant, assistant"),
        ({"chosen": [{**FOUR, "content": ""}], "rejected": [FIVE]}, "'chosen' is empty"),
        ({"chosen": [FOUR], "rejected": [FOUR]}, "identical"),
        ({"chosen": "\ud800"}, "'chosen' holds half of a surrogate pair at character 1"),
        ({"chosen": [{**FOUR, "content": "ab\udfff"}], "rejected": [FIVE]}, "surrogate pair at character 3"),
    ],
)
def test_bad_values(changed: dict[str, Any], why: str) -> None:
    assert why in reason({**ROW, **changed})


def test_bad_rows_without_a_prompt() -> None:
    assert "no 'prompt'; strings need one" in reason({"chosen": "4", "rejected": "5"})
    assert "share no message" in reason({"chosen": [FOUR], "rejected": [FIVE]})
    assert "share no message" in reason({"chosen": [USER, FOUR], "rejected": [{**USER, "content": "?"}, FIVE]})
    assert "got nothing" not in reason({"chosen": [USER], "rejected": [USER, FIVE]})
    assert "no 'prompt'; this row has 'text'" in _prompt_reason({"text": "a"})


def _prompt_reason(row: Any) -> str:
    with pytest.raises(DataError) as error:
        read_prompts([row])
    assert "cannot be used as prompts" in str(error.value)
    assert "\n; " not in str(error.value)
    return str(error.value)


def test_rows_in_memory_may_be_anything() -> None:
    for row in (None, 1, "prompt", ["prompt"], b"bytes", object()):
        assert "expected an object" in reason(row)


# ---------------------------------------------------------------------- many of them


def test_the_first_ten_are_named_and_the_rest_counted(write: Write) -> None:
    path = write((b"{\n" * 13) + GOOD)
    with pytest.raises(DataError) as error:
        read_pairs(path)
    named = [line for line in str(error.value).splitlines() if "not JSON" in line]
    assert [line.split(": ")[0].strip() for line in named] == [f"{path}:{n}:2" for n in range(1, 11)]
    assert "13 of 14 rows" in str(error.value)
    assert "and 3 more" in str(error.value)
    assert "--bad_rows skip" in str(error.value)


def test_exactly_ten_bad_rows_are_all_named() -> None:
    with pytest.raises(DataError) as error:
        read_pairs([None] * 10)
    assert "more" not in str(error.value)


def test_skipping_keeps_the_rejects_in_order() -> None:
    earlier = Reject("elsewhere:1", "not ours")
    rejects = [earlier]
    pairs = read_pairs([None, ROW, {**ROW, "rejected": "4"}, ROW], rejects=rejects)
    assert [pair.where for pair in pairs] == ["row 2", "row 4"]
    assert [reject.where for reject in rejects] == ["elsewhere:1", "row 1", "row 3"]
    # Nothing left is an error even then, and speaks of this call's rows only.
    with pytest.raises(DataError, match="1 of 1 rows") as error:
        read_pairs([None], rejects=rejects)
    assert "elsewhere" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_rows(content: bytes, write: Write) -> None:
    path = write(content)
    with pytest.raises(DataError, match="no pairs") as error:
        read_pairs(path, rejects=[])
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="rows: no prompts"):
        read_prompts([])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError) as error:
            read_pairs(path)
        assert error.value.exit_code == 66
        assert str(error.value).startswith(f"{path}: ")


# ---------------------------------------------------------------------- whatever it is

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "role", "content", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from(["", "a", "b"])}),
    max_size=3,
)
columns = messages | st.sampled_from(["", "a", "b"]) | json_values
near_rows = st.fixed_dictionaries({}, optional=dict.fromkeys(ROW, columns))


def only_typed_errors(path: Path) -> None:
    for read in (read_pairs, read_prompts):
        for rejects in (None, []):
            try:
                kept = read(path, rejects=rejects)
            except DataError as error:
                str(error).encode()
            else:
                rows = sum(1 for _ in jsonl_rows(path))
                assert 0 < len(kept) == rows - len(rejects or [])


@settings(deadline=None)
@given(st.binary(max_size=120))
@example(b'{"prompt": ' + b"9" * 4301 + b"}")
@example(b"[" * 2000)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(content)
    only_typed_errors(path)


@settings(deadline=None)
@given(st.lists(json_values | near_rows, max_size=3), st.integers(0, 400), st.binary(max_size=2))
def test_any_json_with_a_damaged_part(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], at: int, splice: bytes
) -> None:
    content = b"\n".join(json.dumps(row).encode() for row in rows)
    path = tmp_path_factory.getbasetemp() / "spliced.jsonl"
    path.write_bytes(content[:at] + splice + content[at + len(splice) :])
    only_typed_errors(path)


@settings(deadline=None)
@given(near_rows)
def test_a_pair_is_always_fit_for_the_renderer(row: dict[str, Any]) -> None:
    try:
        pairs = read_pairs([row, row], rejects=[])
    except DataError:
        return
    for pair in pairs:
        assert pair.chosen.strip()
        assert pair.rejected.strip()
        assert pair.chosen != pair.rejected
        assert isinstance(pair.prompt, str) or pair.prompt
        json.dumps([pair.prompt, pair.chosen, pair.rejected], ensure_ascii=False).encode()
