"""Calibration: revising is chosen only where it gains, and the numbers equal plain counts."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import Reviser
from srpo.cli.main import run
from srpo.data.read import PromptRow, read_prompts
from srpo.errors import ConfigError, DataError, Interrupted
from srpo.evaluate.calibrate import calibrate, choose, first_revisions
from srpo.generate.engine import Decoding
from srpo.judge.single import exact_match
from srpo.revise.confidence import Sequences
from srpo.revise.settings import RevisionSettings
from srpo.revise.stored_calibration import CALIBRATION_FILE, Calibration
from srpo.revise.trail import Answer, Trail
from srpo.statistics.calibration import auc, brier
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.revise.tiny import Scripted, carry_llama

SETTINGS = RevisionSettings(revisions=2, max_new_tokens=4, seed=1)
SUMS = [f"{a}+{b}=" for a in range(30) for b in range(4)]


class FirstDigit:
    """A scorer whose log-ratio in nats is the first digit of the answer."""

    def log_ratios(self, sequences: Sequences) -> torch.Tensor:
        return torch.tensor([[float(answer[0]) for _, answer in each] for each in sequences])


def subject(revision: Any, **keywords: Any) -> Reviser:
    """A reviser that drafts 5 and revises to the value of a function of the prompt."""
    made = Reviser(carry_llama(), carry_tokenizer(), TEMPLATE, **keywords)
    Scripted(made, lambda context: revision(context.split("=")[0]) if context.endswith("?") else "5")
    return made


def labelled(share_right: float, seed: int = 0) -> list[PromptRow]:
    """Sums whose gold answer is 5, the draft, with this share, and 9, the revision, otherwise."""
    rng = random.Random(seed)
    golds = ["5" if rng.random() < share_right else "9" for _ in SUMS]
    return read_prompts([{"prompt": p, "gold": gold} for p, gold in zip(SUMS, golds, strict=True)])


def test_revising_is_chosen_only_where_it_gains() -> None:
    helps = calibrate(subject(lambda p: "9"), labelled(0.2), exact_match, SETTINGS)
    assert (helps.choice.policy, helps.choice.revisions) == ("always", 1)
    assert helps.choice.low > 0.3
    assert helps.auc is None  # without a reference there is nothing to weigh
    harms = calibrate(subject(lambda p: "9"), labelled(0.8), exact_match, SETTINGS)
    assert (harms.choice.policy, harms.choice.revisions) == ("drafts", 0)
    # The best rival is a greedy draft or a vote on drafts, here equal to the draft: revisions would have lost.
    assert harms.choice.gain == 0.0
    always = {"always": [[0.8, 0.2]] * 40}
    assert choose(SUMS[:40], always, RevisionSettings(revisions=1)).high < 0
    nothing = calibrate(subject(lambda p: "5"), labelled(0.5), exact_match, SETTINGS)
    assert (nothing.choice.policy, nothing.choice.gain) == ("drafts", 0.0)


def test_if_preferred_is_chosen_where_confidence_separates_right_from_wrong() -> None:
    # Half of the revisions are 9 and right, half are 1 and wrong; the scorer prefers the larger.
    rows = labelled(0.5)
    gold = {row.prompt: row.meta["gold"] for row in rows}
    made = subject(lambda p: "9" if gold[p + "="] == "9" else "1", scorer=FirstDigit(), beta=0.1)
    found = calibrate(made, rows, exact_match, SETTINGS)
    assert (found.choice.policy, found.choice.revisions) == ("if_preferred", 1)
    assert (found.auc, found.pairs) == (1.0, len(rows))
    right = sum(value == "9" for value in gold.values())
    expected = (right * 0.1**2 + (len(rows) - right) * 0.1**2) / len(rows)  # p is .5 ± .1 × 4, off by .1 each
    assert found.brier == pytest.approx(expected, abs=1e-6)
    assert found.linked_brier is not None
    assert found.linked_brier < found.brier


def test_the_gain_is_reported_on_the_half_that_did_not_choose() -> None:
    rng = random.Random(3)
    prompts = [f"prompt {i}" for i in range(200)]
    # Revising changes nothing on average: whatever looks best on the half that chooses is luck.
    luck = {way: [[0.5, *(0.5 + rng.choice([-0.5, 0.5]) for _ in range(5))] for _ in prompts] for way in ("a", "b")}
    found = choose(prompts, luck, RevisionSettings(revisions=5))
    assert found.policy == "drafts"
    assert found.low < 0 < found.high
    better = {"a": [[0.0, 1.0, 1.0] for _ in prompts], "b": [[0.0, 0.0, 1.0] for _ in prompts]}
    assert choose(prompts, better, RevisionSettings(revisions=2)).rival == "a, k = 1"  # of equal gains the earliest


def test_a_greedy_draft_is_recommended_where_it_wins() -> None:
    class Sampled(Scripted):
        """Drafts 5 greedily and 4 otherwise."""

        def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> Any:
            self.answer = lambda context: "5" if decoding.temperature == 0 else "4"
            return super().complete(contexts, keys, decoding, **more)

    made = Reviser(carry_llama(), carry_tokenizer(), TEMPLATE)
    Sampled(made, lambda context: "4")
    found = calibrate(made, labelled(0.8), exact_match, SETTINGS)
    assert (found.choice.policy, found.choice.revisions, found.choice.rival) == ("greedy", 0, "greedy")
    assert found.choice.sentence().startswith("one greedy draft; greedy: final answers +")
    made.calibration = found
    (trail,) = made.revise([SUMS[0]], 2, max_new_tokens=4)
    assert [answer.text for answer in trail.answers] == ["5"]
    # Control: at temperature 0 every draft is greedy, and there is nothing to recommend.
    assert calibrate(made, labelled(0.8), exact_match, replace(SETTINGS, temperature=0.0)).choice.policy == "drafts"


def test_choices_are_compared_at_equal_tokens() -> None:
    prompts = [f"prompt {i}" for i in range(80)]
    scores = {"always": [[0.0, 0.5, 0.6]] * 80, "always + vote": [[0.0, 0.7, 0.9]] * 80}

    def trails(tokens: int) -> list[Trail]:
        return [Trail(prompt, (Answer("1", 1, forward_tokens=tokens),) * 3) for prompt in prompts]

    costs = {"always": trails(10), "always + vote": trails(15)}  # 30 tokens at most: two answers with the vote
    found = choose(prompts, scores, RevisionSettings(revisions=2), costs)
    assert (found.policy, found.revisions, found.select) == ("always", 1, "vote")
    assert found.sentence().startswith("policy always, 1 revisions at most, final answer by vote; always + vote, k = 1")
    # Controls: without costs the third answer counts too; a dearer selector is not considered.
    assert choose(prompts, scores, RevisionSettings(revisions=2)).revisions == 2
    assert (
        choose(prompts, scores, RevisionSettings(revisions=2), {**costs, "always + vote": trails(31)}).select == "last"
    )


def test_first_revisions_equal_a_count_by_hand() -> None:
    rows = labelled(0.5)[:40]
    made = subject(lambda p: "9" if len(p) % 2 else "5", scorer=FirstDigit(), beta=0.1)
    trails = list(made.trails(rows, RevisionSettings(1, max_new_tokens=4, policy="always")))
    scores = [[float(a.text == t.meta["gold"]) for a in t.answers] for t in trails]
    preferred, better = first_revisions(trails, scores)
    counted = [t for t in trails if t.answers[1].text == "9"]  # the others repeat their draft
    assert better == [int(t.meta["gold"] == "9") for t in counted]
    assert preferred == pytest.approx([0.9] * len(counted))
    assert auc(preferred, better) == 0.5
    assert brier(preferred, better) == pytest.approx(sum((0.9 - y) ** 2 for y in better) / len(better), abs=1e-6)


def test_calibration_refuses_too_few_prompts_missing_golds_and_no_revisions() -> None:
    made = subject(lambda p: "9")
    with pytest.raises(DataError, match="20 labelled prompts; expected at least 40"):
        calibrate(made, labelled(0.5)[:20], exact_match, SETTINGS)
    with pytest.raises(DataError, match="row 1: no 'gold'"):
        calibrate(made, read_prompts([{"prompt": p} for p in SUMS]), exact_match, SETTINGS)
    with pytest.raises(ConfigError, match="revisions: 0; expected at least 1"):
        calibrate(made, labelled(0.5), exact_match, RevisionSettings(revisions=0))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    folder, source = tmp_path / "model", tmp_path / "labelled.jsonl"
    for each in (carry_llama(), carry_tokenizer()):
        each.save_pretrained(folder)
    carry_llama(1).save_pretrained(tmp_path / "base")
    TEMPLATE.save(folder)
    (folder / "srpo_training.json").write_text('{"beta": 0.3}')
    rows = [{"prompt": prompt, "gold": str(i % 7)} for i, prompt in enumerate(SUMS[:40])]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["calibrate", "--model_name_or_path", str(folder), "--input", str(source), "--judge", "per_character"]
    sizes = ["--max_new_tokens", "3", "--revisions", "1", "--reference", str(tmp_path / "base")]
    assert run([*command, *sizes]) == 0
    said = capsys.readouterr().out
    found = Calibration.load(folder)
    assert found is not None
    assert found.choice.sentence() in said
    assert f"written to {folder / CALIBRATION_FILE}" in said
    assert "AUC" in said
    # It is what `srpo revise` goes by, said aloud, and a page and a listing of the trails are made.
    revise = ["revise", "--model_name_or_path", str(folder), "--input", str(source), "--max_new_tokens", "3"]
    page = tmp_path / "page.html"
    rest = [
        "--reference",
        str(tmp_path / "base"),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--diff",
        "--html",
        str(page),
    ]
    assert run([*revise, *rest]) == 0
    assert "stopped: revisions" in capsys.readouterr().out
    assert page.read_text("utf-8").count("<article>") == 40
    (folder / CALIBRATION_FILE).unlink()
    if found.choice.policy != "if_preferred":
        with pytest.raises(ConfigError, match="was begun with other settings: calibrated"):
            run([*revise, *rest])


def test_a_failing_judge_is_named_before_drawing() -> None:
    class Never:
        has_confidence = False

    def fussy(prompt: Any, answer: str, gold: Any) -> float:
        raise KeyError(answer)

    for judge, said in ((os.getcwd, "judge getcwd fails: TypeError: "), (fussy, "judge fussy fails: KeyError: ")):
        with pytest.raises(ConfigError, match=said) as caught:
            calibrate(Never(), labelled(0.5), judge, SETTINGS)  # type: ignore[arg-type]
        assert (caught.value.exit_code, caught.value.where) == (78, labelled(0.5)[0].where)


def test_a_judge_that_fails_later_is_named_with_the_prompt() -> None:
    def fussy(prompt: Any, answer: str, gold: Any) -> float:
        return {"5": 0.0, "9": 1.0}[answer] if prompt != SUMS[3] else {}[answer]

    with pytest.raises(ConfigError, match="prompt 4: judge fussy fails: KeyError"):
        calibrate(subject(lambda p: "9"), labelled(0.5), fussy, SETTINGS)


def test_an_interrupted_calibration_resumes(tmp_path: Path) -> None:
    rows, made = labelled(0.2), subject(lambda p: "9")
    whole = calibrate(made, rows, exact_match, SETTINGS)
    engine = made.engine
    assert isinstance(engine, Scripted)
    engine.batch_size = 8

    def stop(context: str) -> str:
        if engine.asked > before + 60:
            raise KeyboardInterrupt
        return answer(context)

    answer, before = engine.answer, engine.asked
    engine.answer = stop
    with pytest.raises(Interrupted, match="the same command goes on"):
        calibrate(made, rows, exact_match, SETTINGS, folder=tmp_path)
    engine.answer, before = answer, engine.asked
    assert calibrate(made, rows, exact_match, SETTINGS, folder=tmp_path) == whole
    resumed, before = engine.asked - before, engine.asked
    calibrate(made, rows, exact_match, replace(SETTINGS, seed=2), folder=tmp_path)  # control: other settings, all anew
    assert resumed < engine.asked - before


def test_prompts_without_room_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rows = read_prompts([{"prompt": f"{i}+1=", "gold": "9"} for i in range(50)])
    long = read_prompts([{"prompt": "1" * 70 + "=", "gold": "9"}])
    plain = calibrate(subject(lambda p: "9"), rows, exact_match, SETTINGS)
    with caplog.at_level("WARNING", "srpo"):
        found = calibrate(subject(lambda p: "9"), [*rows, *long], exact_match, SETTINGS)
    assert found == plain
    assert "1 of 51 prompts failed and are left out: a context of" in caplog.text
    with pytest.raises(DataError, match="12 of 50 prompts failed"):
        calibrate(subject(lambda p: "9"), [*rows[:38], *long * 12], exact_match, SETTINGS)
