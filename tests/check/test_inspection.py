"""`inspect`: counts that a second, plain count confirms, and a page that says them and loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srpo.check.inspection import MEASURES, Inspection, inspect
from srpo.data.read import Pair
from srpo.errors import DataError, InputError
from srpo.sequences import parallel
from srpo.sequences.render import Renderer
from srpo.sequences.tree import PrefixTree
from srpo.train.dataset import TreeDataset
from tests.conftest import make_byte_tokenizer

RENDERER = Renderer(make_byte_tokenizer())
ROWS = [{"prompt": f"{'p' * n}? ", "chosen": "c" * (n % 5 + 1), "rejected": "r" * (n % 3 + 1)} for n in range(1, 31)]
BAD = [{"prompt": "p"}, {"prompt": "p", "chosen": "a", "rejected": 4}, {"prompt": "p", "chosen": "b", "rejected": 5}]


def plain(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [RENDERER.six(Pair(row["prompt"], row["chosen"], row["rejected"])) for row in rows]


def test_the_counts() -> None:
    limit = 50
    found = inspect([*ROWS, ROWS[3], *BAD], RENDERER, max_length=limit, num_proc=1)
    sixes = plain([*ROWS, ROWS[3]])
    longest = [max(len(context) + len(answer) for context, answer in six) for six in sixes]
    fit = [six for six, tokens in zip(sixes, longest, strict=True) if tokens <= limit]
    assert (found.rows, found.usable, found.duplicates) == (len(sixes) + 3, len(fit), 1)
    assert found.over == len(sixes) - len(fit) == found.lengths["longest"].over > 0
    assert found.flat_tokens == sum(len(context) + len(answer) for six in fit for context, answer in six)
    assert found.packed_tokens == sum(len(PrefixTree.pack(six)) for six in fit)
    assert tuple(found.lengths) == MEASURES
    for name, k in zip(MEASURES[3:9], range(6), strict=True):
        ordered = sorted(len(six[k].context) + len(six[k].answer) for six in sixes)
        assert found.lengths[name][:3] == (ordered[15], ordered[round(0.95 * 30)], ordered[-1])
    assert found.lengths["prompt"].longest == max(len(six[0].context) for six in sixes)
    assert found.unusable == found.over + 3
    # Reasons that differ in their numbers alone are one reason, without the first row's numbers; its places are named.
    assert found.reasons[0].reason.startswith("… tokens, over the limit of 50 (as drafts …")
    left_out = TreeDataset.build([*ROWS, ROWS[3], *BAD], RENDERER, max_length=limit, bad_rows="skip")
    assert (len(left_out), len(left_out.rejects)) == (found.usable, found.unusable)  # training counts the same
    counts = [(each.count, each.where[0]) for each in found.reasons]
    assert counts == [
        (found.over, found.reasons[0].where[0]),
        (2, f"row {len(sixes) + 2}"),
        (1, f"row {len(sixes) + 1}"),
    ]
    assert len(found.reasons[0].where) == 5


def test_cut_prompts_are_counted() -> None:
    found = inspect(ROWS, RENDERER, max_length=50, truncate="prompt", num_proc=1)
    assert (found.usable, found.cut) == (len(ROWS), found.over)
    assert found.over > 0
    assert f"{found.cut} prompts are cut to fit" in "\n".join(found.sentences())


def test_rows_of_the_evaluation_set_that_are_trained_on() -> None:
    asked = [{"role": "user", "content": ROWS[0]["prompt"]}]
    answers = {key: [{"role": "assistant", "content": ROWS[0][key]}] for key in ("chosen", "rejected")}
    evaluation = [ROWS[5], {**ROWS[7], "chosen": "other"}, {"prompt": "new", "chosen": "a", "rejected": "b"}]
    found = inspect(ROWS, RENDERER, evaluation=evaluation, num_proc=1)
    assert (found.evaluation_rows, found.leaked_prompts, found.leaked_pairs) == (3, 2, 1)
    assert found.leaks == ["row 1 is row 6", "row 2 is row 8"]
    # A prompt is the same as text and as a message.
    found = inspect(ROWS, RENDERER, evaluation=[{"prompt": asked, **answers}], num_proc=1)
    assert (found.leaked_prompts, found.leaked_pairs) == (1, 1)
    assert inspect(ROWS, RENDERER, num_proc=1).evaluation_rows is None


@pytest.mark.usefixtures("small_store")
def test_several_processes_find_the_same() -> None:
    count = parallel.ALONE + 70
    rows = [{"prompt": f"{n} is ", "chosen": "even"[: n % 4 + 1], "rejected": "odd"} for n in range(count)]
    assert inspect([*rows, *BAD], RENDERER, num_proc=2) == inspect([*rows, *BAD], RENDERER, num_proc=1)


def test_examples_are_spread_over_the_data() -> None:
    for examples in (3, 2, 40, 1, 0):
        found = inspect(ROWS, RENDERER, examples=examples, num_proc=1)
        places = [int(each.where.removeprefix("row ")) for each in found.examples[::2]]
        assert len(places) == min(examples, 30)
        assert places == sorted(set(places))
        assert not places or places[0] == 1
        assert examples < 2 or places[-1] > 25


def test_costs_and_duplicates_are_printed_in_words() -> None:
    found = inspect([*ROWS, ROWS[3]], RENDERER, num_proc=1)
    text = "\n".join(found.sentences())
    assert f"{found.packed_tokens / 31:.0f} tokens per pair on average" in text
    assert "4 steps per epoch at a batch size of 8" in text
    assert "1 duplicates: pairs equal to an earlier one, all of which are trained on" in text
    assert "duplicates" not in "\n".join(inspect(ROWS, RENDERER, num_proc=1).sentences())


def test_nothing_usable(tmp_path: Path) -> None:
    same = [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 32
    with pytest.raises(DataError, match=r"0 of 32 rows usable: 32 × .*identical"):
        inspect(same, RENDERER)
    with pytest.raises(DataError, match=r"0 of 30 rows usable: 30 × .*over the limit of 5"):
        inspect(ROWS, RENDERER, max_length=5)
    with pytest.raises(InputError, match="no such file"):
        inspect(tmp_path / "nowhere.jsonl", RENDERER)


@pytest.fixture(scope="module")
def found() -> Inspection:
    rows = [{"prompt": "<script>alert(1)</script> & ", "chosen": "<b>yes</b>", "rejected": "no"}, *ROWS, *BAD]
    return inspect(rows, RENDERER, max_length=70, evaluation=ROWS[:2], examples=2, num_proc=1)


def test_as_json(found: Inspection) -> None:
    row = json.loads(found.to_json())
    assert row["usable"] == found.usable
    assert row["lengths"]["longest"] == found.lengths["longest"]._asdict()
    assert row["reasons"][0]["count"] == found.reasons[0].count
    assert row["examples"][0]["answer"] == "<b>yes</b><eos>"


def test_the_page_shows_the_findings_and_loads_nothing(found: Inspection) -> None:
    page = found.to_html()
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    for sentence in found.sentences()[1:]:
        assert sentence in text
    # What stands in a row is shown, never run.
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in text
    assert "<mark>&lt;b&gt;yes&lt;/b&gt;&lt;eos&gt;</mark>" in text
    assert not re.search(r"\b(src|href)=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


# ---------------------------------------------------------------------- a second look

MANY = [{"prompt": f"{n} and ", "chosen": "c" * (n % 7 + 1), "rejected": "r" * (n % 5 + 1)} for n in range(1200)]
MIXED = [*MANY[::10], *BAD, MANY[30], {"prompt": "q" * 200, "chosen": "a", "rejected": "b"}]


def look(file: Path, cache: Path, rows: list[dict[str, Any]] = MIXED, **changed: Any) -> Inspection:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = {"renderer": RENDERER, "max_length": 100, "num_proc": 1, **changed}
    return inspect(file, settings.pop("renderer"), cache=cache, **settings)


@pytest.mark.usefixtures("small_store")
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_second_look_tokenises_nothing(num_proc: int, tmp_path: Path) -> None:
    file, cache = tmp_path / "pairs.jsonl", tmp_path / "cache"
    rows = [{**row, "prompt": f"{turn}{row['prompt']}"} for turn in range(num_proc * 2) for row in MIXED]
    first, again = (look(file, cache, rows, num_proc=num_proc) for _ in range(2))
    pairs = len(rows) - sum(row.get("rejected") in (None, 4, 5) for row in rows)
    assert pairs - first.duplicates <= first.tokenised <= pairs
    assert again.tokenised == 0
    assert replace(again, tokenised=first.tokenised) == first
    assert "nothing was tokenised" in "\n".join(again.sentences())
    # Of a file with one row changed, one row.
    assert look(file, cache, [{**rows[0], "chosen": "other"}, *rows[1:]], num_proc=num_proc).tokenised == 1


def test_few_rows_are_not_stored_and_a_folder_without_permission_stops_nothing(tmp_path: Path) -> None:
    look(tmp_path / "pairs.jsonl", tmp_path / "cache", MANY[:900])
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("in the way")
    assert look(tmp_path / "pairs.jsonl", tmp_path / "file" / "cache", MANY).usable == len(MANY)
