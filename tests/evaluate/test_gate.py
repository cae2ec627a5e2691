"""The gate measured on scripted models with known rates: counts, intervals, verdicts and the command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srpo import Reviser
from srpo.cli.main import run
from srpo.data.read import read_prompts
from srpo.errors import ConfigError, DataError
from srpo.evaluate.gate import NOT, WARM, WORTH, Gate, Outlook, decide, measure_gate
from srpo.generate.engine import Completion, Decoding
from srpo.judge.single import exact_match
from srpo.revise.settings import RevisionSettings
from srpo.statistics.bootstrap import Interval
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.revise.tiny import carry_llama, saved

SUMS = [f"{a}+{b}=" for a in range(60) for b in range(5)]
ROWS = [{"prompt": prompt, "gold": "1"} for prompt in SUMS]
SETTINGS = RevisionSettings(revisions=3, max_new_tokens=3, seed=1)


class Dice:
    """An engine that writes 1 (right) or 2, 3, 4 (wrong), by a rule with a chance drawn from seed and key."""

    same_batch_same_bits, max_length, batch_size = True, 64, 64

    def __init__(self, rule: Callable[[str, str | None, random.Random], str]) -> None:
        self.tokenizer, self.rule = carry_tokenizer(), rule

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        done = []
        for context, key in zip(contexts, keys, strict=True):
            prompt, _, draft = self.tokenizer.decode(context, skip_special_tokens=True).partition("=")
            chance = random.Random(f"{decoding.seed} {decoding.temperature} {key} {draft}")
            text = self.rule(prompt, draft[0] if draft else None, chance)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            done.append(Completion((*ids, self.tokenizer.eos_token_id), True, 0.001))
        return done


def subject(rule: Callable[[str, str | None, random.Random], str]) -> Reviser:
    return Reviser(carry_llama(), carry_tokenizer(), TEMPLATE, engine=Dice(rule))


def reads_its_draft(prompt: str, draft: str | None, chance: random.Random) -> str:
    """Right in one draft of ten, on every prompt alike; mends six wrong drafts of ten and keeps nine right ones."""
    if draft is None:
        return "1" if chance.random() < 0.1 else "2"
    return "1" if chance.random() < (0.9 if draft == "1" else 0.6) else "3"


def copies(prompt: str, draft: str | None, chance: random.Random) -> str:
    return ("1" if chance.random() < 0.1 else "2") if draft is None else draft


def drafts_again(prompt: str, draft: str | None, chance: random.Random) -> str:
    return "1" if chance.random() < 0.4 else chance.choice("234")


def measured(rule: Callable[[str, str | None, random.Random], str]) -> Gate:
    return measure_gate(subject(rule), read_prompts(ROWS), exact_match, SETTINGS, betas=[0.2])


def test_rates_are_the_known_ones_and_decide() -> None:
    found = measured(reads_its_draft)
    assert (found.prompts, found.drafts) == (300, 4)
    for name, rate in (("right", 0.1), ("fresh", 0.1), ("mend", 0.6), ("keep", 0.9), ("copies", 0.0)):
        interval = found.rates[name]
        assert interval.low - 0.02 <= rate <= interval.high + 0.02
        assert interval.low <= interval.mean <= interval.high
    assert found.more.low > 0.3
    assert found.verdict == WORTH
    assert measured(copies).verdict == WARM
    again = measured(drafts_again)
    assert again.verdict == NOT
    assert again.more.low < 0 < again.more.high


def test_rates_equal_plain_counts() -> None:
    reviser, drafts = subject(drafts_again), []
    for seed in (1, *(2 * 1_000_003 + draw for draw in (1, 2, 3))):
        drafts.append(reviser.revise(ROWS, 1, seed=seed, max_new_tokens=3, policy="always"))
    pairs = [trail.answers for trails in drafts for trail in trails]
    wrong = [(one.text, other.text) for one, other in pairs if one.text != "1"]
    found = measured(drafts_again).rates
    assert found["right"].mean == pytest.approx(1 - len(wrong) / len(pairs))
    assert found["mend"].mean == pytest.approx(sum(other == "1" for _, other in wrong) / len(wrong))
    assert found["copies"].mean == pytest.approx(sum(one == other for one, other in wrong) / len(wrong))
    second = [
        drafts[j][row].answers[0].text == "1"
        for row in range(len(ROWS))
        for i in range(4)
        for j in range(4)
        if i != j and drafts[i][row].answers[0].text != "1"
    ]
    assert found["fresh"].mean == pytest.approx(sum(second) / len(second))


def outlook(gain: float, revised: float) -> Outlook:
    one = Interval(revised, revised, revised)
    return Outlook(0.1, one, one, one, one, Interval(gain, gain - 0.01, gain + 0.01))


def test_each_verdict_has_its_reason() -> None:
    rates = {"copies": Interval(0.1, 0.1, 0.1)}
    more, less = Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1)
    assert decide(rates, more, [outlook(0.1, 0.9)])[0] == WORTH
    assert decide(rates, more, [outlook(-0.1, 0.89)])[0] == NOT  # the opponent reaches 99 %
    assert decide(rates, more, [outlook(-0.1, 0.5)])[0] == WARM
    assert decide(rates, less, [outlook(-0.1, 0.5)])[0] == NOT
    assert decide({"copies": Interval(0.6, 0.5, 0.7)}, less, [outlook(-0.1, 0.5)])[0] == WARM
    assert decide(rates, less, [outlook(-0.1, 0.5), outlook(0.1, 0.9)])[0] == WORTH  # the better β counts


@pytest.mark.parametrize(
    ("changes", "error", "line"),
    [
        ({"settings": RevisionSettings(revisions=0)}, ConfigError, "one draft of each prompt"),
        ({"settings": RevisionSettings(temperature=0.0)}, ConfigError, "one draft of each prompt"),
        ({"betas": []}, ConfigError, "gate_beta"),
        ({"betas": [0.1, 0.0]}, ConfigError, "gate_beta"),
        ({"rows": read_prompts(ROWS[:39])}, DataError, "39 labelled prompts"),
        ({"rows": read_prompts([{"prompt": p} for p in SUMS])}, DataError, "no 'gold'"),
    ],
)
def test_unusable_settings_are_refused_before_drawing(changes: dict[str, Any], error: type, line: str) -> None:
    def never(prompt: str, draft: str | None, chance: random.Random) -> str:
        raise AssertionError("an answer was drawn")

    given: dict[str, Any] = {"rows": read_prompts(ROWS), "settings": SETTINGS, "betas": [0.2], **changes}
    with pytest.raises(error, match=line):
        measure_gate(subject(never), given["rows"], exact_match, given["settings"], betas=given["betas"])


def test_the_command_prints_and_stores_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, prompts = saved(tmp_path / "model", carry_llama()), tmp_path / "labelled.jsonl"
    (tmp_path / "out").mkdir()
    prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:40]), "utf-8")
    words = ["calibrate", "--before", "--model_name_or_path", str(model), "--input", str(prompts), "--revisions", "1"]
    words += ["--max_new_tokens", "3", "--output_dir", str(tmp_path / "out"), "--gate_beta", "0.3"]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert "second draft right where the first is wrong" in said
    assert "at β = 0.3: after one revision" in said
    stored = json.loads((tmp_path / "out" / "srpo_gate.json").read_text("utf-8"))
    assert stored["prompts"] == 40
    assert stored["verdict"] in (WORTH, WARM, NOT)
    assert f"{stored['verdict']}: " in said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["srpo_gate.json"]
    with pytest.raises(ConfigError, match="reference: has no use with --before"):
        run([*words, "--reference", str(model)])
