"""Sources of `srpo rounds`: the offline pairs, the prompts to sample from and those of validation, and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from srpo.data.pictures import pictures_of
from srpo.data.read import Pair, PromptRow, read_pairs, read_prompts
from srpo.data.source import EXTRA_COLUMNS, Source, columns_of
from srpo.errors import ConfigError, UsageError
from srpo.judge.load import expect_judge_sees
from srpo.rounds.plan import RoundsArguments
from srpo.train.arguments import DataArguments

OF_PROMPTS = ("prompt", "conversations", *EXTRA_COLUMNS)  # columns of `map` that a file of prompts also has


@dataclass(frozen=True)
class RoundsSources:
    """Sources of the rows that rounds read.

    Attributes:
        pairs: offline pairs.
        sampling: prompts to sample from.
        validation: validation prompts; None without validation.
        bad_rows: "error" stops at an unusable row, "skip" leaves it out.
    """

    pairs: Source
    sampling: Source
    validation: Source | None = None
    bad_rows: str = "error"

    @classmethod
    def of(cls, settings: Mapping[str, Any], plan: RoundsArguments) -> RoundsSources:
        """Returns the sources that training settings, by name, and the settings of rounds describe.

        `map` renames the columns of all of them; split and configuration belong to the offline pairs alone.

        Raises:
            UsageError: no offline pairs are named.
            ConfigError: evaluation pairs that the trainings of rounds could not read as the offline training does.
        """
        names = [each.name for each in fields(DataArguments)]
        data = DataArguments(**{name: settings[name] for name in names if name in settings})
        if not data.dataset_name:
            raise UsageError("no dataset_name", fix="add `--dataset_name …` or put it in the settings file")
        _expect_evaluation(data, str(settings.get("eval_strategy", "no")))
        pairs = data.source()
        columns = {ours: theirs for ours, theirs in columns_of(data.map).items() if ours in OF_PROMPTS}
        sampling = Source(plan.sample_prompts, columns) if plan.sample_prompts else pairs
        validation = Source(plan.validation_prompts, columns) if plan.validation_prompts else None
        return cls(pairs, sampling, validation, str(settings.get("bad_rows", "error")))

    def offline_pairs(self) -> list[Pair]:
        """Reads and returns the offline pairs; raises DataError at an unusable row, unless `bad_rows` is "skip"."""
        return read_pairs(self.pairs, rejects=[] if self.bad_rows == "skip" else None)

    def expect_usable(self, judge: str, *, offline: bool) -> None:
        """Checks, before anything is trained, that all prompts can be read, sampled from, judged and trained on.

        Args:
            judge: name of the judge.
            offline: True if rounds also train on offline pairs.

        Raises:
            InputError: a source cannot be read.
            ConfigError: a picture of a prompt for training is not a file; trails and pairs keep its hash alone.
            DataError: an unusable row, or a prompt with pictures for a judge that is not shown them.
        """
        prompts = self._prompts(self.sampling)
        _expect_seen(prompts, judge)
        _expect_files(prompts)
        if offline and self.sampling is not self.pairs:
            _expect_files(self.offline_pairs())
        if self.validation is not None:
            _expect_seen(self._prompts(self.validation), judge)

    def _prompts(self, source: Source) -> list[PromptRow]:
        return read_prompts(source, rejects=[] if self.bad_rows == "skip" else None)


def _expect_evaluation(data: DataArguments, strategy: str) -> None:
    """Raises ConfigError for evaluation pairs that depend on settings of the offline pairs, which rounds do without."""
    fix = "write the evaluation pairs to a file with srpo's column names, and name it by eval_dataset_name"
    if data.eval_dataset_name is None:
        if strategy != "no":
            raise ConfigError("the pairs of rounds have no test split", where="eval_strategy", fix=fix)
    elif data.map or (data.dataset_config and Source(data.eval_dataset_name).has_splits):
        name = "map" if data.map else "dataset_config"
        raise ConfigError("rounds would read eval_dataset_name without it", where=name, fix=fix)


def _expect_seen(rows: Iterable[PromptRow], judge: str) -> None:
    for row in rows:
        expect_judge_sees(judge, [row.prompt], where=row.where)


def _expect_files(rows: Iterable[PromptRow | Pair]) -> None:
    for row in rows:
        if any(picture.data is not None for picture in pictures_of(row.prompt)):
            fix = "save the pictures and give their paths"
            raise ConfigError("a picture without a file, which pairs of rounds cannot show", where=row.where, fix=fix)
