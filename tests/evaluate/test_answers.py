"""Drawing a plan: every control, the cache of answers, and interrupted runs."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from srpo.cli.evaluate import main
from srpo.errors import ConfigError, DataError, InputError, Interrupted
from srpo.evaluate.answers import (
    FOLDER,
    Drawn,
    ModelAnswers,
    Task,
    draw_all,
    read_prompt_files,
    read_systems,
    without_failed,
)
from srpo.evaluate.cache import content_hash
from srpo.evaluate.controls import oracle
from srpo.evaluate.plan import CONTROLS, Plan
from srpo.generate.engine import Decoding
from srpo.generate.speculative import SpeculativeEngine
from srpo.judge.load import AnyJudge
from srpo.judge.single import exact_match, per_character
from srpo.revise import reviser
from srpo.revise.reviser import Reviser
from srpo.revise.trail import Answer, Trail
from srpo.score.results_file import read_results
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.judge.pair_judges import Scripted, honest
from tests.revise.tiny import PROMPTS, carry_llama, ids_of
from tests.train.plain import flat_logp

pytestmark = pytest.mark.usefixtures("empty_figures")


def save(folder: Path, seed: int, *, trained: bool) -> Path:
    carry_llama(seed).save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    if trained:
        TEMPLATE.save(folder)
        record = {"format": 1, "objective": "srpo", "beta": 0.3, "alpha": 0.5, "logps_reduction": "sum"}
        (folder / "srpo_training.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(folder / "srpo0", 0, trained=True)
    save(folder / "srpo1", 2, trained=True)
    save(folder / "base", 1, trained=False)
    rows = [{"prompt": prompt, "gold": str(eval(prompt[:-1])), "split": "in"} for prompt in dict.fromkeys(PROMPTS)]
    rows += [{"prompt": f"9{row['prompt']}", "gold": "1", "split": "out"} for row in rows]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def plan(place: Path, out: Path, **settings: Any) -> Plan:
    return Plan.of(
        {
            "models": {"srpo": f"{place}/srpo{{seed}}"},
            "prompts": f"{place}/prompts.jsonl",
            "references": f"{place}/base",
            "controls": list(CONTROLS),
            "revisions": 2,
            "max_new_tokens": 4,
            "output_dir": str(out),
            **settings,
        }
    )


def drawn(plan: Plan, judge: AnyJudge) -> Drawn:
    plan.check()
    return draw_all(plan, read_prompt_files(plan), judge)


def test_one_command_draws_every_control(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", f"srpo={models}/srpo{{seed}}", "--prompts", f"{models}/prompts.jsonl", "--seeds", "0", "1"]
    words += ["--references", f"{models}/base", "--controls", *CONTROLS, "--revisions", "2", "--max_new_tokens", "4"]
    assert main([*words, "--judge", "per_character", "--output_dir", str(tmp_path)]) == 0
    results = read_results(tmp_path / "results.json")
    assert results.values("system") == ["srpo", *(f"srpo/{control}" for control in CONTROLS)]
    assert results.seeds == [0, 1]
    assert results.values("split") == ["in", "out"]
    for split in ("in", "out"):
        curve = {control: [row["mean"] for row in results.curve(f"srpo/{control}", split, 1.0)] for control in CONTROLS}
        assert curve["gold"] == [1, 1, 1]
        for one_answer in ("greedy", "reference_greedy"):
            assert curve[one_answer] == [curve[one_answer][0]] * 3
        for chosen in ("best_of_logp", "best_of_mean_logp", "best_of_vote", "best_of_reference_logp", "majority"):
            assert curve[chosen][0] == curve["draft_only"][0]
            assert all(score <= most for score, most in zip(curve[chosen], curve["oracle"], strict=True))
        assert curve["draft_only"] == [curve["draft_only"][0]] * 3
        assert curve["best_of"][0] == curve["oracle"][0] == curve["draft_only"][0]
        assert all(best <= most for best, most in zip(curve["best_of"], curve["oracle"], strict=True))
        assert curve["oracle"] == sorted(curve["oracle"])
        assert results.curve("srpo", split, 1.0)[0]["mean"] == curve["draft_only"][0]
    assert "oracle: best of k+1 drafts, picked by the judge" in (tmp_path / "report.html").read_text("utf-8")
    assert "The report is" in capsys.readouterr().out


def test_selection_by_the_reference_equals_plain_forward_passes(models: Path, tmp_path: Path) -> None:
    names = ["best_of_reference_logp", "best_of_logp", "greedy", "reference_greedy"]
    found = drawn(plan(models, tmp_path, controls=names), exact_match).trails
    base, tokenizer = AutoModelForCausalLM.from_pretrained(models / "base"), carry_tokenizer()
    differ = 0
    by_policy = found[0, "srpo/best_of_logp", "in", 1.0]
    for trail, own in zip(found[0, "srpo/best_of_reference_logp", "in", 1.0], by_policy, strict=True):
        context = [tokenizer.bos_token_id, *ids_of(trail.prompt)]
        values = []
        for answer in trail.answers:
            with torch.no_grad():
                values.append(float(flat_logp(base, context, [*ids_of(answer.text), tokenizer.eos_token_id])))
        assert trail.after(2).text == trail.answers[values.index(max(values))].text
        differ += trail.after(2).text != own.after(2).text
    assert differ  # control: the policy's own log-probs choose otherwise
    plain = Reviser(str(models / "base"), template=TEMPLATE).revise(PROMPTS[:1], 0, temperature=0, max_new_tokens=4)
    (greedy,) = (t for t in found[0, "srpo/reference_greedy", "in", 1.0] if t.prompt == PROMPTS[0])
    assert greedy.answers[0].text == plain[0].answers[0].text


def test_cached_answers_are_not_drawn_again(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan(models, tmp_path)
    rows = read_prompt_files(asked)[0]["in"]
    answers, task = ModelAnswers(asked, asked.models["srpo"].at(0), tmp_path / FOLDER, 0), Task("srpo", "in", rows, 1.0)
    # three answers of the model and its reference, three drafts, and one greedy draft of each
    assert answers.missing(task, list(CONTROLS)) == len(rows) * (3 + 3 + 3 + 1 + 1)
    assert answers.missing(task, ["best_of_logp"]) == answers.missing(task, ["oracle"]) == len(rows) * (3 + 3)
    first = drawn(asked, exact_match)
    assert answers.missing(task, list(CONTROLS)) == 0
    assert answers.missing(task._replace(temperature=0.7), []) == len(rows) * 3
    assert answers.missing(task._replace(temperature=0.0), ["oracle", "best_of_logp"]) == len(rows) * 3
    monkeypatch.setattr(reviser, "Reviser", None)  # whatever would draw now fails
    assert drawn(plan(models, tmp_path), exact_match) == first
    # Fewer controls, another judge and another name ask for nothing new.
    drawn(plan(models, tmp_path, controls=["oracle"]), per_character)
    with pytest.raises(TypeError):  # control: another seed does
        drawn(plan(models, tmp_path, seeds=[1]), exact_match)
    for change in ({"temperature": 0.7}, {"revisions": 1}, {"max_new_tokens": 3}):
        with pytest.raises(TypeError):
            drawn(plan(models, tmp_path, **change), exact_match)


def test_content_hash_changes_with_weights_and_not_with_path_or_card(models: Path, tmp_path: Path) -> None:
    here, there = save(tmp_path / "here", 0, trained=True), save(tmp_path / "there", 0, trained=True)
    assert content_hash(str(here)) == content_hash(str(there))
    (there / "trainer_state.json").write_text("{}")
    (there / "README.md").write_text("a card")
    content_hash.cache_clear()
    assert content_hash(str(here)) == content_hash(str(there))
    save(there, 5, trained=True)
    content_hash.cache_clear()
    assert content_hash(str(here)) != content_hash(str(there))


def test_interrupted_drawing_resumes_with_the_same_answers(models: Path, tmp_path: Path) -> None:
    whole = drawn(plan(models, tmp_path / "whole", batch_size=2), exact_match)

    class Killed(Reviser):
        """Is interrupted at the third batch."""

        def trails(self, *args: Any, **settings: Any) -> Any:
            for number, trail in enumerate(super().trails(*args, **settings)):
                if number == 4:
                    raise KeyboardInterrupt
                yield trail

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviser, "Reviser", Killed)
        with pytest.raises(Interrupted):
            drawn(plan(models, tmp_path / "killed", batch_size=2), exact_match)
    files = [*(tmp_path / "killed" / "drawn").glob("srpo.in.*.jsonl")]
    (file,) = (file for file in files if not file.name.endswith(".answers.jsonl"))
    assert file.read_text().count("\n") == 4
    again = drawn(plan(models, tmp_path / "killed", batch_size=2), exact_match)

    def texts(found: Drawn) -> Any:
        return {key: [[a.text for a in trail.answers] for trail in rows] for key, rows in found.trails.items()}

    assert texts(again) == texts(whole)


def test_oracle_keeps_the_draft_with_the_best_score() -> None:
    drafts = [Trail("1+1=", tuple(Answer(text, 1, kept=False) for text in ("30", "42", "41")), meta={"gold": "42"})]
    for judge in (per_character, Scripted(honest)):
        (best,) = oracle(drafts, judge)
        assert [best.after(k).text for k in range(3)] == ["30", "42", "42"]


def test_one_model_is_in_memory_at_a_time(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Reviser]] = []
    alive: list[int] = []
    load = ModelAnswers._load

    def counted(self: ModelAnswers, *given: Any) -> Reviser:
        gc.collect()
        alive.append(sum(each() is not None for each in made))
        subject = load(self, *given)
        made.append(weakref.ref(subject))
        return subject

    monkeypatch.setattr(ModelAnswers, "_load", counted)
    three = {name: f"{models}/srpo0" for name in ("one", "two", "three")}
    drawn(plan(models, tmp_path, models=three, controls=[], revisions=0, limit=2), exact_match)
    assert alive == [0] * len(made)
    assert len(made) == 3


def test_best_of_is_also_a_policy_of_a_model(models: Path, tmp_path: Path) -> None:
    both = {"srpo": {"model": f"{models}/srpo0", "controls": ["best_of", "draft_only"]}}
    both |= {"chosen": {"model": f"{models}/srpo0", "policy": "best_of", "controls": ["draft_only"]}}
    trails = drawn(plan(models, tmp_path, models=both, controls=[]), exact_match).trails

    def in_hand(system: str, split: str) -> list[list[str]]:
        return [[trail.after(k).text for k in range(3)] for trail in trails[0, system, split, 1.0]]

    for split in ("in", "out"):
        assert in_hand("chosen", split) == in_hand("srpo/best_of", split) != in_hand("srpo", split)
        assert in_hand("chosen/draft_only", split) == in_hand("srpo/draft_only", split)


def test_mistakes_in_a_plan_are_found_before_drawing(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reference to ask"):
        drawn(plan(models, tmp_path, references=None, controls=["reference"]), exact_match)
    for model, kind, said in (
        ("a/b/missing", InputError, "a/b/missing: no such folder.*`--without srpo`"),
        (
            {"model": f"{models}/srpo0", "policy": "bestof"},
            ConfigError,
            "srpo: policy: 'bestof'.*did you mean 'best_of'",
        ),
    ):
        with pytest.raises(kind, match=said):
            drawn(plan(models, tmp_path / "none", models={"first": f"{models}/srpo0", "srpo": model}), exact_match)
        assert not [*(tmp_path / "none").rglob("*.jsonl")]  # found before the first model draws
    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        main(["--trails", "x.jsonl", "--output_dir", str(tmp_path), "--resampling", "prompt"])
    with pytest.raises(ConfigError, match="no output_dir"):
        main(["--trails", "x.jsonl"])


def test_a_prompt_without_room_fails_alone(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (models / "prompts.jsonl").read_text().splitlines()]
    # The model has 64 positions: 70 leave no room for a draft, 57 none for a revision, which shows the draft again.
    long = [{"prompt": "1" * length + "+1=", "gold": "2", "split": "in"} for length in (70, 57)]
    for name, lines in (("prompts", [*rows[:3], *long, *rows[3:]]), ("short", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = {}
    for name in ("prompts", "short"):
        words = ["--models", f"srpo={models}/srpo0", "--prompts", f"{tmp_path}/{name}.jsonl", "--revisions", "1"]
        words += ["--references", f"{models}/base", "--max_new_tokens", "4", "--batch_size", "4", "--controls"]
        words += ["draft_only", "best_of", "best_of_logp", "majority", "oracle", "reference", "greedy"]
        assert main([*words, "--judge", "per_character", "--output_dir", str(tmp_path / name)]) == 0
        found[name] = read_results(tmp_path / name / "results.json")
        printed = " ".join(capsys.readouterr().out.split())
        assert ("2 prompts of split in failed and are left out for every system" in printed) == (name == "prompts")
    assert [row["n"] for row in found["prompts"].rows] == [row["n"] for row in found["short"].rows]
    assert found["prompts"].values("system") == found["short"].values("system")
    only = [{"prompt": "1" * 70 + "+1=", "gold": "2"}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in only))
    with pytest.raises(DataError, match="every prompt failed: a context of"):
        main(
            ["--models", f"{models}/srpo0", "--prompts", f"{tmp_path}/long.jsonl", "--output_dir", str(tmp_path / "o")]
        )


def test_failed_trails_in_files_are_left_out_for_every_system(tmp_path: Path) -> None:
    def write(name: str, failed: int | None) -> str:
        rows = [Trail(str(i), (Answer("1", 1), Answer("1", 1)), meta={"gold": "1"}) for i in range(5)]
        if failed is not None:
            rows[failed] = Trail(str(failed), (), "failed: no answer", {"gold": "1"})
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(row.to_json() + "\n" for row in rows))
        return str(path)

    trails, notes = without_failed(read_systems([write("a", 1), write("b", 3)]))
    assert {key[1]: [trail.prompt for trail in rows] for key, rows in trails.items()} == {
        "a": ["0", "2", "4"],
        "b": ["0", "2", "4"],
    }
    assert notes == ["2 prompts of split all failed and are left out for every system: no answer."]
    whole, notes = without_failed(read_systems([write("c", None)]))  # control: nothing failed
    assert (len(next(iter(whole.values()))), notes) == (5, [])


@pytest.mark.parametrize("after", [3, 10])
def test_interruption_inside_a_batch_keeps_finished_answers(models: Path, tmp_path: Path, after: int) -> None:
    whole = drawn(plan(models, tmp_path / "whole", controls=[]), exact_match)
    seen: list[Any] = []

    class Stopping(SpeculativeEngine):
        """Is interrupted once some answers are complete."""

        def complete(self, contexts: Any, keys: Any, decoding: Decoding, *, keep: Any = None, **more: Any) -> Any:
            def count(place: int, completion: Any) -> None:
                keep(place, completion)
                seen.append(keys[place])
                if len(seen) == after:
                    raise KeyboardInterrupt

            return super().complete(contexts, keys, decoding, keep=count, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviser, "SpeculativeEngine", Stopping)
        with pytest.raises(Interrupted):
            drawn(plan(models, tmp_path / "killed", controls=[]), exact_match)
        first = list(seen)
        seen.clear()
        patch.setattr(reviser, "SpeculativeEngine", type("Counting", (Stopping,), {}))
        seen.extend([None] * (after + 1))  # counts on without another interruption
        again = drawn(plan(models, tmp_path / "killed", controls=[]), exact_match)
    assert not {*first} & {*seen}  # finished answers were not drawn again
    assert len(first) + len(seen) - after - 1 == 3 * sum(len(rows) for rows in whole.trails.values())
    texts = [
        [[answer.text for answer in trail.answers] for rows in found.trails.values() for trail in rows]
        for found in (again, whole)
    ]
    assert texts[0] == texts[1]
    assert not [*(tmp_path / "killed").rglob("*.answers.jsonl")]
