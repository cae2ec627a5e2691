"""One run on the carry task, stage by stage: base → pairs → a method trained from it → drafts and revisions.

Every step uses the public API: `SRPOTrainer` on a JSONL file of pairs, `Reviser`, `best_of`. All methods start from the
same base and see the same pairs in the same number of steps and of pairs per step. Stages are folders (stages.py); a
method is a `Job` of plain values, which can be sent to another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from srpo import __version__
from srpo.tasks.carry import SPLITS, TEMPLATE, BaseConfig, carry_tokenizer, label, sums, train_base, write_rows
from srpo.tasks.shipped_base import is_shipped, shipped_base
from srpo.tasks.stages import Counts, report, run_stage, share

Rows = Mapping[str, list[dict[str, str]]]


@dataclass(frozen=True)
class MethodSettings:
    """Settings of one training method of the carry demo, chosen by a search over hyperparameters.

    Attributes:
        objective, beta, learning_rate, alpha: settings of the training; only SRPO uses alpha.
        revisions: number of revisions, or of further drafts, with the best validation score.
    """

    objective: str
    beta: float
    learning_rate: float
    alpha: float = 0.5
    revisions: int = 0


# benchmarks/carry_search.py --bases 2; the table is in docs/lab-book/05-search-on-two-bases.md.
CHOSEN: Mapping[str, MethodSettings] = {
    "srpo": MethodSettings("srpo", beta=0.2, learning_rate=2e-4, revisions=5),
    "srpo_always": MethodSettings("srpo", beta=0.1, learning_rate=2e-4, revisions=2),
    "dpo": MethodSettings("dpo", beta=3.0, learning_rate=2e-4),
    "dpo_best_of": MethodSettings("dpo", beta=10.0, learning_rate=1e-4, revisions=5),
    "ipo": MethodSettings("ipo", beta=0.1, learning_rate=2e-4),
    "ipo_best_of": MethodSettings("ipo", beta=0.3, learning_rate=5e-5, revisions=5),
}


def way_of(system: str) -> str:
    """Returns how a system of the demo answers: a policy that keeps revisions, or a way to choose among drafts.

    The policies are "if_preferred" and "always"; the ways are "best_of" (by implied reward) and "best_of_logp".
    """
    for way in ("best_of", "best_of_logp"):
        if system.endswith(f"_{way}"):
            return way
    return "if_preferred" if system == "srpo" else "always"


@dataclass(frozen=True)
class CarryConfig:
    """Sizes and settings of one run of the carry demo.

    Attributes:
        base: the base model; each run replaces its seed.
        sampled: sums with two drafts each, from which the pairs are made.
        steps, batch: optimiser steps and pairs per step of each method.
        prompts: sums per split in the evaluation.
        revisions: revisions of each draft in the evaluation.
        methods: settings by method.
        temperatures: sampling temperatures of the answers.
    """

    base: BaseConfig = field(default_factory=BaseConfig)
    sampled: int = 20_000
    steps: int = 300
    batch: int = 64
    prompts: int = 2_000
    revisions: int = 5
    methods: Mapping[str, MethodSettings] = field(default_factory=lambda: dict(CHOSEN))
    temperatures: tuple[float, ...] = (1.0, 0.0)


# First seeds, to which a run's seed is added: pairs, evaluation and validation never share sums.
PAIRS, EVALUATION, VALIDATION = 1_000_000, 2_000_000, 3_000_000
_DRAW_BATCH = 1000
_NEW_TOKENS = 1  # tokens of an answer besides its digits: the terminator


# ---------------------------------------------------------------------- stages


def make_base(folder: Path, config: BaseConfig, stage: str = "") -> None:
    """Saves the demo's base model with tokenizer and template in `folder`; trains it if the package has no such model.

    Args:
        stage: name of the stage whose progress is reported.
    """
    import torch

    model = shipped_base() if is_shipped(config) else None
    if model is None:
        threads = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            for step, _, model in train_base(config):  # noqa: B007  the model of the last step is saved
                report(stage, step, config.steps)
        finally:
            torch.set_num_threads(threads)
    assert model is not None  # steps > 0
    model.save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    TEMPLATE.save(folder)


def make_pairs(folder: Path, base: Path, config: CarryConfig, seed: int, stage: str = "") -> None:
    """Draws two answers of the base model to each sum, and writes them as preference rows to `folder`/pairs.jsonl.

    Args:
        base: folder of the base model.
        seed: seed of the sums.
        stage: name under which progress is reported.
    """
    from srpo.data.read import read_prompts
    from srpo.revise.reviser import Reviser
    from srpo.revise.settings import RevisionSettings

    rows = sums(config.sampled, "in", digits=config.base.digits, seed=PAIRS + seed)
    reviser = Reviser(str(base), batch_size=_DRAW_BATCH, device="cpu")
    answers: list[str] = []
    for draw in (1, 2):
        settings = RevisionSettings(0, seed=draw, max_new_tokens=config.base.digits + 1 + _NEW_TOKENS)
        for trail in reviser.trails(read_prompts(rows), settings):
            answers.append(trail.after(0).text)
            report(stage, len(answers), 2 * len(rows))
    first, second = answers[: len(rows)], answers[len(rows) :]
    write_rows(folder / "pairs.jsonl", label(rows, first, second))


def train_method(folder: Path, base: Path, pairs: Path, config: CarryConfig, method: str, seed: int) -> None:
    """Trains one method from the base model on the pairs, and saves the model in `folder`.

    Args:
        base, pairs: folder of the base model, and file of the pairs.
        method: key of `config.methods`, such as "srpo".
        seed: seed of the run.
    """
    from transformers import PrinterCallback, TrainerCallback

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
        reference_cache=str(base.parent / "reference"),  # methods share the scores of the same pairs
    )
    with _cache_in(base.parent / "tokenised"):
        trainer = SRPOTrainer(str(base), args=args, train_dataset=str(pairs))
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has the same numbers

    class Steps(TrainerCallback):
        """A callback of the trainer that reports completed steps to the demo's display."""

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            report(f"seed {seed}: train {method}", state.global_step, config.steps)

    trainer.add_callback(Steps())
    trainer.train()
    trainer.save_model()


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Keeps tokenised pairs in `folder`, not in the user's cache: a run writes to its own folder alone."""
    before = os.environ.get("HF_DATASETS_CACHE")
    os.environ["HF_DATASETS_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["HF_DATASETS_CACHE"]
        if before is not None:
            os.environ["HF_DATASETS_CACHE"] = before


def draw_trails(folder: Path, model: Path, base: Path, config: CarryConfig, system: str, rows: Rows, seed: int) -> None:
    """Draws a system's drafts and revisions of all prompts; writes one file per split and temperature into `folder`.

    Args:
        model, base: folders of the trained model and of the base model.
        system: name of the system, such as "srpo" or "dpo_best_of".
        rows: split → prompts with gold answers.
        seed: seed of the draws.
    """
    from srpo.data.read import read_prompts
    from srpo.evaluate.controls import keep_best, several_drafts
    from srpo.revise.reviser import Reviser
    from srpo.revise.settings import LOGP, REWARD, RevisionSettings

    way = way_of(system)
    # Keeping every revision needs no confidence, which costs as much as drawing.
    reference = str(base) if way not in ("always", "best_of_logp") else None
    reviser = Reviser(str(model), reference=reference, batch_size=_DRAW_BATCH, device="cpu")
    places = cells(config, system)
    for at, (split, temperature) in enumerate(places):
        settings = RevisionSettings(
            revisions=config.revisions,
            temperature=temperature,
            seed=seed,
            max_new_tokens=config.base.digits + 1 + _NEW_TOKENS,
            policy="if_preferred" if way == "if_preferred" else "always",
        )
        prompts = read_prompts(rows[split])
        if way.startswith("best_of"):
            drafts = list(several_drafts(reviser, prompts, settings))
            trails = keep_best(reviser, prompts, drafts, REWARD if way == "best_of" else LOGP)
        else:
            trails = reviser.trails(prompts, settings)
        lines = []
        for trail in trails:
            lines.append(trail.to_json() + "\n")
            report(f"seed {seed}: draw {system}", at * len(prompts) + len(lines), len(places) * len(prompts))
        (folder / trail_file(split, temperature)).write_text("".join(lines), "utf-8")


def cells(config: CarryConfig, system: str) -> list[tuple[str, float]]:
    """Returns the (split, temperature) pairs at which a system answers; best-of skips greedy decoding.

    Greedy drafts are equal, so there is no best one.
    """
    temperatures = [each for each in config.temperatures if each or not way_of(system).startswith("best_of")]
    return [(split, temperature) for split in SPLITS for temperature in temperatures]


def trail_file(split: str, temperature: float) -> str:
    """Returns the name of the file with a system's drafts and revisions of one split at one temperature."""
    return f"{split}.T{temperature:g}.jsonl"


def evaluation_rows(config: CarryConfig, seed: int, start: int = EVALUATION) -> Rows:
    """Draws the addition problems of the evaluation; returns split → rows with `prompt` and `gold`.

    Args:
        start: first seed: `EVALUATION`, or `VALIDATION` for sums that choose settings.
    """
    return {
        split: sums(config.prompts, split, digits=config.base.digits, seed=start + 1000 * i + seed)
        for i, split in enumerate(SPLITS)
    }


# ---------------------------------------------------------------------- one method, in a process of its own


@dataclass(frozen=True)
class Job:
    """One method to train and the systems to draw with its model, as plain values for another process.

    Attributes:
        run: folder of the seed's run, with its base and pairs.
        method: key of `CarryConfig.methods`, or "base", which needs no training.
        systems: systems to draw with the trained model.
        config, seed: settings and seed of the run.
        start: first seed of the sums, `EVALUATION` or `VALIDATION`.
        name: folder of the model in `run`; empty for the name of the method.
    """

    run: str
    method: str
    systems: tuple[str, ...]
    config: CarryConfig
    seed: int
    start: int = EVALUATION
    name: str = ""


def work(job: Job) -> dict[str, float]:
    """Trains the job's method, draws the answers of its systems, and returns stage → seconds, such as "train srpo".

    Finished stages are reused and take 0.0 s.
    """
    import torch
    from transformers.utils import logging as hf_logging

    torch.set_num_threads(1)  # one process per core; results do not depend on the number of processes
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
    """Returns the folder of the drafts and revisions of one of the job's systems."""
    return Path(job.run) / "trails" / (f"{job.name}.{system}" if job.name else system)


def _settings(config: CarryConfig, seed: int, *names: str) -> dict[str, Any]:
    return {"seed": seed, "srpo": __version__, **{name: asdict(config)[name] for name in names}}


# ---------------------------------------------------------------------- a seed


@dataclass
class StageLog:
    """Receives the progress of a demo run's stages, which are named "seed 0: pairs", "seed 0: train srpo" and so on.

    Attributes:
        stage: called with (name, seconds) after each stage; seconds are 0.0 for a reused stage.
        counts: numbers of completed steps and answers by stage; None counts nothing.
    """

    stage: Callable[[str, float], None] = lambda name, seconds: None
    counts: Counts | None = None


def start_run(folder: Path, config: CarryConfig, seed: int, log: StageLog) -> CarryConfig:
    """Makes the base model, pairs and prompts of one seed in `folder`; returns the settings with the seed set."""
    config = replace(config, base=replace(config.base, seed=seed))
    base, pairs, prefix = folder / "base", folder / "pairs", f"seed {seed}: "
    share(log.counts)
    source = {"weights": "shipped"} if is_shipped(config.base) else {}
    work_on_base = partial(make_base, config=config.base, stage=prefix + "base model")
    log.stage(prefix + "base model", run_stage(base, _settings(config, seed, "base") | source, work_on_base))
    work_on_pairs = partial(make_pairs, base=base, config=config, seed=seed, stage=prefix + "pairs")
    log.stage(prefix + "pairs", run_stage(pairs, _settings(config, seed, "base", "sampled"), work_on_pairs))
    prompts = folder / "prompts"
    run_stage(prompts, {"seed": seed, "prompts": config.prompts}, lambda into: write_prompts(into, config, seed))
    return config


def write_prompts(folder: Path, config: CarryConfig, seed: int) -> None:
    """Writes the addition problems of the evaluation as prompts, one file per split."""
    for split, rows in evaluation_rows(config, seed).items():
        write_rows(folder / f"{split}.jsonl", rows)
