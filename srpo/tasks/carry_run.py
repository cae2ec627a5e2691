"""One run on the carry task, stage by stage: base → pairs → a method trained from it → trails.

Every step goes through what a user calls: `SRPOTrainer` on an ordinary JSONL of pairs, `Reviser`, `best_of`. All
methods start from the same base and see the same pairs in as many steps of as many pairs. Stages are folders
(stages.py), and a method is a `Job` of plain values, so that it can be sent to a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from srpo import __version__
from srpo.tasks.carry import SPLITS, TEMPLATE, BaseConfig, carry_tokenizer, label, sums, train_base, write_rows
from srpo.tasks.stages import run_stage

Rows = Mapping[str, list[dict[str, str]]]


@dataclass(frozen=True)
class MethodSettings:
    """What the search chose for one way of answering.

    Attributes:
        objective, beta, learning_rate, alpha: of the training; alpha is SRPO's alone.
        revisions: after how many revisions, or further drafts, it does best.
    """

    objective: str
    beta: float
    learning_rate: float
    alpha: float = 0.5
    revisions: int = 0


# benchmarks/carry_search.py --bases 2; its table is entry 5 of the lab book.
CHOSEN: Mapping[str, MethodSettings] = {
    "srpo": MethodSettings("srpo", beta=0.2, learning_rate=2e-4, revisions=5),
    "srpo_always": MethodSettings("srpo", beta=0.1, learning_rate=2e-4, revisions=2),
    "dpo": MethodSettings("dpo", beta=3.0, learning_rate=2e-4),
    "dpo_best_of": MethodSettings("dpo", beta=10.0, learning_rate=1e-4, revisions=5),
    "ipo": MethodSettings("ipo", beta=0.1, learning_rate=2e-4),
    "ipo_best_of": MethodSettings("ipo", beta=0.3, learning_rate=5e-5, revisions=5),
}


def way_of(system: str) -> str:
    """How a system's answers are drawn: by a policy, or by "best_of", which draws further drafts instead."""
    if system.endswith("_best_of"):
        return "best_of"
    return "if_preferred" if system == "srpo" else "always"


@dataclass(frozen=True)
class CarryConfig:
    """Sizes of a run.

    Attributes:
        base: the base model; its seed is replaced by each run's.
        sampled: sums that get two drafts each, from which the pairs are made.
        steps, batch: optimiser steps and pairs per step of each method.
        prompts: sums per split in the evaluation.
        revisions: revisions drawn.
        methods: settings by method.
        temperatures: at which answers are drawn.
    """

    base: BaseConfig = field(default_factory=BaseConfig)
    sampled: int = 20_000
    steps: int = 300
    batch: int = 64
    prompts: int = 2_000
    revisions: int = 5
    methods: Mapping[str, MethodSettings] = field(default_factory=lambda: dict(CHOSEN))
    temperatures: tuple[float, ...] = (1.0, 0.0)


# Seeds are kept apart: evaluation, pairs and validation never share sums. A run's seed is added to each.
_PAIRS, EVALUATION, VALIDATION = 1_000_000, 2_000_000, 3_000_000
_DRAW_BATCH = 1000
_NEW_TOKENS = 1  # beyond the digits of an answer: its terminator


# ---------------------------------------------------------------------- stages


def make_base(folder: Path, config: BaseConfig, show: Callable[[int, int, float], None] | None = None) -> None:
    """Trains the base, on as many threads as it asks for, and saves model, tokenizer and template."""
    import torch

    threads, model = torch.get_num_threads(), None
    torch.set_num_threads(config.threads)
    try:
        for step, loss, model in train_base(config):  # noqa: B007  the last one is saved
            if show is not None:
                show(step, config.steps, loss)
    finally:
        torch.set_num_threads(threads)
    assert model is not None  # steps > 0
    model.save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    TEMPLATE.save(folder)


def make_pairs(folder: Path, base: Path, config: CarryConfig, seed: int) -> None:
    """Two drafts of the base for each sum → `pairs.jsonl`, as anybody's data would look."""
    from srpo.revise.reviser import Reviser

    rows = sums(config.sampled, "in", digits=config.base.digits, seed=_PAIRS + seed)
    reviser = Reviser(str(base), batch_size=_DRAW_BATCH, device="cpu")
    tokens = config.base.digits + 1 + _NEW_TOKENS
    first, second = (
        [t.after(0).text for t in reviser.revise(rows, 0, seed=draw, max_new_tokens=tokens)] for draw in (1, 2)
    )
    write_rows(folder / "pairs.jsonl", label(rows, first, second))


def train_method(folder: Path, base: Path, pairs: Path, config: CarryConfig, method: str, seed: int) -> None:
    """Trains one method from the base and saves it."""
    from transformers import PrinterCallback

    from srpo.train.config import SRPOConfig
    from srpo.train.trainer import SRPOTrainer

    settings = config.methods[method]
    args = SRPOConfig(
        output_dir=str(folder),
        objective=settings.objective,
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
        reference_cache=str(base.parent / "reference"),  # methods on the same pairs in the same order score them once
    )
    trainer = SRPOTrainer(str(base), args=args, train_dataset=str(pairs))
    trainer.remove_callback(PrinterCallback)  # its metrics are in metrics.jsonl
    trainer.train()
    trainer.save_model()


def draw_trails(folder: Path, model: Path, base: Path, config: CarryConfig, system: str, rows: Rows, seed: int) -> None:
    """Drafts and revises every sum at every temperature, as one system does: a file of trails for each."""
    from srpo.evaluate.controls import best_of
    from srpo.revise.reviser import Reviser
    from srpo.revise.settings import RevisionSettings

    way = way_of(system)
    weighs = way != "always"  # to go on from whatever comes needs no log-ratios, which cost as much again
    reference = str(base) if weighs else None
    reviser = Reviser(str(model), reference=reference, batch_size=_DRAW_BATCH, device="cpu")
    for split, temperature in cells(config, system):
        settings = RevisionSettings(
            revisions=config.revisions,
            temperature=temperature,
            seed=seed,
            max_new_tokens=config.base.digits + 1 + _NEW_TOKENS,
            policy="if_preferred" if way == "if_preferred" else "always",
        )
        if way == "best_of":
            trails = best_of(reviser, rows[split], settings)
        else:
            trails = reviser.revise(rows[split], **asdict(settings))
        lines = "".join(trail.to_json() + "\n" for trail in trails)
        (folder / trail_file(split, temperature)).write_text(lines, "utf-8")


def cells(config: CarryConfig, system: str) -> list[tuple[str, float]]:
    """The (split, temperature) a system is drawn in; greedy drafts are all the same, so none is the best of them."""
    heats = [heat for heat in config.temperatures if heat or way_of(system) != "best_of"]
    return [(split, heat) for split in SPLITS for heat in heats]


def trail_file(split: str, temperature: float) -> str:
    return f"{split}.T{temperature:g}.jsonl"


def evaluation_rows(config: CarryConfig, seed: int, start: int = EVALUATION) -> Rows:
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
    config: CarryConfig
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
        del made_from["revisions"]
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
            partial(draw_trails, model=model, base=base, config=config, system=system, rows=rows, seed=job.seed),
        )
    return seconds


def trail_folder(job: Job, system: str) -> Path:
    """Where a job leaves the trails of a system."""
    return Path(job.run) / "trails" / (f"{job.name}.{system}" if job.name else system)


def _settings(config: CarryConfig, seed: int, *names: str) -> dict[str, Any]:
    return {"seed": seed, "srpo": __version__, **{name: asdict(config)[name] for name in names}}


# ---------------------------------------------------------------------- a seed


@dataclass
class Say:
    """Where progress goes; the command line prints it, a caller may do otherwise.

    Attributes:
        stage: told (what, seconds) when a stage is done; 0.0 seconds for one that was there already.
        progress: told (step, steps, loss) while the base is trained.
    """

    stage: Callable[[str, float], None] = lambda what, seconds: None
    progress: Callable[[int, int, float], None] | None = None


def start_run(folder: Path, config: CarryConfig, seed: int, say: Say) -> CarryConfig:
    """Base, pairs and prompts of a seed; returns the configuration with the base's seed in it."""
    config = replace(config, base=replace(config.base, seed=seed))
    base, pairs = folder / "base", folder / "pairs"
    took = run_stage(base, _settings(config, seed, "base"), lambda into: make_base(into, config.base, say.progress))
    say.stage(f"seed {seed}: base model", took)
    took = run_stage(
        pairs, _settings(config, seed, "base", "sampled"), lambda into: make_pairs(into, base, config, seed)
    )
    say.stage(f"seed {seed}: pairs", took)
    prompts = folder / "prompts"
    run_stage(prompts, {"seed": seed, "prompts": config.prompts}, lambda into: write_prompts(into, config, seed))
    return config


def write_prompts(folder: Path, config: CarryConfig, seed: int) -> None:
    """The sums of the evaluation as files, one per split, for whoever evaluates by other means."""
    for split, rows in evaluation_rows(config, seed).items():
        write_rows(folder / f"{split}.jsonl", rows)
