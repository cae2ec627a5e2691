"""`srpo demo` on the carry task: base → pairs → SRPO, DPO, IPO → drafts and revisions → results.

`SHORT` is the demo of a few minutes: half of the pairs and steps, fewer sums, and three methods. `CarryConfig()` is the
whole demo, whose numbers the documentation has.

β, learning rate and number of revisions of every method come from one search on sums of other seeds
(benchmarks/carry_search.py; the table is in docs/lab-book/05-search-on-two-bases.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from srpo.disk import writable_folder
from srpo.errors import ConfigError
from srpo.judge.single import exact_match, per_character
from srpo.revise.trail import Trail
from srpo.revise.trail_files import read_trails
from srpo.score.pooling import grouped
from srpo.score.results import Results, Side
from srpo.score.scores import ScoredTrails, TrailsKey, score
from srpo.score.summary import Question, summarise
from srpo.tasks.carry import SPLITS
from srpo.tasks.carry_run import CHOSEN, CarryConfig, Job, StageLog, cells, start_run, trail_file, trail_folder, work
from srpo.tasks.stages import side_by_side

# Method → systems drawn with its model. Every system has a model of its own, trained with its best settings, except the
# best of SRPO's drafts: that system measures the gain of revising over drafts of the same model.
SYSTEMS_OF = {
    "srpo": ("srpo", "srpo_best_of", "srpo_best_of_logp"),
    "srpo_always": ("srpo_always",),
    "dpo": ("dpo",),
    "dpo_best_of": ("dpo_best_of", "dpo_best_of_logp"),
    "ipo": ("ipo",),
    "ipo_best_of": ("ipo_best_of", "ipo_best_of_logp"),
    "base": ("base", "base_best_of_logp"),
}
SHORT = CarryConfig(
    sampled=10_000, steps=150, prompts=500, methods={name: CHOSEN[name] for name in ("srpo_always", "srpo", "dpo")}
)
LABELS = {
    "srpo_always": "SRPO",
    "srpo": "SRPO, selective",
    "srpo_best_of": "best of k+1 SRPO drafts by implied reward",
    "srpo_best_of_logp": "best of k+1 SRPO drafts by log π",
    "dpo": "DPO",
    "dpo_best_of": "best of k+1 DPO drafts by implied reward",
    "dpo_best_of_logp": "best of k+1 DPO drafts by log π",
    "ipo": "IPO",
    "ipo_best_of": "best of k+1 IPO drafts by implied reward",
    "ipo_best_of_logp": "best of k+1 IPO drafts by log π",
    "base": "base",
    "base_best_of_logp": "best of k+1 base drafts by log π",
    "in": "in distribution",
    "out": "out of distribution",
}
HIGHLIGHT = "srpo_always"
BEST_BY_LOGP = ("srpo_best_of_logp", "base_best_of_logp")


def jobs_of(folder: Path, config: CarryConfig, seed: int) -> list[Job]:
    """Returns the jobs of one seed: one for each method to train and draw with, and one for the base model."""
    methods = [method for method in SYSTEMS_OF if method in config.methods or method == "base"]
    return [Job(str(folder), method, SYSTEMS_OF[method], config, seed) for method in methods]


def stages_of(config: CarryConfig, seed: int) -> list[str]:
    """Returns the names of the steps that the demo runs for one seed, such as "seed 0: train srpo", in order."""
    names = ["base model", "pairs"]
    for job in _ordered(jobs_of(Path(), config, seed)):
        names += [f"train {job.method}"] * (job.method in config.methods) + [f"draw {name}" for name in job.systems]
    return [f"seed {seed}: {name}" for name in names]


def _ordered(jobs: list[Job]) -> list[Job]:
    # Methods that share reference log-probs are started one after the other, so that the second finds them stored.
    return sorted(jobs, key=lambda job: "_" in job.method)


def run_demo(
    output_dir: str,
    *,
    seeds: int = 1,
    first_seed: int = 0,
    config: CarryConfig | None = None,
    log: StageLog | None = None,
    workers: int | None = None,
) -> dict[TrailsKey, ScoredTrails]:
    """Runs the demo for every seed: makes base and pairs, trains, drafts, revises, and scores the answers.

    Args:
        output_dir: folder with one subfolder per seed; finished stages with the same settings are reused.
        seeds: number of runs; base, pairs, training and sums of a run depend on its seed.
        first_seed: seed of the first run; the others follow in steps of one.
        workers: number of processes that train and draw; None is one per core, 1 works in this process.

    Returns:
        The scored answers of all seeds, by (seed, system, split, temperature).

    Raises:
        ConfigError: no seed, or a negative one.
        OutputError: the folder cannot be written.
    """
    for name, value, least in (("seeds", seeds, 1), ("first_seed", first_seed, 0)):
        if value < least:
            raise ConfigError(f"{value}", where=name, expected=f"at least {least}")
    config, log = config or CarryConfig(), log or StageLog()
    folder = writable_folder(Path(output_dir))
    trails: dict[tuple[int, str, str, float | None], list[Trail]] = {}
    for seed in range(first_seed, first_seed + seeds):
        for job in run_seed(folder / f"seed{seed}", config, seed, log, workers):
            for system in job.systems:
                for split, heat in cells(config, system):
                    file = trail_folder(job, system) / trail_file(split, heat)
                    trails[seed, system, split, heat] = read_trails(file, gold_key="gold")
    judges = {"exact match": exact_match, "digits": per_character}
    return score(trails, judges, revisions=config.revisions)


def run_seed(folder: Path, config: CarryConfig, seed: int, log: StageLog, workers: int | None = None) -> list[Job]:
    """Runs the demo for one seed; returns its jobs, whose folders then hold the drafts and revisions.

    Base and pairs are made in this process, the methods are trained in parallel processes.

    Args:
        folder: folder of this seed.
        log: receives the seconds of each step.
        workers: number of processes; None is one per core.
    """
    config = start_run(folder, config, seed, log)
    jobs = _ordered(jobs_of(folder, config, seed))
    for seconds in side_by_side(work, jobs, log.counts, workers):
        for stage, took in seconds.items():
            log.stage(f"seed {seed}: {stage}", took)
    return jobs


def verdict(scored: Mapping[TrailsKey, ScoredTrails], config: CarryConfig) -> Results:
    """Returns the demo's results: means with confidence intervals, and the comparisons in `questions`."""
    return summarise(grouped(scored), questions(config), highlight=HIGHLIGHT, labels=LABELS)


def questions(config: CarryConfig) -> list[Question]:
    """Returns the comparisons of systems that the demo reports.

    Does the first revision improve the draft? Does SRPO, every revision kept, at its best number of revisions on
    validation, beat the best of as many drafts by log π, the other methods at their best, and the base's own answer?
    """
    ours = Side(HIGHLIGHT, config.methods[HIGHLIGHT].revisions)
    chosen = [Side(name, method.revisions) for name, method in config.methods.items() if name != HIGHLIGHT]
    rivals = [*chosen, *(Side(name, ours.revision) for name in BEST_BY_LOGP), Side("base", 0)]
    asked = []
    for heat in config.temperatures:
        for split in SPLITS:
            asked.append(Question(Side(ours.system, 1), Side(ours.system, 0), split, heat))
            drawn = [rival for rival in rivals if (split, heat) in cells(config, rival.system)]
            asked += [Question(ours, rival, split, heat) for rival in drawn]
    return asked


def settings_shown(config: CarryConfig) -> dict[str, str]:
    """Returns the demo's settings as name → text, for the report."""
    settings = asdict(config)
    methods = {name: json.dumps(method) for name, method in settings.pop("methods").items()}
    return {name: json.dumps(value) for name, value in settings.items()} | methods
