"""Settings of `srpo rounds` only; the settings of `srpo train` decide how each round trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from srpo.errors import ConfigError
from srpo.rounds.candidates import CHOICES, KINDS, kinds_of
from srpo.settings import expect_valid, setting, shared

REFERENCES = ("fixed", "moving")
ROUNDS, SAMPLING, LABELS, VALIDATION = "rounds", "sampling of rounds", "labels of rounds", "validation of rounds"


@dataclass
class RoundsArguments:
    """Settings of rounds: sampling, labelling, training and stopping.

    Raises:
        ConfigError: a value out of range, or values that contradict each other.

    Example:
        >>> RoundsArguments(rounds=3, labels_per_round=2000).asked
        ('draft-revision', 'revision-revision', 'draft-draft')
    """

    rounds: int = setting(2, "Rounds of sample, label and train after the offline training.", group=ROUNDS, least=1)
    round_steps: int = setting(-1, "Optimiser steps of a round; -1 trains one epoch of its pairs.", group=ROUNDS)
    round_learning_rate: float | None = setting(
        None, "Peak learning rate of rounds; unset: that of the offline training.", group=ROUNDS
    )
    round_group_by_prompt: bool = setting(
        True, "Draw all pairs of a prompt into one batch of a round, where they are one tree.", group=ROUNDS
    )
    round_reference: str = setting(
        "fixed",
        "Reference of a round: fixed, the model before the offline training; moving, the model before the round.",
        group=ROUNDS,
        choices=REFERENCES,
    )
    offline_share: float = setting(
        0.0, "Share of offline pairs among the pairs of a round.", group=ROUNDS, least=0, below=1
    )
    sample_prompts: str | None = setting(
        None, "File of prompts to sample from; unset: the prompts of the preference data.", group=SAMPLING
    )
    samples_per_prompt: int = setting(2, "Drafts of each prompt in a round.", group=SAMPLING, least=1)
    sample_revisions: int = setting(2, "Revisions of each draft in a round.", group=SAMPLING, least=0)
    sample_temperature: float = setting(1.0, "Sampling temperature of drafts and revisions.", group=SAMPLING, above=0)
    sample_max_new_tokens: int = shared("max_new_tokens", help="Largest number of tokens in a sample.", group=SAMPLING)
    sample_batch_size: int = shared("batch_size", help="Number of prompts sampled together.", group=SAMPLING)
    gold_key: str = shared("gold_key", group=LABELS)
    ask: str = setting(",".join(KINDS), "Kinds of comparison that the judge labels, with commas.", group=LABELS)
    choose: str = setting("random", "Comparisons that get a label: random or uncertain.", group=LABELS, choices=CHOICES)
    labels_per_round: int | None = setting(None, "Labels in a round; unset: all comparisons.", group=LABELS, least=1)
    validation_prompts: str | None = setting(
        None, "File of prompts that decide when to stop; unset: every round is run.", group=VALIDATION
    )
    validation_revisions: int = shared("revisions", help="Revisions of each validation draft.", group=VALIDATION)
    patience: int = setting(1, "Rounds without a better validation before stopping.", group=VALIDATION, least=1)

    @property
    def asked(self) -> tuple[str, ...]:
        """Kinds of comparison that the judge labels, such as "draft-revision"."""
        return kinds_of(self.ask)

    def __post_init__(self) -> None:
        expect_valid(self)
        kinds = self.asked
        if self.round_steps != -1 and self.round_steps < 1:
            raise ConfigError(f"{self.round_steps}", where="round_steps", expected="1 or more, or -1 for one epoch")
        if kinds == ("draft-draft",) and self.samples_per_prompt < 2:
            raise ConfigError("draft-draft alone, with one draft per prompt", where="samples_per_prompt", expected="2")
        if self.sample_revisions < 1 and set(kinds) <= {"draft-revision", "revision-revision"}:
            what = "revisions are compared, but none are drawn"
            raise ConfigError(what, where="sample_revisions", expected="1 or more")

    def training(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns the settings of one round's training: `settings`, of the offline training, with those of rounds.

        Steps, learning rate and grouping by prompt are replaced.
        """
        changed: dict[str, Any] = {"max_steps": self.round_steps, "group_by_prompt": self.round_group_by_prompt}
        if self.round_steps == -1:
            changed["num_train_epochs"] = 1
        if self.round_learning_rate is not None:
            changed["learning_rate"] = self.round_learning_rate
        return {**settings, **changed}
