"""`srpo evaluate`: files in, report and table out; every mistake named with its place and code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from srpo.cli.evaluate import main
from srpo.errors import ConfigError, DataError, InputError, OutputError, SRPOError, UsageError
from srpo.evaluate.plan import Model, Plan
from srpo.evaluate.run import evaluate
from srpo.judge.single import exact_match
from srpo.revise.trail import Answer, Trail
from srpo.score.results_file import read_results
from tests.evaluate import samples
from tests.judge import judge_server as js
from tests.scripted_server import serve
from tests.sequences.pictured import png
from tests.warm_command import srpo_in_a_fork


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """srpo.jsonl and dpo.jsonl for two splits, and another seed of each."""
    for (seed, system, split, _), rows in samples.cells(prompts=12).items():
        path = tmp_path / f"{system.lower()}{seed or ''}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                row.meta["split"] = split
                file.write(row.to_json() + "\n")
    return tmp_path


def test_the_command_writes_a_report_and_prints_the_findings(files: Path) -> None:
    words = [
        f"SRPO={files}/srpo.jsonl",
        f"{files}/dpo.jsonl",
        f"SRPO={files}/srpo1.jsonl",
        "--secondary",
        "per_character",
    ]
    environment = {**os.environ, "COLUMNS": "100"}
    done = srpo_in_a_fork("evaluate", "--trails", *words, "--output_dir", str(files / "out"), env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    results = read_results(files / "out" / "results.json")
    assert results.values("system") == ["SRPO", "dpo"]
    assert results.values("split") == ["in", "out"]
    assert {(row["system"], row["seed"]) for row in results.rows} == {
        ("SRPO", 0),
        ("SRPO", 1),
        ("SRPO", "pool"),
        ("dpo", 0),
        ("dpo", "pool"),
    }
    assert results.settings["secondary"] == ["per_character"]
    shown = " ".join(done.stdout.split())
    for sentence in results.verdict:
        assert sentence in shown
    assert f"The report is {files / 'out' / 'report.html'}" in shown
    assert "In: exactly right answers, % (n = 12 to 24" in shown


def test_the_same_command_gives_the_same_files(files: Path) -> None:
    for folder in ("a", "b"):
        assert main(["--trails", f"{files}/srpo.jsonl", "--output_dir", str(files / folder), "--seed", "3"]) == 0
    for name in ("results.json", "results.csv", "curve.png", "curve.svg"):
        assert (files / "a" / name).read_bytes() == (files / "b" / name).read_bytes()
    assert read_results(files / "a" / "results.json").settings["seed"] == 3


@pytest.mark.usefixtures("empty_figures")
def test_another_system_can_be_highlighted(files: Path) -> None:
    words = ["--trails", f"{files}/srpo.jsonl", f"{files}/dpo.jsonl", "--highlight", "dpo"]
    main([*words, "--output_dir", str(files / "out"), "--judge", "per_character"])
    results = read_results(files / "out" / "results.json")
    assert results.highlight == "dpo"
    assert {each.a.system for each in results.comparisons} == {"dpo"}


@pytest.mark.usefixtures("empty_figures")
def test_curves_select_systems_and_labels_rename_them(files: Path) -> None:
    words = ["--trails", f"SRPO={files}/srpo.jsonl", f"{files}/dpo.jsonl", "--output_dir", str(files / "out")]
    main([*words, "--curves", "dpo", "--labels", "SRPO=ours & mine", "in=known sums", "exact_match=right"])
    results = read_results(files / "out" / "results.json")
    assert (results.drawn, results.values("system")) == (["dpo"], ["SRPO", "dpo"])
    page = (files / "out" / "report.html").read_text("utf-8")
    assert all(label in page for label in ("ours &amp; mine", "Known sums", "Right"))
    with pytest.raises(ConfigError, match=r"labels: nothing is named 'inn'.*did you mean 'in'"):
        main([*words, "--labels", "inn=x"])
    with pytest.raises(ConfigError, match="curves: no system 'dpp'; expected SRPO or dpo; did you mean 'dpo'"):
        main([*words, "--curves", "dpp"])


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize(("judge", "share"), [(js.fickle(lambda seen: seen.prompt[-1] in "13"), 0.5), (js.honest, 0.0)])
def test_judge_runs_measure_disagreement(
    judge: js.Judge, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Trail(f"question {n}", (Answer("bad", 1), Answer("good", 1)), meta={"gold": "good good"}) for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = ["--trails", "a.jsonl", "--output_dir", "out", "--judge_runs", "2"]
    with serve(js.judging(judge)) as server:
        model = ["--judge", "llm", "--judge_model", "m", "--judge_base_url", server.url]
        assert main([*words[:-2], *model]) == 0  # the first run before the second, which is all that is asked below
        (once,) = {row["disagreement"] for row in read_results(tmp_path / "out" / "results.json").judging}
        assert (once, len(server.bodies)) == (None, 4 * 3 * 2)  # draft and revision with gold, and with each other
        assert main([*words, *model]) == 0
        assert len(server.bodies) == 2 * 4 * 3 * 2
    counts = {row["against"]: row for row in read_results(tmp_path / "out" / "results.json").judging}
    assert {against: (row["disagreement"], row["flips"]) for against, row in counts.items()} == {
        "gold": (share, 0.0),
        "draft": (share, 0.0),
    }
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count(f"<td>0.0 %</td><td>{100 * share:.1f} %</td>") == 2  # flips and, beside them, disagreement
    with pytest.raises(ConfigError, match="judge_runs: exact_match asks no server"):
        main(words)
    with pytest.raises(ConfigError, match="max_cost: exact_match asks no server"):
        main([*words[:-2], "--max_cost", "2", "--price_in", "1", "--price_out", "1"])


@pytest.mark.usefixtures("empty_figures")
def test_a_bom_and_blank_lines_are_skipped(files: Path) -> None:
    text = (files / "srpo.jsonl").read_text("utf-8").replace("\n", "\r\n\r\n")
    (files / "bom.jsonl").write_text("\ufeff" + text, "utf-8")
    main(["--trails", f"{files}/srpo.jsonl", f"{files}/bom.jsonl", "--output_dir", str(files / "out")])
    rows = json.loads((files / "out" / "results.json").read_text("utf-8"))["rows"]
    assert {row["n"] for row in rows} == {12}


GOOD = Trail("a", (Answer("1", 1),), meta={"gold": "1"}).to_json()
NO_GOLD = Trail("b", (Answer("1", 1),), meta={"answer": "1"}).to_json()
OTHER = Trail("b", (Answer("1", 1),), meta={"gold": "1"}).to_json()


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--trails", "none.jsonl"], InputError, r"none\.jsonl: no such file"),
        (["--trails", "sub"], InputError, "cannot be read"),
        (["--trails", "no_gold.jsonl"], DataError, r"no_gold\.jsonl:2: no 'gold' in meta, only 'answer'"),
        (["--trails", "torn.jsonl"], DataError, r"torn\.jsonl:2: not a trail"),
        (["--trails", "meta.jsonl"], DataError, r"meta\.jsonl:1: not a trail"),
        (["--trails", "number.jsonl"], DataError, r"number\.jsonl:1: not a trail"),
        (["--trails", "latin.jsonl"], DataError, r"latin\.jsonl:1: not UTF-8: byte 0xe9"),
        (["--trails", "empty.jsonl"], DataError, r"empty\.jsonl: no trails"),
        (["--trails", "good.jsonl", "other.jsonl"], DataError, "not the prompts of good"),
        (["--trails", "good.jsonl", "sub/good.jsonl"], ConfigError, "two systems named 'good'.*name them"),
        (["--trails", "=good.jsonl"], ConfigError, "names no file"),
        (["--trails", "x="], ConfigError, "names no file"),
        (["--trails", "good.jsonl", "--judge", "exact_mach"], ConfigError, "did you mean 'exact_match'"),
        (["--trails", "good.jsonl", "--secondary", "per_charcter"], ConfigError, "did you mean 'per_character'"),
        (["--trails", "good.jsonl", "--highlight", "god"], ConfigError, "did you mean 'good'"),
        (["--trails", "good.jsonl", "--output_dir", "good.jsonl/out"], OutputError, "cannot be written"),
        (["--trails"], UsageError, "expected at least one argument"),
        (["--trails", "good.jsonl", "--juge", "x"], UsageError, "did you mean '--judge'"),
    ],
)
def test_mistakes_in_files_and_flags_are_named(
    words: list[str], kind: type[SRPOError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    texts = {
        "good": GOOD,
        "sub/good": GOOD,
        "other": OTHER,
        "no_gold": f"{GOOD}\n{NO_GOLD}",
        "torn": f"{GOOD}\n{GOOD[:-9]}",
        "meta": GOOD.replace('{"gold": "1"}', "null"),
        "number": GOOD.replace('"text": "1"', '"text": 1'),
        "latin": GOOD.replace('"a"', '"é"'),
        "empty": "\n",
    }
    for name, text in texts.items():
        encoding = "latin-1" if name == "latin" else "utf-8"
        (tmp_path / f"{name}.jsonl").write_bytes(text.encode(encoding))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=said) as caught:
        main(words if "--output_dir" in words else [*words, "--output_dir", "out"])
    assert type(caught.value) is kind


def test_trails_need_only_a_gold_answer(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(GOOD.replace("gold", "label"), "utf-8")
    assert main(["--trails", f"{tmp_path}/one.jsonl", "--gold_key", "label", "--output_dir", str(tmp_path / "o")]) == 0


@pytest.mark.parametrize("name", ["llm", "reward:none"])
def test_judges_that_read_prompts_refuse_pictures_before_anything_is_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "What?", "image": "a.png", "gold": "red"}))
    plan = Plan(models={"SRPO": Model("none")}, prompts={"in": str(file)}, output_dir=str(tmp_path / "out"))
    monkeypatch.setattr("srpo.evaluate.run.draw_all", lambda *_: pytest.fail("drawn"))
    with pytest.raises(DataError, match=f"judge {name} is not shown pictures"):
        evaluate(plan, {name: exact_match})
