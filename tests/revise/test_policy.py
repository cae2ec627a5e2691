"""Policies: kept revisions and stops of scripted trails; the policy that `auto` chooses, and its log line."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import Reviser
from srpo.errors import ConfigError, InputError
from srpo.revise.confidence import Sequences
from srpo.revise.policy import Decision, Policy
from srpo.revise.stored_calibration import CALIBRATION_FILE, CalibratedPolicy, Calibration
from srpo.statistics.calibration import Bin
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.revise.tiny import Scripted, carry_llama, ids_of, reviser, saved


class Digits:
    """A scorer that likes an answer as many nats as its first digit says."""

    def log_ratios(self, sequences: Sequences) -> torch.Tensor:
        return torch.tensor([[float(answer[0]) for _, answer in each] for each in sequences])


def subject(**keywords: Any) -> Reviser:
    """Answers 3, then 5, 4, 4, 6, 6, …; what is shown decides, so that what is kept does."""
    made = Reviser(carry_llama(), carry_tokenizer(), TEMPLATE, scorer=Digits(), beta=0.1, **keywords)
    following = {"=": "3", "3?": "5", "5?": "4", "4?": "4"}
    Scripted(made, lambda context: next(say for end, say in following.items() if context.endswith(end)))
    assert ids_of("7") == [7]  # digits are their own ids, which the scorer relies on
    return made


@pytest.mark.parametrize(
    ("policy", "said", "kept", "stopped"),
    [
        ("always", "3 5 4 4 4", "ttttt", "revisions"),
        ("if_preferred", "3 5 4 4 4", "ttfff", "revisions"),
        ("until_worse", "3 5 4", "ttf", "worse"),
        ("until_unchanged", "3 5 4 4", "tttt", "unchanged"),
        ("fixed:2", "3 5 4", "ttt", "revisions"),
        ("fixed:9", "3 5 4 4 4", "ttttt", "revisions"),
        ("drafts", "3", "t", "revisions"),
    ],
)
def test_kept_revisions_and_stops_of_each_policy(policy: str, said: str, kept: str, stopped: str) -> None:
    (trail,) = subject().revise(["1+2="], 4, max_new_tokens=4, policy=policy)
    assert " ".join(answer.text for answer in trail.answers) == said
    assert "".join("ft"[answer.kept] for answer in trail.answers) == kept
    assert trail.stopped == stopped


def test_greedy_trails_stop_at_a_fixed_point() -> None:
    stopped = {
        policy: (len(trail.answers), trail.stopped)
        for policy in ("always", "if_preferred", "until_worse", "until_unchanged")
        for trail in subject().revise(["1+2="], 9, max_new_tokens=4, policy=policy, temperature=0.0)
    }
    assert stopped == {
        "always": (4, "fixed point"),
        "if_preferred": (3, "fixed point"),
        "until_worse": (3, "worse"),
        "until_unchanged": (4, "unchanged"),
    }


def test_a_confidence_of_one_half_is_not_a_preference() -> None:
    policy = Policy.named("if_preferred")
    assert policy.decide(preferred=0.5, unchanged=False) == Decision(False)
    assert policy.decide(preferred=0.5, unchanged=True) == Decision(True)
    assert policy.decide(preferred=0.5000001, unchanged=False) == Decision(True)


@pytest.mark.parametrize("policy", ["if_preferred", "until_worse"])
def test_a_policy_without_the_confidence_it_needs_is_rejected(policy: str) -> None:
    with pytest.raises(ConfigError, match=f"{policy} needs the model's own confidence"):
        reviser().revise(["1+2="], 1, policy=policy)


@pytest.mark.parametrize("name", ["fixed", "fixed:", "fixed:-1", "fixed:two", "never", ""])
def test_an_unknown_policy_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=r"policy: .* expected one of always, .*fixed:K, drafts"):
        Policy.named(name)


# ---------------------------------------------------------------------- auto


def calibration(policy: str, revisions: int) -> Calibration:
    choice = CalibratedPolicy(policy, revisions, gain=-0.031, low=-0.05, high=-0.01, rival="always, k = 2")
    return Calibration(choice, 100, 40, 0.9, 0.1, 0.05, 0.2, 0.09, 0.04, (Bin(0.0, 0.1, 3, 0.05, 0.0),), {"seed": 0})


def test_auto_uses_and_logs_the_calibrated_policy(caplog: pytest.LogCaptureFixture) -> None:
    made = subject()
    with caplog.at_level(logging.INFO, "srpo"):
        assert len(made.revise(["1+2="], 3, max_new_tokens=4)[0].answers) == 4
        made.calibration = calibration("drafts", 0)
        assert len(made.revise(["1+2="], 3, max_new_tokens=4)[0].answers) == 1
        made.calibration = calibration("always", 2)
        assert len(made.revise(["1+2="], 3, max_new_tokens=4)[0].answers) == 3
        assert len(made.revise(["1+2="], 1, max_new_tokens=4)[0].answers) == 2
        assert len(made.revise(["1+2="], 3, max_new_tokens=4, policy="always")[0].answers) == 4  # asked for by name
    said = [record.message for record in caplog.records]
    assert said[0].startswith("srpo: policy if_preferred; `srpo calibrate`")
    assert said[1] == (
        "srpo: calibrated policy: drafts only; always, k = 2: final answers −3.1 points against drafts "
        "(95 % interval −5.0 to −1.0)"
    )
    assert "policy always, 2 revisions at most" in said[2]
    assert len(said) == 4
    assert reviser().policy(made_settings())[0].name == "always"  # without a confidence


def test_a_calibration_at_another_temperature_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = subject()
    made.calibration = replace(calibration("always", 1), made_with={"temperature": 1.0})
    with caplog.at_level(logging.WARNING, "srpo"):
        made.revise(["1+2="], 1, max_new_tokens=4)
        assert not caplog.records
        made.revise(["1+2="], 1, max_new_tokens=4, temperature=0.0)
    assert [record.message for record in caplog.records] == [
        "srpo: the calibration was measured at temperature 1; drafts at 0 may differ"
    ]


def made_settings() -> Any:
    from srpo.revise.settings import RevisionSettings

    return RevisionSettings()


def test_a_calibration_is_kept_beside_the_model(tmp_path: Path) -> None:
    assert Calibration.load(tmp_path) is None
    assert Calibration.load("") is None
    whole = calibration("if_preferred", 3)
    whole.save(tmp_path)
    assert Calibration.load(tmp_path) == whole
    saved(tmp_path, carry_llama())
    assert Reviser(str(tmp_path)).calibration == whole
    for text in ("", "{}", "[]", '{"format": 2}', (tmp_path / CALIBRATION_FILE).read_text().replace("if_pref", "pref")):
        (tmp_path / CALIBRATION_FILE).write_text(text)
        with pytest.raises(InputError, match=r"srpo_calibration.json: not a calibration: .*run `srpo calibrate` again"):
            Calibration.load(tmp_path)


def test_confidence_through_the_fitted_link() -> None:
    whole = calibration("always", 1)
    assert whole.probability(0.5) == 0.5
    assert whole.probability(0.7) == pytest.approx(1 / (1 + 2.718281828459045**-1))
    assert replace(whole, temperature=None).probability(1.4) == 1.0
