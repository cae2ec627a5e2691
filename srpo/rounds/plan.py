"""Settings of `srpo rounds`: those of `srpo train`, which say how each round trains, and these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from srpo.errors import ConfigError, did_you_mean
from srpo.rounds.candidates import CHOICES, KINDS, kinds_of

REFERENCES = ("fixed", "moving")


@dataclass
class RoundsArguments:
    """Sampling, labelling and when to stop.

    Raises:
        ConfigError: a value out of range.

    Example:
        >>> RoundsArguments(rounds=3, labels_per_round=2000).asked
        ('draft-revision', 'revision-revision', 'draft-draft')
    """

    rounds: int = field(default=2, metadata={"help": "Rounds of sample, label, train after the offline training."})
    sample_prompts: str | None = field(
        default=None, metadata={"help": "File of prompts to sample from; unset: those of the preference data."}
    )
    samples_per_prompt: int = field(default=2, metadata={"help": "Drafts per prompt, each revised."})
    sample_revisions: int = field(default=2, metadata={"help": "Revisions of each draft."})
    sample_temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling, above 0."})
    sample_max_new_tokens: int = field(default=256, metadata={"help": "Tokens per answer."})
    sample_batch_size: int = field(default=32, metadata={"help": "Prompts generated together."})
    gold_key: str = field(default="gold", metadata={"help": "Column with the gold answer, for judges that need one."})
    ask: str = field(default=",".join(KINDS), metadata={"help": "Which two answers are compared."})
    choose: str = field(default="random", metadata={"help": "Which comparisons get a label: random or uncertain."})
    labels_per_round: int | None = field(default=None, metadata={"help": "Labels per round; unset: all comparisons."})
    round_steps: int = field(default=-1, metadata={"help": "Optimiser steps per round; −1: one epoch of its pairs."})
    round_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the rounds; unset: that of the offline training."}
    )
    offline_share: float = field(default=0.0, metadata={"help": "Share of offline pairs among a round's, in [0, 1)."})
    round_reference: str = field(
        default="fixed",
        metadata={"help": "fixed: what offline training began from; moving: what each round does."},
    )
    validation_prompts: str | None = field(
        default=None, metadata={"help": "File of prompts that say when to stop; unset: every round is run."}
    )
    validation_revisions: int = field(default=5, metadata={"help": "Revisions of each validation draft."})
    patience: int = field(default=1, metadata={"help": "Rounds without a better validation before it stops."})

    @property
    def asked(self) -> tuple[str, ...]:
        """Kinds of comparison."""
        return kinds_of(self.ask)

    def __post_init__(self) -> None:
        kinds = self.asked
        for name, least in (
            ("rounds", 1),
            ("samples_per_prompt", 1),
            ("sample_revisions", 0),
            ("sample_max_new_tokens", 1),
            ("sample_batch_size", 1),
            ("validation_revisions", 0),
            ("patience", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{getattr(self, name)}", where=name, expected=f"{least} or more")
        for name, known in (("choose", CHOICES), ("round_reference", REFERENCES)):
            value = getattr(self, name)
            if value not in known:
                expected, fix = "one of " + ", ".join(known), did_you_mean(str(value), known)
                raise ConfigError(f"{value!r}", where=name, expected=expected, fix=fix)
        if not 0 <= self.offline_share < 1:
            raise ConfigError(f"{self.offline_share}", where="offline_share", expected="at least 0 and below 1")
        if not self.sample_temperature > 0:
            fix = "greedy drafts of one prompt are all the same"
            raise ConfigError(f"{self.sample_temperature}", where="sample_temperature", expected="above 0", fix=fix)
        if self.round_steps != -1 and self.round_steps < 1:
            raise ConfigError(f"{self.round_steps}", where="round_steps", expected="at least 1, or -1 for one epoch")
        if kinds == ("draft-draft",) and self.samples_per_prompt < 2:
            raise ConfigError("draft-draft alone, with one draft per prompt", where="samples_per_prompt", expected="2")
        if self.sample_revisions < 1 and set(kinds) <= {"draft-revision", "revision-revision"}:
            raise ConfigError(
                "revisions are compared and none is drawn", where="sample_revisions", expected="1 or more"
            )

    def training(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What a round's training has otherwise than the offline one."""
        changed: dict[str, Any] = {"max_steps": self.round_steps}
        if self.round_steps == -1:
            changed["num_train_epochs"] = 1
        if self.round_learning_rate is not None:
            changed["learning_rate"] = self.round_learning_rate
        return {**settings, **changed}
