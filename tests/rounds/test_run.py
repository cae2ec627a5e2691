"""Rounds from end to end, small: each stage is there, goes on where it was, and is what its own command would make."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srpo import read_pairs
from srpo.errors import ConfigError, DataError, UsageError
from srpo.judge.single import per_character
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.revise.trail import IMPOSSIBLE, Answer, Trail
from srpo.revise.trail_files import read_trails
from srpo.rounds.candidates import Candidate, find
from srpo.rounds.plan import RoundsArguments
from srpo.rounds.run import SETTINGS_FILE, Round, _duels, _expect_same, run_rounds
from srpo.rounds.sources import RoundsSources
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, sums, untrained_base, write_rows
from srpo.train.run import train_with
from tests.data.test_pictures import url
from tests.sequences.pictured import png


class RightDigits:
    """The carry task's judge; remembers what it was asked."""

    identity = "right digits"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str, str]] = []

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        for each in comparisons:
            self.asked.append((each.prompt, each.first, each.second))
            one, other = (per_character(each.prompt, text, each.gold) for text in (each.first, each.second))
            yield Verdict(0.5 + 0.5 * ((one > other) - (one < other)))


PLAN: dict[str, Any] = {
    "rounds": 2,
    "sample_max_new_tokens": 4,
    "labels_per_round": 30,
    "round_steps": 2,
    "validation_revisions": 1,
    "patience": 5,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    untrained_base(BaseConfig(digits=2, hidden=24, layers=1, heads=2)).save_pretrained(folder / "base")
    carry_tokenizer().save_pretrained(folder / "base")
    TEMPLATE.save(folder / "base")
    rows = sums(40, "in", digits=2, seed=1)
    write_rows(folder / "pairs.jsonl", [{**row, "chosen": row["gold"], "rejected": "000"} for row in rows])
    write_rows(folder / "prompts.jsonl", sums(20, "in", digits=2, seed=2))
    write_rows(folder / "validation.jsonl", sums(10, "in", digits=2, seed=3))
    return folder


def settings(files: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(files / "base"),
        "dataset_name": str(files / "pairs.jsonl"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "beta": 0.1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def plan(files: Path, **changed: Any) -> RoundsArguments:
    paths = {"sample_prompts": str(files / "prompts.jsonl"), "validation_prompts": str(files / "validation.jsonl")}
    return RoundsArguments(**{**PLAN, **paths, **changed})


@pytest.fixture(scope="module")
def ran(files: Path) -> tuple[Path, list[Round], RightDigits]:
    out, judge = files / "run", RightDigits()
    return out, run_rounds(str(out), settings(files), plan(files), judge, train_with), judge


def test_each_round_writes_the_files_of_its_stages(ran: tuple[Path, list[Round], RightDigits]) -> None:
    out, done, _ = ran
    assert [each.round for each in done] == [0, 1, 2]
    assert [each.labels for each in done] == [0, 30, 30]
    for each in done[1:]:
        here = out / f"round{each.round}"
        trails = read_trails(here / "trails.jsonl")
        assert len(trails) == 2 * 20
        assert trails[0].prompt == trails[1].prompt
        drafts = [trail.answers[0].text for trail in trails]
        assert any(one != other for one, other in zip(drafts[::2], drafts[1::2], strict=True))  # drawn anew
        assert len(read_pairs(here / "pairs.jsonl")) == each.pairs > 0
        assert each.informative == each.pairs / 30
        assert (here / "model" / "model.safetensors").exists()
        assert set(each.seconds) == {"sample", "label", "train", "validate"}
    assert json.loads((out / "rounds.json").read_text())[2]["round"] == 2


def test_a_round_continues_the_model_with_the_first_reference(
    ran: tuple[Path, list[Round], RightDigits], files: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    out, _, _ = ran
    weights = [load_file(folder / "model.safetensors") for folder in (files / "base", out / "round0/model")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    again = out.parent / "again"
    train_with(
        settings(files)
        | {
            "model_name_or_path": str(out / "round0/model"),
            "ref_model_name_or_path": str(files / "base"),
            "dataset_name": str(out / "round1/pairs.jsonl"),
            "output_dir": str(again),
            "seed": 43,
            "group_by_prompt": True,
        }
    )
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out / "round1/model", again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    moving = settings(files) | {
        "model_name_or_path": str(out / "round0/model"),
        "dataset_name": str(out / "round1/pairs.jsonl"),
        "output_dir": str(out.parent / "moving"),
        "seed": 43,
    }
    train_with(moving)  # another reference, another model: the comparison above can fail
    other = load_file(out.parent / "moving" / "model.safetensors")
    assert any(not torch.equal(ours[name], other[name]) for name in ours)


def test_round_zero_has_win_rate_one_half_at_zero_revisions(ran: tuple[Path, list[Round], RightDigits]) -> None:
    _, done, _ = ran
    assert done[0].validation[0] == 0.5
    assert all(len(each.validation) == 2 and each.best_k in (0, 1) for each in done)


def test_running_again_judges_nothing_and_changes_nothing(
    ran: tuple[Path, list[Round], RightDigits], files: Path
) -> None:
    out, done, _ = ran
    before = {path: path.read_bytes() for path in sorted(out.rglob("pairs.jsonl"))}
    judge = RightDigits()
    again = run_rounds(str(out), settings(files), plan(files), judge, train_with)
    assert [(each.labels, each.pairs, each.validation) for each in again] == [
        (each.labels, each.pairs, each.validation) for each in done
    ]
    assert {path: path.read_bytes() for path in sorted(out.rglob("pairs.jsonl"))} == before
    assert judge.asked == []


def test_no_comparison_is_judged_twice(ran: tuple[Path, list[Round], RightDigits]) -> None:
    _, _, judge = ran
    assert len(judge.asked) == len(set(judge.asked)) > 60


def test_offline_pairs_are_mixed_in_and_all_files_follow_map_and_bad_rows(files: Path) -> None:
    """The rows of each file have other columns and one is unusable; the rounds' own pairs have srpo's columns."""
    out, paths = files / "mixed", {}
    for name in ("pairs", "prompts"):
        rows = [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        renamed = [{"question": row.pop("prompt"), "good": row.pop("chosen", ""), **row} for row in rows]
        paths[name] = files / f"mapped-{name}.jsonl"
        write_rows(paths[name], [{"question": 5, "good": "x", "rejected": "y"}, *renamed])
    mapped = {"dataset_name": str(paths["pairs"]), "map": "prompt=question,chosen=good", "bad_rows": "skip"}
    wanted = plan(files, rounds=1, offline_share=0.5, sample_prompts=str(paths["prompts"]), validation_prompts=None)
    done = run_rounds(str(out), settings(files) | mapped, wanted, RightDigits(), train_with)
    assert done[1].offline == done[1].pairs
    assert len(read_pairs(out / "round1" / "mixed.jsonl")) == 2 * done[1].pairs
    assert len(read_trails(out / "round1" / "trails.jsonl")) == 2 * 20


def test_settings_that_rounds_could_not_follow_are_refused(files: Path) -> None:
    for changed, words in (
        ({"eval_strategy": "steps"}, "eval_strategy: the pairs of rounds have no test split"),
        ({"eval_dataset_name": "e.jsonl", "map": "prompt=q"}, "map: rounds would read eval_dataset_name without it"),
        ({"eval_dataset_name": "some/set", "dataset_config": "c"}, "dataset_config: rounds would read"),
    ):
        with pytest.raises(ConfigError, match=words):
            RoundsSources.of(settings(files) | changed, plan(files))
    for usable in ({"eval_dataset_name": "e.jsonl", "dataset_config": "c"}, {"eval_dataset_name": "some/set"}):
        RoundsSources.of(settings(files) | usable, plan(files))
    with pytest.raises(UsageError, match="no dataset_name"):
        RoundsSources.of({}, plan(files))


def test_failed_trails_of_validation_are_not_compared() -> None:
    answers = [Answer("1", 1), Answer("2", 1)]
    whole, failed = Trail("a", answers, "revisions"), Trail("b", answers, f"{IMPOSSIBLE}no room")
    assert [each.prompt for each in _duels([whole, failed, whole], [whole, whole, failed], 1, "gold")] == ["a"]


def test_uncertain_comparisons_are_labelled_first(files: Path) -> None:
    out = files / "uncertain"
    wanted = plan(files, choose="uncertain", ask="draft-revision", labels_per_round=10, validation_prompts=None)
    run_rounds(str(out), settings(files), wanted, RightDigits(), train_with)
    for number in (1, 2):
        found = find(read_trails(out / f"round{number}" / "trails.jsonl"), ["draft-revision"]).candidates
        doubt = {(each.comparison.first, each.comparison.second): _doubt(each) for each in found}
        asked = sorted(doubt, key=doubt.__getitem__)[:10]
        rows = [(pair.chosen, pair.rejected) for pair in read_pairs(out / f"round{number}" / "pairs.jsonl")]
        assert rows
        assert max(doubt.values()) > doubt[asked[-1]]
        assert all(row in asked or row[::-1] in asked for row in rows)


def _doubt(candidate: Candidate) -> float:
    assert candidate.preferred is not None  # asked for by the choice
    return abs(candidate.preferred - 0.5)


def test_the_cost_of_labels_is_logged_before_judging(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Priced(RightDigits):
        """Remembers what had been said by the time it was asked."""

        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def estimate(self, comparisons: Iterable[AnswerPair]) -> Any:
            return SimpleNamespace(price=f"cost {len(list(comparisons))}.00")

        def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
            self.said.append(caplog.messages[-1])
            return super().compare(comparisons)

    judge = Priced()
    caplog.set_level(logging.INFO, "srpo")
    run_rounds(str(files / "told"), settings(files), plan(files, rounds=1), judge, train_with)
    of_pairs, *_ = [line for line in judge.said if "for its pairs" in line]
    assert re.fullmatch(
        r"srpo: round 1: \d+ tokens and \d+ s so far; for its pairs 30 comparisons, 30 of them not yet judged; "
        r"cost 30\.00",
        of_pairs,
    )
    assert "round 0: 0 tokens" not in of_pairs
    of_validation = [line for line in judge.said if "for validation" in line]
    assert len(of_validation) == 4  # 2 rounds, each asking once for a draft and once for a revision
    assert "20 comparisons, " in of_validation[-1]


def test_it_stops_when_validation_no_longer_improves(files: Path) -> None:
    class Unmoved(RightDigits):
        """Orders samples, and finds no answer to a validation prompt better than another."""

        def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
            asked = list(comparisons)
            hopeless = {row["prompt"] for row in sums(10, "in", digits=2, seed=3)}
            for each, verdict in zip(asked, super().compare(asked), strict=True):
                yield Verdict(0.5) if each.prompt in hopeless else verdict

    done = run_rounds(str(files / "stopped"), settings(files), plan(files, rounds=3, patience=1), Unmoved(), train_with)
    assert [each.round for each in done] == [0, 1]


def test_another_plan_needs_another_folder(ran: tuple[Path, list[Round], RightDigits], files: Path) -> None:
    out, _, _ = ran
    with pytest.raises(ConfigError, match="labels_per_round 30 → 31"):
        run_rounds(str(out), settings(files), plan(files, labels_per_round=31), RightDigits(), train_with)
    with pytest.raises(ConfigError, match="max_steps 2 → 3"):
        run_rounds(str(out), settings(files) | {"max_steps": 3}, plan(files), RightDigits(), train_with)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rounds": 0}, "rounds"),
        ({"choose": "randon"}, "did you mean 'random'"),
        ({"round_reference": "move"}, "round_reference"),
        ({"offline_share": 1.0}, "below 1"),
        ({"sample_temperature": 0.0}, "expected above 0"),
        ({"round_steps": 0}, "round_steps"),
        ({"ask": "draft-draft", "samples_per_prompt": 1}, "one draft per prompt"),
        ({"ask": "draft-revision", "sample_revisions": 0}, "none are drawn"),
    ],
)
def test_invalid_plans_are_rejected(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RoundsArguments(**changed)


def test_a_round_in_one_line() -> None:
    account = Round(2, labels=200, pairs=150, informative=0.75, tokens=900, validation=[0.5, 0.625], best_k=1)
    assert account.line() == (
        "round 2: 200 labels, 150 pairs (75 % informative), 900 tokens, 0 s; wins over round 0's drafts after "
        "0, 1, … revisions: 50.0 62.5 %"
    )


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_settings_of_rounds_are_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / SETTINGS_FILE
    _expect_same(file, {"beta": 0.1})
    _expect_same(file, {"beta": 0.1})
    file.write_text(content, "utf-8")
    with pytest.raises(DataError, match=rf"{SETTINGS_FILE}: damaged; .*another --output_dir"):
        _expect_same(file, {"beta": 0.1})
    assert file.read_text("utf-8") == content


def test_pictures_of_rounds_are_files_and_judged_by_their_answers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    paths = {}
    for name, image in (("file", "a.png"), ("held", url(png())), ("text", None)):
        row = {"prompt": "What?", "image": image, "gold": "red", "chosen": "red", "rejected": "blue"}
        paths[name] = str(tmp_path / f"{name}.jsonl")
        write_rows(Path(paths[name]), [{**row, "image": None}, row])

    def check(judge: str, dataset: str, sampling: str | None, validation: str | None, offline_share: float = 0) -> None:
        prompts = {"sample_prompts": sampling, "validation_prompts": validation}
        files = {name: paths[each] for name, each in prompts.items() if each}
        made = RoundsSources.of({"dataset_name": paths[dataset]}, RoundsArguments(**files))
        made.expect_usable(judge, offline=offline_share > 0)

    check("exact_match", "file", None, "held")  # nothing is trained on validation prompts
    check("exact_match", "held", "file", None)
    check("llm", "file", "text", "text", 0.5)  # no judge is asked about offline pairs
    for used in (("held", None, None), ("file", "held", None), ("held", "text", None, 0.5)):
        with pytest.raises(ConfigError, match=r"held\.jsonl:2: a picture without a file"):
            check("exact_match", *used)
    for judge in ("llm", "reward:none"):
        for used in (("file", None, None), ("text", None, "file")):
            with pytest.raises(DataError, match=rf"file\.jsonl:2: .* judge {judge} is not shown pictures"):
                check(judge, *used)
