"""Offline training, then rounds of sample → label → train: learning to revise one's own drafts.

    round0/model                     offline training, an ordinary run folder
    roundN/trails.jsonl              drafts and revisions of the model before it, as `srpo sample` writes them
    roundN/pairs.jsonl               what a judge ordered of them, as `srpo label` writes it
    roundN/model                     training on those, from the model before
    round*/validation.jsonl          drafts and revisions of that round's model, compared with round 0's drafts
    rounds.json                      what each round cost and what it brought
    verdicts.jsonl                   every verdict, so that none is paid for twice

The loss stays the plain supervised one; what changes is whose answers the pairs are made of. Every stage is resumable,
and so is the whole: run it again and it goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srpo.data.read import Pair, read_pairs
from srpo.disk import writable_folder, write_file
from srpo.errors import ConfigError, DataError
from srpo.judge.verdict import AnswerPair, PairJudge
from srpo.judge.verdict_cache import CachingJudge
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.revise.trail_files import revise_file
from srpo.rounds import label as labelling
from srpo.rounds.plan import RoundsArguments
from srpo.rounds.sample import sample_file
from srpo.score.trail_systems import read_trails

ROUNDS_FILE, SETTINGS_FILE, VERDICTS_FILE = "rounds.json", "rounds.settings.json", "verdicts.jsonl"
MAY_CHANGE = ("rounds", "patience")  # a run may go on for longer than it was begun for
VALIDATION_SEED = 1_000_003
log = logging.getLogger("srpo")

# Settings of a training → its parsed groups, trained; given by the caller, who knows how settings become a training.
Train = Callable[[dict[str, Any]], Any]


@dataclass
class Round:
    """What a round cost and brought.

    Attributes:
        round: 0 is the offline training.
        labels: verdicts asked for its pairs.
        pairs: pairs it trained on that came of them.
        offline: pairs of the original data beside them.
        informative: share of the labels that became pairs.
        tokens: tokens read by forward passes to draw its answers.
        seconds: wall seconds by stage; a stage that was interrupted counts from its last start.
        validation: win rate of the answer in hand after k revisions against round 0's drafts, ties half.
        best_k: the k that does best there.
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
        """The win rate at the best k."""
        return self.validation[self.best_k] if self.best_k is not None else None


def run_rounds(
    output_dir: str, settings: Mapping[str, Any], plan: RoundsArguments, judge: PairJudge, train: Train
) -> list[Round]:
    """Runs or goes on with the rounds.

    Args:
        output_dir: folder of the whole run.
        settings: those of the offline training, as `srpo train` takes them.
        train: trains with such settings, resuming what is there.

    Returns:
        A `Round` for the offline training and each round run.

    Raises:
        ConfigError: the folder holds a run with other settings.
        SRPOError: what a stage raises.
    """
    folder = writable_folder(Path(output_dir))
    asked = CachingJudge(judge, folder / VERDICTS_FILE)
    _expect_same(folder / SETTINGS_FILE, {**settings, **asdict(plan), "judge": asked.identity})
    done: list[Round] = []
    for number in range(plan.rounds + 1):
        here = writable_folder(folder / f"round{number}")
        account = _begun(here, number)
        before = _model_after(folder, settings, number - 1)
        changed: dict[str, Any] = {"output_dir": str(here / "model")}
        if number:
            _sample(here, settings, plan, number, account)
            _label(here, asked, plan, number, account)
            changed |= {
                **plan.training(dict(settings)),
                **changed,
                "model_name_or_path": before,
                "dataset_name": str(_mixed(here, settings, plan, number, account)),
                "seed": int(settings.get("seed", 42)) + number,
                "use_peft": False,  # the adapter that is there is trained on
            }
            if plan.round_reference == "fixed":
                changed["ref_model_name_or_path"] = str(settings["model_name_or_path"])
        _timed(here, account, "train", lambda changed=changed: train({**settings, **changed}))  # type: ignore[misc]
        if plan.validation_prompts:
            _validate(folder, here, settings, plan, asked, account)
        done.append(account)
        write_file(folder / ROUNDS_FILE, (json.dumps([asdict(each) for each in done], indent=2) + "\n").encode())
        log.info("srpo: %s", line_of(account))
        if _no_longer_improves(done, plan.patience):
            log.info("srpo: validation has not improved for %d rounds: stopping", plan.patience)
            break
    return done


def line_of(account: Round) -> str:
    """A round for a reader."""
    said = f"round {account.round}: {account.labels} labels, {account.pairs} pairs"
    if account.labels:
        said += f" ({100 * account.informative:.0f} % informative)"
    if account.offline:
        said += f" and {account.offline} offline ones"
    said += f", {account.tokens} tokens, {sum(account.seconds.values()):.0f} s"
    if account.best is not None:
        rates = " ".join(f"{100 * rate:.1f}" for rate in account.validation)
        said += f"; wins over round 0's drafts after 0, 1, … revisions: {rates} %"
    return said


# ---------------------------------------------------------------------- stages


def _model_after(folder: Path, settings: Mapping[str, Any], number: int) -> str:
    """The model that a round leaves; before the offline training there is the one that it begins from."""
    return str(settings["model_name_or_path"]) if number < 0 else str(folder / f"round{number}" / "model")


def _sample(here: Path, settings: Mapping[str, Any], plan: RoundsArguments, number: int, account: Round) -> None:
    model, target = _model_after(here.parent, settings, number - 1), here / "trails.jsonl"
    reference = None  # its forward passes are as many as the model's own, so it is read only where a choice needs it
    if plan.choose == "uncertain":
        begun = number - 2 if plan.round_reference == "moving" else -1
        reference = _model_after(here.parent, settings, begun)
    how = RevisionSettings(
        plan.sample_revisions, plan.sample_temperature, number, plan.sample_max_new_tokens, policy="always"
    )

    def draw() -> None:
        sample_file(
            lambda: _reviser(settings, plan, model, reference),
            plan.sample_prompts or str(settings["dataset_name"]),
            str(target),
            how,
            samples=plan.samples_per_prompt,
            made_with={"model": model, **({"reference": reference} if reference else {})},
        )

    _timed(here, account, "sample", draw)
    account.tokens += _tokens(read_trails(target, gold_key=None))


def _reviser(settings: Mapping[str, Any], plan: RoundsArguments, model: str, reference: str | None = None) -> Reviser:
    """What draws with a model, on the device that training runs on."""
    device = "cpu" if str(settings.get("use_cpu", False)).lower() == "true" else ""
    return Reviser(model, reference=reference, batch_size=plan.sample_batch_size, device=device)


def _announce(account: Round, what: str, judge: CachingJudge, asked: Iterable[AnswerPair]) -> None:
    """What it has cost and what it will, while a judge that takes money has not been asked."""
    so_far = f"{account.tokens} tokens and {sum(account.seconds.values()):.0f} s so far"
    log.info("srpo: round %d: %s; for %s %s", account.round, so_far, what, judge.forecast(asked))


def _label(here: Path, judge: CachingJudge, plan: RoundsArguments, number: int, account: Round) -> None:
    target = here / "pairs.jsonl"
    settings = labelling.Settings(plan.asked, plan.choose, plan.labels_per_round, number, plan.gold_key)
    if not target.exists():
        _timed(
            here,
            account,
            "label",
            lambda: labelling.label_file(
                str(here / "trails.jsonl"),
                str(target),
                judge,
                settings,
                announce=lambda asked: _announce(account, "its pairs", judge, asked),
            ),
        )
    told = labelling.account_of(target)
    account.labels, account.pairs, account.informative = told.labels, sum(told.pairs.values()), told.informative


def _mixed(here: Path, settings: Mapping[str, Any], plan: RoundsArguments, number: int, account: Round) -> Path:
    """The round's pairs, with as many offline ones as their share asks for, drawn anew each round."""
    pairs = here / "pairs.jsonl"
    if not plan.offline_share:
        return pairs
    offline = sorted(read_pairs(str(settings["dataset_name"])), key=lambda pair: _lot(pair, number))
    wanted = round(account.pairs * plan.offline_share / (1 - plan.offline_share))
    kept = offline[:wanted]
    account.offline = len(kept)
    mixed = here / "mixed.jsonl"
    write_file(mixed, pairs.read_bytes() + labelling.rows_as_lines([_row(pair) for pair in kept]))
    return mixed


def _validate(
    folder: Path, here: Path, settings: Mapping[str, Any], plan: RoundsArguments, judge: CachingJudge, account: Round
) -> None:
    """Win rate by revision against the drafts of round 0: one opponent for all rounds."""
    target = here / "validation.jsonl"
    how = RevisionSettings(
        plan.validation_revisions, plan.sample_temperature, VALIDATION_SEED, plan.sample_max_new_tokens
    )
    model = str(here / "model")

    def draw() -> None:
        revise_file(
            lambda: _reviser(settings, plan, model),
            str(plan.validation_prompts),
            str(target),
            how,
            made_with={"model": model},
        )
        trails = read_trails(target, gold_key=None)
        rivals = read_trails(folder / "round0" / "validation.jsonl", gold_key=None)
        account.tokens += _tokens(trails)
        asked = [_duels(trails, rivals, k, plan.gold_key) for k in range(plan.validation_revisions + 1)]
        _announce(account, "validation", judge, itertools.chain(*asked))
        account.validation = [_win_rate(judge, duels) for duels in asked]
        account.best_k = account.validation.index(max(account.validation))

    _timed(here, account, "validate", draw)


def _duels(trails: list[Trail], rivals: list[Trail], k: int, gold_key: str) -> list[AnswerPair]:
    """Each answer in hand after k revisions against the other's draft."""
    return [
        AnswerPair(trail.prompt, trail.after(k).text, rival.answers[0].text, trail.meta.get(gold_key))
        for trail, rival in zip(trails, rivals, strict=True)
    ]


def _win_rate(judge: PairJudge, duels: list[AnswerPair]) -> float:
    scores = [verdict.score for verdict in judge.compare(duels) if verdict.score is not None]
    return sum(scores) / len(scores) if scores else 0.5


def _no_longer_improves(done: Sequence[Round], patience: int) -> bool:
    rates = [each.best for each in done if each.best is not None]
    return len(rates) > patience and max(rates[-patience:]) <= max(rates[:-patience])


# ---------------------------------------------------------------------- what is kept


def _begun(here: Path, number: int) -> Round:
    """The account of a round, with the seconds of the stages that are behind it."""
    try:
        seconds = json.loads((here / "seconds.json").read_text("utf-8"))
    except (OSError, ValueError):
        seconds = {}
    return Round(number, seconds=seconds)


def _timed(here: Path, account: Round, stage: str, work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    account.seconds.setdefault(stage, round(time.perf_counter() - began, 1))  # a finished stage done again is no work
    write_file(here / "seconds.json", (json.dumps(account.seconds) + "\n").encode())


def _expect_same(file: Path, settings: dict[str, Any]) -> None:
    """Rounds of one run made with different settings would be no run at all."""
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
            raise ConfigError(f"was begun with other settings: {', '.join(changed)}", where=str(file.parent), fix=fix)
    write_file(file, (json.dumps(now, indent=2) + "\n").encode())


def _settings_in(file: Path) -> dict[str, Any]:
    """What a run was begun with.

    Raises:
        DataError: the file is damaged.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fix = "name another --output_dir; or delete the file, if the settings are those of the rounds that are there"
        raise DataError("damaged", where=str(file), expected="the settings that the rounds were begun with", fix=fix)
    return found


def _tokens(trails: Sequence[Trail]) -> int:
    return sum(answer.forward_tokens for trail in trails for answer in trail.answers)


def _row(pair: Pair) -> dict[str, Any]:
    beside = {"tools": pair.tools, "chat_template_kwargs": pair.chat_template_kwargs}
    given = {key: value for key, value in beside.items() if value is not None}
    return {**pair.meta, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, **given}


def _lot(pair: Pair, number: int) -> bytes:
    said = [number, pair.prompt, pair.chosen, pair.rejected]
    return hashlib.sha256(json.dumps(said).encode()).digest()
