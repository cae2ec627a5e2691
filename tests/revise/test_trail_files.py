"""Files of trails: a killed run resumes to an equal file, and files made otherwise are rejected."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from srpo import Reviser
from srpo.errors import ConfigError, DataError, InputError, Interrupted, OutputError
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail_files import revise_file
from tests.revise.tiny import PROMPTS, Scripted, carry_llama, reviser

QUICK = RevisionSettings(revisions=2, max_new_tokens=4)


def write_prompts(file: Path, prompts: list[str]) -> str:
    file.write_text("".join(json.dumps({"prompt": text, "n": i}) + "\n" for i, text in enumerate(prompts)), "utf-8")
    return str(file)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_prompts(tmp_path / "prompts.jsonl", PROMPTS)


@functools.cache
def models() -> list[Any]:
    return [carry_llama(seed, num_hidden_layers=1) for seed in (0, 1)]


def make() -> Reviser:
    model, reference = models()
    return reviser(model, reference=reference, beta=0.3, batch_size=4)


def never() -> Reviser:
    raise AssertionError("no model is needed here")


def rows(file: Path) -> list[dict[str, Any]]:
    """The trails without the seconds they took."""
    found = [json.loads(line) for line in file.read_bytes().decode().split("\n")[:-1]]
    for row in found:
        for answer in row["answers"]:
            del answer["seconds"]
    return found


def test_a_trail_per_prompt_in_order(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert revise_file(make, source, str(out), QUICK) == (len(PROMPTS), 0)
    assert [row["prompt"] for row in rows(out)] == PROMPTS
    assert [row["meta"] for row in rows(out)] == [{"n": i} for i in range(len(PROMPTS))]
    # Done is done: no model is loaded for nothing.
    assert revise_file(never, source, str(out), QUICK) == (len(PROMPTS), len(PROMPTS))


def test_a_killed_run_resumes_to_an_equal_file(source: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    revise_file(make, source, str(whole), QUICK)
    content = whole.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))]
    for done, end in enumerate(ends):
        following = ends[done + 1] - end if done + 1 < len(ends) else 0
        # After every line the run ends cleanly, and inside the next line: after a byte, half way, or before its end.
        for torn in sorted({0, (min(1, following), following // 2, max(0, following - 1))[done % 3]}):
            cut = tmp_path / "cut.jsonl"
            cut.write_bytes(content[: end + torn])
            (tmp_path / "cut.jsonl.settings.json").write_bytes((tmp_path / "whole.jsonl.settings.json").read_bytes())
            assert revise_file(make, source, str(cut), QUICK) == (len(PROMPTS), done)
            assert rows(cut) == rows(whole)
            assert cut.read_bytes()[:end] == content[:end]


def test_control_a_lost_line_is_detected(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    revise_file(make, source, str(out), QUICK)
    lines = out.read_bytes().split(b"\n")
    out.write_bytes(b"\n".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match=r"out\.jsonl:3: a trail of another prompt; choose another --output"):
        revise_file(never, source, str(out), QUICK)


def test_other_prompts_are_rejected(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    revise_file(make, source, str(out), QUICK)
    before = out.read_bytes()
    for prompts, line in (([PROMPTS[1], PROMPTS[0], *PROMPTS[2:]], 1), (PROMPTS[:4], 5)):
        other = write_prompts(tmp_path / "other.jsonl", prompts)
        with pytest.raises(DataError, match=rf"out\.jsonl:{line}: a trail of another prompt") as caught:
            revise_file(never, other, str(out), QUICK)
        assert caught.value.exit_code == 65
    out.write_bytes(b"not a trail\n" + before)
    with pytest.raises(DataError, match=r"out\.jsonl:1: not a trail.*; choose another --output"):
        revise_file(never, source, str(out), QUICK)
    assert out.read_bytes() == b"not a trail\n" + before


def test_added_prompts_are_drawn(source: str, tmp_path: Path) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    first = write_prompts(tmp_path / "first.jsonl", PROMPTS[:5])
    revise_file(make, first, str(out), QUICK)
    assert revise_file(make, source, str(out), QUICK) == (len(PROMPTS), 5)
    revise_file(make, source, str(whole), QUICK)
    ours, theirs = rows(out), rows(whole)
    texts = [[[answer["text"] for answer in row["answers"]] for row in found] for found in (ours, theirs)]
    assert texts[0] == texts[1]


def test_other_settings_are_rejected_with_old_and_new_values(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    revise_file(make, source, str(out), QUICK, made_with={"model": "a"})
    before = out.read_bytes()
    with pytest.raises(ConfigError) as caught:
        revise_file(
            never,
            source,
            str(out),
            RevisionSettings(revisions=3, temperature=0.5, max_new_tokens=4),
            made_with={"model": "b"},
        )
    assert caught.value.exit_code == 78
    assert str(caught.value) == (
        f"{out}: was begun with other settings: revisions 2 → 3, temperature 1.0 → 0.5, model 'a' → 'b'; "
        "use the same settings, or another --output"
    )
    assert out.read_bytes() == before


def test_a_run_without_trails_accepts_other_settings(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def missing() -> Reviser:
        return Reviser(str(tmp_path / "no-such-model"))

    with pytest.raises(InputError, match="no such folder"):
        revise_file(missing, source, str(out), QUICK, made_with={"model": "no-such-model"})
    assert revise_file(make, source, str(out), QUICK, made_with={"model": "right"}) == (len(PROMPTS), 0)
    with pytest.raises(ConfigError, match="model 'right' → 'wrong'"):
        revise_file(never, source, str(out), QUICK, made_with={"model": "wrong"})


def test_line_separators_inside_texts_split_no_line(tmp_path: Path) -> None:
    # JSON leaves these as they are, and str.splitlines splits at them.
    separators = "\u2028\u2029\x85\x0b\x0c\x1c\r"
    prompts = [f"a{separators}b", "plain", f"c{separators}"]
    source, out = write_prompts(tmp_path / "prompts.jsonl", prompts), tmp_path / "out.jsonl"

    def scripted() -> Reviser:
        subject = reviser(batch_size=1)
        Scripted(subject, lambda context: "7", batch_size=1)
        return subject

    revise_file(scripted, source, str(out), QUICK)
    whole = rows(out)
    assert [row["prompt"] for row in whole] == prompts
    first_end = out.read_bytes().index(b"\n") + 1
    out.write_bytes(out.read_bytes()[: first_end + 5])
    assert revise_file(scripted, source, str(out), QUICK) == (3, 1)
    assert rows(out) == whole


def test_ctrl_c_keeps_finished_trails(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def interrupted(context: str) -> str:
        if context.startswith(PROMPTS[3]):
            raise KeyboardInterrupt
        return "7"

    def scripted() -> Reviser:
        subject = reviser()
        Scripted(subject, interrupted, batch_size=2)
        return subject

    with pytest.raises(Interrupted) as caught:
        revise_file(scripted, source, str(out), QUICK)
    assert caught.value.exit_code == 75
    assert str(caught.value) == f"interrupted; finished trails are in {out}; the same command goes on"
    assert [row["prompt"] for row in rows(out)] == PROMPTS[:2]


def test_unusable_prompts_stop_or_are_left_out(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "1+1="}\n{"answer": "2"}\nnot json\n{"prompt": "2+2="}\n', "utf-8")
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be used as prompts"):
        revise_file(never, str(source), str(out), QUICK)
    assert not out.exists()
    assert revise_file(make, str(source), str(out), QUICK, bad_rows="skip") == (2, 0)
    assert [row["prompt"] for row in rows(out)] == ["1+1=", "2+2="]


@pytest.mark.parametrize("where", ["a folder", "below a file", "below nothing"])
def test_an_unwritable_target_raises_an_error(where: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = {
        "a folder": tmp_path / "folder",
        "below a file": Path(source) / "out.jsonl",
        "below nothing": tmp_path / "nothing" / "out.jsonl",
    }[where]
    with pytest.raises(OutputError, match="cannot be written") as caught:
        revise_file(never, source, str(target), QUICK)
    assert (caught.value.exit_code, caught.value.where) == (74, str(target))


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "a"}\n{"prompt": "b"}', b'{"prompt": "b"}', b"my notes without newline", b"one\ntwo"],
    ids=["rows", "a row", "notes", "lines"],
)
@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_a_target_with_other_data_is_rejected_and_left_as_it_is(content: bytes, bad_rows: str, tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "1+1="}\n' + '{"answer": "2"}\n' * (bad_rows == "skip"), "utf-8")
    out.write_bytes(content)
    with pytest.raises(DataError, match=r"out\.jsonl:1: not .*trail") as caught:
        revise_file(never, str(source), str(out), QUICK, bad_rows=bad_rows)
    assert caught.value.exit_code == 65
    assert out.read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"prompts.jsonl", "out.jsonl"}


def test_notes_after_trails_are_not_cut_off(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    revise_file(make, source, str(out), QUICK)
    for notes in (b"my notes", b'{"prompt": "b"}', b'{"text": "b'):
        kept = out.read_bytes()[: out.read_bytes().index(b"\n") + 1] + notes
        out.write_bytes(kept)
        with pytest.raises(DataError, match=r"out\.jsonl:2: not the beginning of a trail; .*choose another --output"):
            revise_file(never, source, str(out), QUICK)
        assert out.read_bytes() == kept


def test_a_single_torn_line_needs_its_settings_file(source: str, tmp_path: Path) -> None:
    out, beside = tmp_path / "out.jsonl", tmp_path / "out.jsonl.settings.json"
    revise_file(make, source, str(out), QUICK)
    torn = out.read_bytes()[:30]
    out.write_bytes(torn)
    settings = beside.read_bytes()
    beside.unlink()
    with pytest.raises(DataError, match="not the beginning of a trail"):
        revise_file(never, source, str(out), QUICK)
    assert (out.read_bytes(), beside.exists()) == (torn, False)
    beside.write_bytes(settings)
    assert revise_file(make, source, str(out), QUICK) == (len(PROMPTS), 0)


@pytest.mark.parametrize("damaged", ["{", "[]", "\xff", "[" * 100_000])
def test_damaged_settings_are_named(damaged: str, source: str, tmp_path: Path) -> None:
    out, beside = tmp_path / "out.jsonl", tmp_path / "out.jsonl.settings.json"
    revise_file(make, source, str(out), QUICK)
    before = out.read_bytes()
    beside.write_bytes(damaged.encode("latin-1"))
    said = r"out\.jsonl\.settings\.json: damaged; .*choose another --output; or delete the settings"
    with pytest.raises(DataError, match=said):
        revise_file(never, source, str(out), QUICK)
    assert (out.read_bytes(), beside.read_bytes()) == (before, damaged.encode("latin-1"))


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ({"dtype": "bfloat16"}, {}, "dtype 'bfloat16' → not set"),
        ({}, {"dtype": "bfloat16"}, "dtype not set → 'bfloat16'"),
        ({"engine": "openai"}, {}, "engine 'openai' → not set"),
    ],
)
def test_a_setting_missing_on_one_side_is_a_change(
    first: dict[str, str], then: dict[str, str], said: str, source: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    revise_file(make, source, str(out), QUICK, made_with=first)
    with pytest.raises(ConfigError, match=f"was begun with other settings: {said};"):
        revise_file(never, source, str(out), QUICK, made_with=then)
    # Nothing named and named as nothing are the same.
    assert revise_file(never, source, str(out), QUICK, made_with={**first, "calibrated": ""})[1] == len(PROMPTS)
