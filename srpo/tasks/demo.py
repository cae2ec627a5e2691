"""The whole story on the carry task: base → pairs → SRPO, DPO, IPO → drafts and revisions → report.

Every step goes through what a user calls: `SRPOTrainer` on an ordinary JSONL of pairs, `Reviser`, `score`, `summarise`.
All methods start from the same base, see the same pairs in as many steps of as many pairs, and get their learning rate
and β from the same search on sums of another seed (benchmarks/carry_search.py; its table is in the lab book).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from srpo import __version__
from srpo.errors import ConfigError, InputError
from srpo.revise.trail import Trail
from srpo.tasks.carry import (
    SPLITS,
    TEMPLATE,
    BaseConfig,
    carry_tokenizer,
    label,
    sums,
    train_base,
    write_rows,
)
from srpo.tasks.stages import run_stage

Rows = Mapping[str, list[dict[str, str]]]
Scored = Mapping[Any, Any]  # what srpo.evaluate.scores.score returns
METHODS = ("srpo", "dpo", "ipo")
LABELS = {
    "srpo": "SRPO",
    "srpo_if_preferred": "SRPO, if it prefers",
    "srpo_best_of": "SRPO, best of k+1 drafts",
    "dpo": "DPO, asked to revise",
    "ipo": "IPO, asked to revise",
    "base": "base, asked to revise",
    "in": "in distribution",
    "out": "out of distribution",
}


@dataclass(frozen=True)
class MethodSettings:
    """What the search chose for one method.

    Attributes:
        beta, learning_rate, alpha: of its training; alpha is SRPO's alone.
        revisions: how many revisions serve it best, on the validation sums.
    """

    beta: float
    learning_rate: float
    alpha: float = 0.5
    revisions: int = 1


CHOSEN: Mapping[str, MethodSettings] = {
    "srpo": MethodSettings(beta=0.1, learning_rate=2e-4, revisions=2),
    "dpo": MethodSettings(beta=1.0, learning_rate=2e-4, revisions=1),
    "ipo": MethodSettings(beta=0.1, learning_rate=1e-4, revisions=0),
}


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo.

    Attributes:
        base: the base model; its seed is replaced by each run's.
        sampled: sums that get two drafts each, from which the pairs are made.
        steps, batch: optimiser steps and pairs per step of each method.
        prompts: sums per split in the evaluation.
        revisions: revisions drawn.
        methods: settings by method.
        policy: SRPO's policy in the verdict, chosen on validation.
        temperatures: at which answers are drawn.
    """

    base: BaseConfig = field(default_factory=BaseConfig)
    sampled: int = 20_000
    steps: int = 300
    batch: int = 64
    prompts: int = 2_000
    revisions: int = 5
    methods: Mapping[str, MethodSettings] = field(default_factory=lambda: dict(CHOSEN))
    policy: str = "always"
    temperatures: tuple[float, ...] = (1.0, 0.0)


# Seeds are kept apart: evaluation, pairs and validation never share sums. A run's seed is added to each.
_PAIRS, EVALUATION, VALIDATION = 1_000_000, 2_000_000, 3_000_000
_DRAW_BATCH = 1000
_NEW_TOKENS = 1  # beyond the digits of an answer: its terminator


# ---------------------------------------------------------------------- stages


def make_base(folder: Path, config: BaseConfig, show: Callable[[int, int, float], None] | None = None) -> None:
    """Trains the base and saves model, tokenizer and template."""
    model = None
    for step, loss, model in train_base(config):  # noqa: B007  the last one is saved
        if show is not None:
            show(step, config.steps, loss)
    model.save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    TEMPLATE.save(folder)


def make_pairs(folder: Path, base: Path, config: DemoConfig, seed: int) -> None:
    """Two drafts of the base for each sum → `pairs.jsonl`, as anybody's data would look."""
    from srpo.revise.reviser import Reviser

    rows = sums(config.sampled, "in", digits=config.base.digits, seed=_PAIRS + seed)
    reviser = Reviser(str(base), batch_size=_DRAW_BATCH)
    tokens = config.base.digits + 1 + _NEW_TOKENS
    first, second = (
        [t.after(0).text for t in reviser.revise(rows, 0, seed=draw, max_new_tokens=tokens)] for draw in (1, 2)
    )
    write_rows(folder / "pairs.jsonl", label(rows, first, second))


def train_method(folder: Path, base: Path, pairs: Path, config: DemoConfig, method: str, seed: int) -> None:
    """Trains one method from the base and saves it."""
    from transformers import PrinterCallback

    from srpo.train.config import SRPOConfig
    from srpo.train.trainer import SRPOTrainer

    settings = config.methods[method]
    args = SRPOConfig(
        output_dir=str(folder),
        objective=method,
        beta=settings.beta,
        alpha=settings.alpha,
        learning_rate=settings.learning_rate,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        seed=seed + 1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SRPOTrainer(str(base), args=args, train_dataset=str(pairs))
    trainer.remove_callback(PrinterCallback)  # its metrics are in metrics.jsonl
    trainer.train()
    trainer.save_model()


def draw_trails(folder: Path, model: Path, base: Path, config: DemoConfig, system: str, rows: Rows, seed: int) -> None:
    """Drafts and revises every sum at every temperature, as one system does: a file of trails for each."""
    from srpo.evaluate.best_of import best_of
    from srpo.revise.reviser import Reviser, Settings

    weighs = system in ("srpo_if_preferred", "srpo_best_of")  # the others need no confidence, which costs as much again
    reviser = Reviser(str(model), reference=str(base) if weighs else None, batch_size=_DRAW_BATCH)
    for split, temperature in cells(config, system):
        settings = Settings(
            revisions=config.revisions,
            temperature=temperature,
            seed=seed,
            max_new_tokens=config.base.digits + 1 + _NEW_TOKENS,
            policy="if_preferred" if system == "srpo_if_preferred" else "always",
        )
        if system.endswith("best_of"):
            trails = best_of(reviser, rows[split], settings)
        else:
            trails = reviser.revise(rows[split], **asdict(settings))
        lines = "".join(trail.to_json() + "\n" for trail in trails)
        (folder / _trail_file(split, temperature)).write_text(lines, "utf-8")


def cells(config: DemoConfig, system: str) -> list[tuple[str, float]]:
    """The (split, temperature) a system is drawn in; greedy drafts are all the same, so none is the best of them."""
    heats = [heat for heat in config.temperatures if heat or not system.endswith("best_of")]
    return [(split, heat) for split in SPLITS for heat in heats]


def _trail_file(split: str, temperature: float) -> str:
    return f"{split}.T{temperature:g}.jsonl"


SYSTEMS_OF = {
    "srpo": ("srpo", "srpo_if_preferred", "srpo_best_of"),
    "dpo": ("dpo",),
    "ipo": ("ipo",),
    "base": ("base",),
}


def evaluation_rows(config: DemoConfig, seed: int, start: int = EVALUATION) -> Rows:
    """Fresh sums of both splits; `start` keeps validation and evaluation apart."""
    return {
        split: sums(config.prompts, split, digits=config.base.digits, seed=start + 1000 * i + seed)
        for i, split in enumerate(SPLITS)
    }


# ---------------------------------------------------------------------- one method, in a process of its own


@dataclass(frozen=True)
class Job:
    """A method to train and draw, by plain values, so that it can be sent to another process.

    Attributes:
        run: folder of the seed's run, with its base and pairs.
        method: what to train; "base" trains nothing.
        systems: what to draw with it.
        config, seed: as everywhere.
        start: which sums to draw on.
        name: folder of the model in `run`, the method's own name if empty.
    """

    run: str
    method: str
    systems: tuple[str, ...]
    config: DemoConfig
    seed: int
    start: int = EVALUATION
    name: str = ""


def work(job: Job) -> dict[str, float]:
    """Trains the method (the base is there already) and draws its systems' trails; returns seconds by stage."""
    import torch
    from transformers.utils import logging as hf_logging

    torch.set_num_threads(1)  # the processes share the cores; results do not depend on how many there are
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    run, config, seconds = Path(job.run), job.config, {}
    base, pairs = run / "base", run / "pairs" / "pairs.jsonl"
    model, made_from = base, _settings(config, job.seed, "base", "sampled")
    if job.method != "base":
        model = run / (job.name or job.method)
        made_from |= {"steps": config.steps, "batch": config.batch, **asdict(config.methods[job.method])}
        made_from.pop("revisions")
        seconds[f"train {job.method}"] = run_stage(
            model, made_from, lambda folder: train_method(folder, base, pairs, config, job.method, job.seed)
        )
    rows = evaluation_rows(config, job.seed, job.start)
    drawn = made_from | {"start": job.start}
    drawn |= {name: asdict(config)[name] for name in ("prompts", "revisions", "temperatures")}
    for system in job.systems:
        seconds[f"draw {system}"] = run_stage(
            trail_folder(job, system),
            drawn,
            lambda folder, system=system: draw_trails(folder, model, base, config, system, rows, job.seed),
        )
    return seconds


def trail_folder(job: Job, system: str) -> Path:
    """Where a job leaves the trails of a system."""
    return Path(job.run) / "trails" / (f"{job.name}.{system}" if job.name else system)


def _settings(config: DemoConfig, seed: int, *names: str) -> dict[str, Any]:
    return {"seed": seed, "srpo": __version__, **{name: asdict(config)[name] for name in names}}


# ---------------------------------------------------------------------- the runs


def run_seed(folder: Path, config: DemoConfig, seed: int, say: Say) -> None:
    """One seed from nothing to trails: base and pairs here, the methods side by side."""
    config = start_run(folder, config, seed, say)
    jobs = [Job(str(folder), method, systems, config, seed) for method, systems in SYSTEMS_OF.items()]
    for seconds in side_by_side(work, jobs):
        for stage, took in seconds.items():
            say.stage(f"seed {seed}: {stage}", took)


def start_run(folder: Path, config: DemoConfig, seed: int, say: Say) -> DemoConfig:
    """Base and pairs of a seed; returns the configuration with the base's seed in it."""
    config = replace(config, base=replace(config.base, seed=seed))
    base, pairs = folder / "base", folder / "pairs"
    took = run_stage(base, _settings(config, seed, "base"), lambda into: make_base(into, config.base, say.progress))
    say.stage(f"seed {seed}: base model", took)
    took = run_stage(
        pairs, _settings(config, seed, "base", "sampled"), lambda into: make_pairs(into, base, config, seed)
    )
    say.stage(f"seed {seed}: pairs", took)
    return config


def side_by_side(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
    """Results in the order of the jobs, one spawned process per core."""
    jobs = list(jobs)
    workers = max(1, min(len(jobs), os.cpu_count() or 1))
    if workers == 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class Say:
    """Where progress goes; the command line prints it, a caller may do otherwise.

    Attributes:
        stage: told (what, seconds) when a stage is done; 0.0 seconds for one that was there already.
        progress: told (step, steps, loss) while the base is trained.
    """

    stage: Callable[[str, float], None] = lambda what, seconds: None
    progress: Callable[[int, int, float], None] | None = None


def run_demo(output_dir: str, *, seeds: int = 1, config: DemoConfig | None = None, say: Say | None = None) -> Scored:
    """Runs every seed and scores its trails.

    Args:
        output_dir: each seed gets a folder in it; stages already there with the same settings are reused.
        seeds: how many runs; all of a run depends on its seed: base, pairs, training, prompts.

    Returns:
        The scored trails of all seeds, by (seed, system, split, temperature).

    Raises:
        ConfigError: no seed to run.
        OutputError: the folder cannot be written.
    """
    from srpo.evaluate.results import writable_folder

    if seeds < 1:
        raise ConfigError(f"{seeds}", where="seeds", expected="at least 1")
    config, say = config or DemoConfig(), say or Say()
    folder = writable_folder(Path(output_dir))
    for seed in range(seeds):
        run_seed(folder / f"seed{seed}", config, seed, say)
    return score_runs(folder, config, seeds)


def score_runs(folder: Path, config: DemoConfig, seeds: int) -> Scored:
    """The trails of all seeds, judged."""
    from srpo.evaluate.judges import exact_match, per_character
    from srpo.evaluate.scores import score

    trails, tokens = {}, {}
    for seed in range(seeds):
        for system in (system for systems in SYSTEMS_OF.values() for system in systems):
            for split, heat in cells(config, system):
                key = (seed, system, split, heat)
                trails[key] = _read(folder / f"seed{seed}" / "trails" / system / _trail_file(split, heat))
                tokens[key] = forward_tokens(trails[key], config.revisions)
    judges = {"exact match": exact_match, "digits": per_character}
    return score(trails, judges, revisions=config.revisions, tokens=tokens)


def verdict(scored: Scored, config: DemoConfig) -> Any:
    """Averages, intervals and the answers to the questions the task was made for: a `Results`."""
    from srpo.evaluate.summary import summarise

    return summarise(scored, questions(config), highlight="srpo", labels=LABELS)


def questions(config: DemoConfig) -> list[Any]:
    """What the demo is to show or fail to show; revisions and policy were chosen on validation."""
    from srpo.evaluate.results import Side
    from srpo.evaluate.summary import Question

    best = {method: settings.revisions for method, settings in config.methods.items()}
    ours = "srpo" if config.policy == "always" else "srpo_if_preferred"
    asked = []
    for heat in config.temperatures:
        for split in SPLITS:
            asked.append(Question(Side("srpo", 1), Side("srpo", 0), split, heat))
            rivals = [Side(method, best[method]) for method in ("dpo", "ipo")]
            if heat:
                rivals.insert(0, Side("srpo_best_of", best["srpo"]))
            asked += [Question(Side(ours, best["srpo"]), rival, split, heat) for rival in rivals]
    return asked


def forward_tokens(trails: list[Trail], revisions: int) -> list[float]:
    """Mean forward tokens per prompt up to each revision, cumulative; a trail that stopped costs nothing more."""
    spent = [
        sum(answer.forward_tokens for trail in trails for answer in trail.answers[: k + 1])
        for k in range(revisions + 1)
    ]
    return [total / len(trails) for total in spent]


def _read(file: Path) -> list[Trail]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(file)) from None
    return [Trail.from_json(line, where=f"{file}:{number}") for number, line in enumerate(lines, 1)]


def settings_shown(config: DemoConfig) -> dict[str, str]:
    """The run's settings as the report prints them."""
    shown = {name: json.dumps(value) for name, value in asdict(config).items() if name not in ("base", "methods")}
    shown["base"] = json.dumps(asdict(config.base))
    return shown | {name: json.dumps(asdict(method)) for name, method in config.methods.items()}
