"""Offline training, then rounds of sample → label → train: the model learns to revise its own drafts.

    round0/model                     offline training, an ordinary run folder
    roundN/trails.jsonl              drafts and revisions of the model before it, as `srpo sample` writes them
    roundN/pairs.jsonl               preference pairs from them, as `srpo label` writes them
    roundN/model                     training on those pairs, from the model before
    round*/validation.jsonl          drafts and revisions of that round's model, compared with round 0's drafts
    rounds.json                      cost and validation of each round
    verdicts.jsonl                   every verdict, so that no verdict is paid for twice

The loss is the ordinary supervised one; only the source of the pairs changes. Every stage resumes, so running the same
command again continues the rounds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from srpo.data.read import Pair
from srpo.disk import writable_folder, write_file
from srpo.errors import ConfigError, DataError
from srpo.judge.verdict import AnswerPair, PairJudge
from srpo.judge.verdict_cache import CachingJudge
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.revise.trail_files import read_trails, revise_file
from srpo.rounds.label import LabelSettings, label_file, read_counts, rows_as_lines
from srpo.rounds.plan import RoundsArguments
from srpo.rounds.sample import sample_file
from srpo.rounds.sources import RoundsSources

ROUNDS_FILE, SETTINGS_FILE, VERDICTS_FILE = "rounds.json", "rounds.settings.json", "verdicts.jsonl"
# Settings of the files that rounds write, whose columns have srpo's names.
OWN_ROWS = {"map": None, "dataset_config": None, "dataset_train_split": "train"}
MAY_CHANGE = ("rounds", "patience")  # settings that may differ when a run continues
VALIDATION_SEED = 1_000_003
log = logging.getLogger("srpo")

Train = Callable[[dict[str, Any]], object]  # trains with settings by name, resuming the run in `output_dir`


@dataclass
class Round:
    """Record of one round: its cost and its result on validation prompts.

    Attributes:
        round: number of the round; 0 is the offline training.
        labels: comparisons judged for its pairs.
        pairs: pairs of the model's own answers that it trained on.
        offline: pairs of the original data that it trained on as well.
        informative: share of the labels that became pairs.
        tokens: tokens of all forward passes that drew the round's answers.
        seconds: wall seconds of sampling, labelling, training and validating; an interrupted one counts from its last
            start.
        validation: win rate after k revisions against round 0's drafts, by k; a tie counts half.
        best_k: number of revisions with the highest win rate.
    """

    round: int
    labels: int = 0
    pairs: int = 0
    offline: int = 0
    informative: float = 0.0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    validation: list[float] = field(default_factory=list)
    best_k: int | None = None

    @property
    def best(self) -> float | None:
        """Win rate on the validation prompts after `best_k` revisions, in [0, 1]; None without validation."""
        return self.validation[self.best_k] if self.best_k is not None else None

    def line(self) -> str:
        """Returns the round's cost and its win rates as one line of text."""
        text = f"round {self.round}: {self.labels} labels, {self.pairs} pairs"
        if self.labels:
            text += f" ({100 * self.informative:.0f} % informative)"
        if self.offline:
            text += f" and {self.offline} offline ones"
        text += f", {self.tokens} tokens, {sum(self.seconds.values()):.0f} s"
        if self.best is not None:
            rates = " ".join(f"{100 * rate:.1f}" for rate in self.validation)
            text += f"; wins over round 0's drafts after 0, 1, … revisions: {rates} %"
        return text


def run_rounds(
    output_dir: str, settings: Mapping[str, Any], plan: RoundsArguments, judge: PairJudge, train: Train
) -> list[Round]:
    """Runs offline training and rounds of sample → label → train, or continues those in the folder.

    Args:
        output_dir: folder of all rounds.
        settings: settings of the offline training, by name.
        plan: settings of sampling, labelling and stopping.
        judge: decides the comparisons of labelling and validation.
        train: called with settings by name; trains and resumes the run in their `output_dir`.

    Returns:
        One `Round` for the offline training and one for each round.

    Raises:
        ConfigError: the folder holds rounds with other settings.
        SRPOError: errors of sampling, labelling or training.
    """
    rounds = _Rounds(writable_folder(Path(output_dir)), settings, plan, judge)
    done: list[Round] = []
    for number in range(plan.rounds + 1):
        stages = _Stages(rounds, number)
        done.append(stages.run(train))
        rows = [asdict(each) for each in done]
        write_file(rounds.folder / ROUNDS_FILE, (json.dumps(rows, indent=2) + "\n").encode())
        log.info("srpo: %s", done[-1].line())
        if _no_longer_improves(done, plan.patience):
            log.info("srpo: validation has not improved for %d rounds: stopping", plan.patience)
            break
    return done


class _Rounds:
    """Record of the folder, settings and judge that all rounds share."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], plan: RoundsArguments, judge: PairJudge) -> None:
        self.folder, self.settings, self.plan = folder, settings, plan
        self.sources = RoundsSources.of(settings, plan)
        self.judge = CachingJudge(judge, folder / VERDICTS_FILE)
        _expect_same(folder / SETTINGS_FILE, {**settings, **asdict(plan), "judge": self.judge.identity})

    def model_after(self, number: int) -> str:
        """Returns the path of the model that round `number` makes; below 0, the model before the offline training."""
        if number < 0:
            return str(self.settings["model_name_or_path"])
        return str(self.folder / f"round{number}" / "model")

    def reviser(self, model: str, reference: str | None = None) -> Reviser:
        """Loads `model` into a reviser, on the training device; with `reference`, answers also get a confidence."""
        device = "cpu" if str(self.settings.get("use_cpu", False)).lower() == "true" else ""
        return Reviser(model, reference=reference, batch_size=self.plan.sample_batch_size, device=device)


class _Stages:
    """Runs the stages of one round (sample, label, train, validate) in the round's folder."""

    def __init__(self, rounds: _Rounds, number: int) -> None:
        self.rounds, self.plan, self.number = rounds, rounds.plan, number
        self.folder = writable_folder(rounds.folder / f"round{number}")
        try:
            seconds = json.loads((self.folder / "seconds.json").read_text("utf-8"))
        except (OSError, ValueError):
            seconds = {}
        self.round = Round(number, seconds=seconds)

    def run(self, train: Train) -> Round:
        """Runs the round's unfinished stages (sample, label, train, validate) and returns the `Round`.

        `train` is called with the round's training settings by name.
        """
        settings = self.rounds.settings
        changed: dict[str, Any] = {"output_dir": str(self.folder / "model")}
        if self.number:
            self._sample()
            self._label()
            changed |= {
                **self.plan.training(dict(settings)),
                **changed,
                "model_name_or_path": self.rounds.model_after(self.number - 1),
                **OWN_ROWS,
                "dataset_name": str(self._mixed_pairs()),
                "seed": int(settings.get("seed", 42)) + self.number,
                "use_peft": False,  # an existing adapter is trained further
            }
            if self.plan.round_reference == "fixed":
                changed["ref_model_name_or_path"] = str(settings["model_name_or_path"])
        self._timed("train", lambda: train({**settings, **changed}))
        if self.plan.validation_prompts:
            self._timed("validate", self._validate)
        return self.round

    def _sample(self) -> None:
        """Draws drafts and revisions with the model of the round before into trails.jsonl, if not done already."""
        plan, target = self.plan, self.folder / "trails.jsonl"
        model = self.rounds.model_after(self.number - 1)
        reference = None  # doubles the forward passes, so it is loaded only if the choice needs the model's confidence
        if plan.choose == "uncertain":
            reference = self.rounds.model_after(self.number - 2 if plan.round_reference == "moving" else -1)
        settings = RevisionSettings(
            plan.sample_revisions, plan.sample_temperature, self.number, plan.sample_max_new_tokens, policy="always"
        )
        self._timed(
            "sample",
            lambda: sample_file(
                lambda: self.rounds.reviser(model, reference),
                self.rounds.sources.sampling,
                str(target),
                settings,
                samples=plan.samples_per_prompt,
                bad_rows=self.rounds.sources.bad_rows,
                made_with={"model": model, **({"reference": reference} if reference else {})},
            ),
        )
        self.round.tokens += _tokens(read_trails(target, gold_key=None))

    def _label(self) -> None:
        """Has the judge compare answers from trails.jsonl, and writes pairs.jsonl; a finished file is kept."""
        plan, target = self.plan, self.folder / "pairs.jsonl"
        settings = LabelSettings(plan.asked, plan.choose, plan.labels_per_round, self.number, plan.gold_key)
        if not target.exists():
            trails, judge = str(self.folder / "trails.jsonl"), self.rounds.judge
            announce = partial(self._announce, "its pairs")
            self._timed("label", lambda: label_file(trails, str(target), judge, settings, announce=announce))
        counts = read_counts(target)
        self.round.labels, self.round.informative = counts.labels, counts.informative
        self.round.pairs = sum(counts.pairs.values())

    def _mixed_pairs(self) -> Path:
        """Returns the file of pairs to train on: the round's pairs and, if `offline_share` is set, some offline pairs.

        Each round draws its offline pairs anew.
        """
        pairs, share = self.folder / "pairs.jsonl", self.plan.offline_share
        if not share:
            return pairs
        offline = self.rounds.sources.offline_pairs()
        drawn = sorted(offline, key=lambda pair: _lot(pair, self.number))[
            : round(self.round.pairs * share / (1 - share))
        ]
        self.round.offline = len(drawn)
        mixed = self.folder / "mixed.jsonl"
        write_file(mixed, pairs.read_bytes() + rows_as_lines([_row(pair) for pair in drawn]))
        return mixed

    def _validate(self) -> None:
        """Measures the round's win rates against the drafts of round 0, one per number of revisions, and the best."""
        plan, target, model = self.plan, self.folder / "validation.jsonl", str(self.folder / "model")
        settings = RevisionSettings(
            plan.validation_revisions, plan.sample_temperature, VALIDATION_SEED, plan.sample_max_new_tokens
        )
        prompts, bad_rows = self.rounds.sources.validation, self.rounds.sources.bad_rows
        assert prompts is not None, "validates without prompts"
        make, made_with = partial(self.rounds.reviser, model), {"model": model}
        revise_file(make, prompts, str(target), settings, bad_rows=bad_rows, made_with=made_with)
        first = self.rounds.folder / "round0" / "validation.jsonl"
        trails, rivals = (read_trails(file, gold_key=None, failed=True) for file in (target, first))
        self.round.tokens += _tokens(trails)
        duels = [_duels(trails, rivals, k, plan.gold_key) for k in range(plan.validation_revisions + 1)]
        self._announce("validation", itertools.chain(*duels))
        self.round.validation = [_win_rate(self.rounds.judge, each) for each in duels]
        self.round.best_k = self.round.validation.index(max(self.round.validation))

    def _announce(self, purpose: str, comparisons: Iterable[AnswerPair]) -> None:
        """Logs the cost so far and the judge's forecast for the comparisons; `purpose` names their use."""
        so_far = f"{self.round.tokens} tokens and {sum(self.round.seconds.values()):.0f} s so far"
        forecast = self.rounds.judge.forecast(comparisons)
        log.info("srpo: round %d: %s; for %s %s", self.number, so_far, purpose, forecast)

    def _timed(self, stage: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        # Running a finished stage again only reads its files, so its first time is kept.
        self.round.seconds.setdefault(stage, round(time.perf_counter() - began, 1))
        write_file(self.folder / "seconds.json", (json.dumps(self.round.seconds) + "\n").encode())


def _duels(trails: list[Trail], rivals: list[Trail], k: int, gold_key: str) -> list[AnswerPair]:
    """Pairs of each trail's newest kept answer after `k` revisions and the draft of the same prompt in `rivals`.

    Prompts with a failed trail on either side are left out.
    """
    return [
        AnswerPair(trail.prompt, trail.after(k).text, rival.answers[0].text, trail.meta.get(gold_key))
        for trail, rival in zip(trails, rivals, strict=True)
        if not (trail.failed or rival.failed)
    ]


def _win_rate(judge: PairJudge, duels: list[AnswerPair]) -> float:
    scores = [verdict.score for verdict in judge.compare(duels) if verdict.score is not None]
    return sum(scores) / len(scores) if scores else 0.5


def _no_longer_improves(done: Sequence[Round], patience: int) -> bool:
    rates = [each.best for each in done if each.best is not None]
    return len(rates) > patience and max(rates[-patience:]) <= max(rates[:-patience])


def _expect_same(file: Path, settings: dict[str, Any]) -> None:
    """Writes the rounds' settings to `file`; if it exists, checks that it holds the same settings.

    Raises:
        ConfigError: a setting has changed.
        DataError: the file is damaged.
    """
    now = json.loads(json.dumps(settings, default=str))
    if file.exists():
        before = _settings_in(file)
        changed = [
            f"{key} {before.get(key)!r} → {now.get(key)!r}"
            for key in {**before, **now}
            if key not in MAY_CHANGE and before.get(key) != now.get(key)
        ]
        if changed:
            fix = "use the same settings, or another --output_dir"
            raise ConfigError(f"was started with other settings: {', '.join(changed)}", where=str(file.parent), fix=fix)
    write_file(file, (json.dumps(now, indent=2) + "\n").encode())


def _settings_in(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fix = "name another --output_dir; or delete the file, if the settings are unchanged"
        raise DataError("damaged", where=str(file), expected="the settings of the rounds in this folder", fix=fix)
    return found


def _tokens(trails: Sequence[Trail]) -> int:
    return sum(answer.forward_tokens for trail in trails for answer in trail.answers)


def _row(pair: Pair) -> dict[str, Any]:
    options = {"tools": pair.tools, "chat_template_kwargs": pair.chat_template_kwargs}
    given = {key: value for key, value in options.items() if value is not None}
    return {**pair.meta, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, **given}


def _lot(pair: Pair, number: int) -> bytes:
    """Sort key that puts offline pairs in a random order: a hash of the pair and the round's number."""
    return hashlib.sha256(json.dumps([number, pair.prompt, pair.chosen, pair.rejected]).encode()).digest()
