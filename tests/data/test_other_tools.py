"""Files and rows as other tools write them: read with the same pairs, or rejected with the reason."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from srpo.data.read import Pair, Reject, Source, read_pairs, read_prompts
from srpo.data.rejected import rejected_lines
from srpo.data.source import evaluation_source
from srpo.errors import DataError, InputError

ROWS = [{"prompt": f"{n}+1=", "chosen": f"é{n + 1}", "rejected": "7"} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def texts(pairs: list[Pair]) -> list[tuple[Any, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


EXPECTED = [(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl.gz", gzip.compress(LINES)),
        ("p.jsonl.zst", zstd(LINES)),
        ("p.jsonl.bz2", bz2.compress(LINES)),
        ("p.jsonl.xz", lzma.compress(LINES)),
        ("p.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("packed-without-an-ending", gzip.compress(LINES)),
        ("utf-16.jsonl", LINES.decode().encode("utf-16")),
        ("utf-16.jsonl.gz", gzip.compress(LINES.decode().encode("utf-16"))),
        (
            "p.csv.gz",
            gzip.compress(b"prompt,chosen,rejected\n" + "".join(f"{a},{b},{c}\n" for a, b, c in EXPECTED).encode()),
        ),
        ("p.tsv", b"prompt\tchosen\trejected\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in EXPECTED).encode()),
        (
            "p.tsv",
            ("prompt\tchosen\trejected\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in EXPECTED)).encode("utf-16"),
        ),
        ("without-a-mark.jsonl", LINES.decode().encode("utf-16-le")),
        ("without-a-mark.jsonl", LINES.decode().encode("utf-16-be")),
        *(
            (
                "p.csv",
                f"prompt{x}chosen{x}rejected\n".encode()
                + "".join(f"{a}{x}{b}{x}{c}\n" for a, b, c in EXPECTED).encode(),
            )
            for x in ";|\t"
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_packed_and_recoded_files_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert texts(read_pairs(tmp_path / name)) == EXPECTED


@pytest.mark.parametrize("name", ["p.arrow", "p.parquet", "arrow", "parquet", "stream.arrow"])
def test_arrow_and_parquet_are_recognised(tmp_path: Path, name: str) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    table, file = pyarrow.Table.from_pylist(ROWS), tmp_path / name
    if "parquet" in name:
        parquet.write_table(table, file)
    else:
        make = ipc.new_stream if "stream" in name else ipc.new_file
        with pyarrow.OSFile(str(file), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)
    assert texts(read_pairs(file)) == EXPECTED
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a whole"):
        read_pairs(file)


def archive(kind: str) -> bytes:
    """The file `p.jsonl`, whole and not compressed, in an archive: its lines could be taken for a file of rows."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("p.jsonl", LINES)
    else:
        with tarfile.open(fileobj=file, mode="w") as packed:
            member = tarfile.TarInfo("p.jsonl")
            member.size = len(LINES)
            packed.addfile(member, io.BytesIO(LINES))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.zip", archive("zip"), "this is a zip archive or a spreadsheet; .*; unpack it"),
        ("p.jsonl", archive("tar"), "this is a tar archive"),
        ("p.tar.gz", gzip.compress(archive("tar")), "this is a tar archive"),
        ("p.csv", b"PK\x03\x04 a spreadsheet with the wrong ending", "spreadsheet"),
        ("p.orc", b"ORC\n\x06\x12\x04\x08" + LINES, "this is an ORC file; .*; export its rows"),
        ("p.pkl", pickle.dumps(ROWS), "this is a pickle"),
    ],
)
def test_a_file_that_is_not_text_is_refused_whole(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_pairs(tmp_path / name)


def test_a_text_that_begins_like_another_kind_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("ORCID,prompt,chosen,rejected\n1,a,b,c\n")
    assert texts(read_pairs(tmp_path / "p.csv")) == [("a", "b", "c")]


def test_half_a_packed_file_is_an_error(tmp_path: Path) -> None:
    for name, content in (("p.jsonl.gz", gzip.compress(LINES * 99)), ("p.jsonl.xz", lzma.compress(LINES * 99))):
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{name}: not a whole compressed file"):
            read_pairs(tmp_path / name)
    with pytest.raises(InputError, match="no such file; expected a JSONL file"):
        read_pairs(tmp_path / "gone.jsonl.gz")


def test_rejected_lines_of_a_packed_file(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(LINES + b'{"prompt": 4}\n'))
    rejects: list[Reject] = []
    read_pairs(tmp_path / "p.jsonl.gz", rejects=rejects)
    [line] = rejected_lines(tmp_path / "p.jsonl.gz", rejects)
    assert json.loads(line)["raw"] == '{"prompt": 4}'


# ---------------------------------------------------------------------- lists as text


def messages(row: dict[str, str], key: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[key]}]


@pytest.mark.parametrize(
    "write", [json.dumps, str, lambda value: json.dumps(value, indent=1)], ids=["json", "python", "lines"]
)
def test_lists_of_messages_as_text_are_read(tmp_path: Path, write: Any) -> None:
    rows = [
        {**row, "chosen": write(messages(row, "chosen")), "rejected": write(messages(row, "rejected"))} for row in ROWS
    ]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        out.writeheader()
        out.writerows(rows)
    for source in (rows, tmp_path / "p.csv"):
        assert [pair.chosen for pair in read_pairs(source)] == [row["chosen"] for row in ROWS]
    whole = [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in rows]  # the prompt is in the lists
    assert [pair.prompt for pair in read_pairs(whole)] == [[{"role": "user", "content": row["prompt"]}] for row in ROWS]


def test_text_that_only_looks_like_messages_is_rejected_and_other_json_stays_text() -> None:
    numpy = "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"  # as pandas writes an array
    with pytest.raises(DataError, match="'chosen' looks like messages that were written as text"):
        read_pairs([{"prompt": "p", "chosen": numpy, "rejected": numpy}])
    # Control: an answer in JSON that is no message is an answer.
    for answer in ('[{"name": "Ann"}]', "[1, 2]", "{'a': 1}", '{"roles": []}'):
        [pair] = read_pairs([{"prompt": "p", "chosen": answer, "rejected": "no"}])
        assert pair.chosen == answer


def test_lists_as_python_writes_them_in_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,completions,scores\np,\"['a', 'b']\",\"[1, 2]\"\n")
    assert texts(read_pairs(tmp_path / "p.csv")) == [("p", "b", "a")]
    (tmp_path / "p.csv").write_text('prompt,completions,scores\np,"[\'a\', b]","[1, 2]"\n')
    with pytest.raises(DataError, match="'completions': not JSON"):
        read_pairs(tmp_path / "p.csv")


# ---------------------------------------------------------------------- messages


def test_names_and_thinking_of_messages_are_kept() -> None:
    tool = {"role": "tool", "name": "forecast", "tool_call_id": "c1", "content": "sun"}
    ask = {"role": "user", "content": "so?"}
    chosen = [
        {"role": "assistant", "content": [{"type": "text", "text": "Sun"}, {"text": "ny"}], "reasoning_content": "hm"}
    ]
    row = {
        "prompt": [tool, ask],
        "chosen": chosen,
        "rejected": [{"role": "assistant", "content": "Rain", "name": None}],
    }
    [pair] = read_pairs([row])
    assert pair.prompt == [tool, ask]
    assert (pair.chosen, pair.rejected) == ("<think>\nhm\n</think>\n\nSunny", "Rain")
    assert pair.reasoned
    # Control: thinking inside the content is part of the text.
    [pair] = read_pairs([{**row, "chosen": [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny"}]}])
    assert not pair.reasoned


# ---------------------------------------------------------------------- tables in memory, splits


def test_tables_in_memory_are_read() -> None:
    import datasets
    import pandas
    import pyarrow

    nested = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], **{k: row[k] for k in ("chosen", "rejected")}}
        for row in ROWS
    ]
    frame = datasets.Dataset.from_list(nested).to_pandas()  # its lists are arrays
    assert read_pairs(frame) == read_pairs(nested)
    for table in (pandas.DataFrame(ROWS), pyarrow.Table.from_pylist(ROWS), datasets.Dataset.from_list(ROWS)):
        assert texts(read_pairs(table)) == EXPECTED
    missing = pandas.DataFrame([{**ROWS[0], "system": "Add."}, {**ROWS[1], "system": float("nan")}])
    assert [isinstance(row.prompt, str) for row in read_prompts(missing)] == [False, True]


def test_splits_and_configurations_of_files_are_not_ignored(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "p.jsonl").write_bytes(LINES)
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for name in ("p.jsonl", "saved"):
        origin = str(tmp_path / name)
        assert len(read_pairs(Source(origin))) == len(ROWS)
        assert len(read_pairs(evaluation_source(origin, {}, "all", "test", None))) == len(ROWS)
        for split in ("train[:4]", "test", "validation"):
            with pytest.raises(InputError, match=re.escape(f"no split '{split}'")):
                read_pairs(Source(origin, split=split))
        with pytest.raises(InputError, match="no configuration 'en'"):
            read_pairs(Source(origin, config="en"))
    datasets.DatasetDict({"a": datasets.Dataset.from_list(ROWS[:2])}).save_to_disk(str(tmp_path / "many"))
    assert len(read_pairs(Source(str(tmp_path / "many"), split="a"))) == 2
