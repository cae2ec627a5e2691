"""Drafts and revisions of every system in an evaluation: read from files, or drawn from models and cached.

A system is a model with its way of answering, or an opponent such as the best of n drafts. A trail is one prompt with
its draft and its revisions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from srpo.data.read import PromptRow, read_prompts
from srpo.data.source import Source, columns_of
from srpo.disk import writable_folder
from srpo.errors import DataError
from srpo.evaluate.cache import cache_file, cached_trails, content_hash, models_in
from srpo.evaluate.controls import (
    draft_only,
    gold_answers,
    keep_best,
    majority,
    oracle,
    several_drafts,
)
from srpo.evaluate.plan import BEST_OF, CONTROLS, Model, Plan, named_files
from srpo.judge.load import AnyJudge
from srpo.progress import Forecast
from srpo.revise.settings import LAST, LOGP, MEAN_LOGP, REWARD, VOTE, RevisionSettings
from srpo.revise.trail import Trail
from srpo.revise.trail_files import read_trails
from srpo.score.scores import Key
from srpo.sequences.templates import RevisionTemplate, template_for

if TYPE_CHECKING:
    from srpo.revise.reviser import Reviser

FOLDER, ALL = "drawn", "all"
ANSWERS, DRAFTS, REFERENCE = "answers", "drafts", "reference"
GREEDY, REFERENCE_GREEDY, BY_REFERENCE = "greedy", "reference_greedy", "best_of_reference_logp"
# drawn control → the value by which it chooses among drafts, or "" if it draws drafts of its own
KINDS = {
    BEST_OF: REWARD,
    "best_of_logp": LOGP,
    "best_of_mean_logp": MEAN_LOGP,
    "best_of_vote": VOTE,
    BY_REFERENCE: LOGP,
    GREEDY: "",
    REFERENCE_GREEDY: "",
}
Prompts = Mapping[int, Mapping[str, list[PromptRow]]]  # seed → split → prompts


@dataclass(frozen=True)
class Drawn:
    """Result of `draw_all`: all drawn trails (prompts with draft and revisions), and labels of the opponents.

    Attributes:
        trails: (seed, system, split, temperature) → one trail per prompt.
        labels: system → printed name, for opponents drawn from a model, such as best of n.
    """

    trails: dict[Key, list[Trail]]
    labels: dict[str, str]


def read_systems(
    specs: Collection[str],
    *,
    gold_key: str | None = "gold",
    split_key: str = "split",
    temperature: float | None = None,
) -> dict[Key, list[Trail]]:
    """Reads files of trails (prompts with draft and revisions) and returns (seed, system, split, temperature) → trails.

    A name with n files is one system with seeds 0 to n − 1.

    Args:
        specs: `path` or `name=path` for each file; a path without a name gets the file's stem as name.
        gold_key: key of the gold answer that each row's `meta` must have; None requires no gold answer.
        split_key: key of the split's name in `meta`; rows without it belong to the split "all".
        temperature: sampling temperature of the answers, the last part of each key.

    Raises:
        ConfigError: two paths without a name that have the same stem, or a name without a path.
        InputError: a file is missing or unreadable.
        DataError: a line is not a trail or has no gold answer, or a file has no trails.
    """
    found: dict[Key, list[Trail]] = defaultdict(list)
    for system, paths in named_files(specs).items():
        for seed, path in enumerate(paths):
            for trail in read_trails(path, gold_key=gold_key, failed=True):
                found[seed, system, str(trail.meta.get(split_key, ALL)), temperature] += [trail]
    return dict(found)


def without_failed(trails: Mapping[Key, list[Trail]]) -> tuple[dict[Key, list[Trail]], list[str]]:
    """Removes each prompt that failed for some system from all systems with the same seed, split and temperature.

    Args:
        trails: (seed, system, split, temperature) → one trail (draft and revisions) per prompt.

    Returns:
        The remaining trails by the same keys, and one sentence per split with failures: their number and commonest
        reason.

    Raises:
        DataError: every prompt of a split failed.
    """
    reasons: dict[tuple[int, str, float | None], dict[str, str]] = defaultdict(dict)
    for (seed, _, split, temperature), rows in trails.items():
        reasons[seed, split, temperature] |= {_prompt_key(trail): trail.failed for trail in rows if trail.failed}
    found: dict[Key, list[Trail]] = {}
    by_split: dict[str, dict[str, str]] = defaultdict(dict)
    for (seed, system, split, temperature), rows in trails.items():
        failed = reasons[seed, split, temperature]
        by_split[split] |= failed
        found[seed, system, split, temperature] = [trail for trail in rows if _prompt_key(trail) not in failed]
        if not found[seed, system, split, temperature]:
            most = Counter(failed.values()).most_common(1)[0][0]
            fix = "shorten the prompts or lower max_new_tokens"
            raise DataError(f"every prompt failed: {most}", where=f"{system}, split {split}", fix=fix)
    notes = []
    for split, failed in by_split.items():
        if failed:
            most = Counter(failed.values()).most_common(1)[0][0]
            count = f"{len(failed)} prompt{'s' if len(failed) > 1 else ''}"
            notes.append(f"{count} of split {split} failed and {'are' if len(failed) > 1 else 'is'} left out for every "
                         f"system: {most}.")  # fmt: skip
    return found, notes


def _prompt_key(trail: Trail) -> str:
    return json.dumps(trail.prompt, sort_keys=True, default=str)


def read_prompt_files(plan: Plan) -> Prompts:
    """Reads the prompts of an evaluation; returns seed → split → prompts.

    A file is one split, unless its rows name their splits.
    """
    found: dict[int, dict[str, list[PromptRow]]] = {}
    for seed in plan.seeds if plan.models else ():
        splits = found[seed] = defaultdict(list)
        for split, path in plan.prompts.items():
            columns = columns_of(plan.map)
            source = Source(
                path.format(seed=seed), columns, split=plan.prompts_split, config=plan.prompts_config, whole="test"
            )
            for row in read_prompts(source)[: plan.limit]:
                splits[str(row.meta.get(plan.split_key, split))] += [row]
    return found


def draw_all(plan: Plan, prompts: Prompts, judge: AnyJudge) -> Drawn:
    """Draws the answers of all models and of the opponents made from them, seed by seed, or reads them from the cache.

    Args:
        prompts: from `read_prompt_files`.
        judge: the judge by which the opponent "oracle" chooses the best of several drafts.

    Raises:
        SRPOError: a model or reference cannot be loaded, or the cache cannot be written.
    """
    folder = Path(plan.cache_dir or Path(str(plan.output_dir)) / FOLDER)
    if plan.models:
        writable_folder(folder)
    trails: dict[Key, list[Trail]] = {}
    labels: dict[str, str] = {}
    models = {
        (seed, name): ModelAnswers(plan, model.at(seed), folder, seed)
        for seed in prompts
        for name, model in plan.models.items()
    }
    tasks = {
        key: [Task(key[1], split, rows, each) for split, rows in prompts[key[0]].items() for each in plan.temperature]
        for key in models
    }
    most = sum(models[key].missing(task, plan.controls_of(key[1])) for key in models for task in tasks[key])
    size = f"at most {most} answers of all models to all prompts"
    with Forecast(size, most, "answers", "scores by models and the judge"):
        for (seed, name), answers in models.items():
            for task in tasks[seed, name]:
                found = answers.systems(task, plan.controls_of(name), judge)
                trails |= {(seed, system, task.split, task.temperature): each for system, each in found.items()}
            answers.reviser.cache_clear()  # one model and its reference are in memory at a time
    for name in plan.models if prompts else ():
        for control in plan.controls_of(name):
            alone = len(plan.models) == 1 or control == "gold"
            labels[f"{name}/{control}"] = CONTROLS[control] + ("" if alone else f", {plan.labels.get(name, name)}")
    present = {key[1] for key in trails}
    return Drawn(trails, {name: label for name, label in labels.items() if name in present})


class Task(NamedTuple):
    """One list of answers to draw: the system's name, the split, its prompts (`rows`) and the sampling temperature."""

    name: str
    split: str
    rows: list[PromptRow]
    temperature: float


class ModelAnswers:
    """Draws answers of one model, of its reference, and of opponents made from its drafts, such as the best of n.

    Weights are loaded when they are first needed.
    """

    def __init__(self, plan: Plan, model: Model, folder: Path, seed: int) -> None:
        self.plan, self.model, self.folder, self.seed = plan, model, folder, seed
        # A cache of one reviser: a reviser's model and reference already are two models in memory.
        self.reviser = lru_cache(maxsize=1)(self._load)

    def systems(self, task: Task, controls: Collection[str], judge: AnyJudge) -> dict[str, list[Trail]]:
        """Returns system → one trail (draft and revisions) per prompt of `task`, for the model and some opponents.

        Args:
            controls: names of the opponents, keys of `CONTROLS`.
            judge: scores drafts for the opponent "oracle", which picks the best draft by the judge itself.
        """
        gold_key, sampled = self.plan.gold_key, task.temperature > 0  # greedy drafts of a prompt are equal
        found = {"": self.draw(self._main, task)}
        # A prompt that fails is left out for every system, so the controls need no answer to it.
        usable = [row for row, trail in zip(task.rows, found[""], strict=True) if not trail.failed]
        task = task._replace(rows=usable or task.rows)
        found |= {kind: self.draw(kind, task) for kind in self._opponents(task, controls)}
        drafts = self.draw(DRAFTS, task) if sampled and {"majority", "oracle"} & {*controls} else []
        if "draft_only" in controls:
            found["draft_only"] = draft_only(found[""])
        if "gold" in controls:
            found["gold"] = gold_answers(found[""], gold_key)
        if "majority" in controls and drafts:
            found["majority"] = majority(drafts)
        if "oracle" in controls and drafts:
            found["oracle"] = oracle(drafts, judge, gold_key)
        order = ["", *(name for name in CONTROLS if name in found)]
        return {f"{task.name}/{name}".rstrip("/"): found[name] for name in order}

    @property
    def _main(self) -> str:
        """Kind of answers (see `draw`) that count as the model's own: the best of several drafts, or its revisions."""
        return BEST_OF if self.model.policy == BEST_OF else ANSWERS

    @staticmethod
    def _opponents(task: Task, controls: Collection[str]) -> list[str]:
        """Names of those opponents in `controls` that need a model; all others are made from answers already drawn.

        At temperature 0 only the reference is drawn, since all greedy drafts of one model are equal.
        """
        return [kind for kind in (REFERENCE, *(KINDS if task.temperature > 0 else ())) if kind in controls]

    def missing(self, task: Task, controls: Collection[str]) -> int:
        """Returns how many answers `systems` would draw for a task at most; answers in the cache are not counted.

        `controls` are names of opponents, keys of `CONTROLS`.
        """
        kinds = {self._main, *self._opponents(task, controls)}
        if any(map(KINDS.get, kinds)) or (task.temperature > 0 and {"majority", "oracle"} & {*controls}):
            kinds.add(DRAFTS)
        found = 0
        for kind in kinds:
            if not KINDS.get(kind):  # the others choose among `DRAFTS`
                path, settings, _ = self.cache_file(kind, task)
                present = path.read_bytes().count(b"\n") if path.exists() else 0
                found += (len(task.rows) - present) * (settings.revisions + 1)
        return found

    def draw(self, kind: str, task: Task) -> list[Trail]:
        """Returns one trail (a prompt with draft and revisions) per prompt of `task`; draws those not in the cache.

        Args:
            kind: `ANSWERS`, drafts and revisions under the model's policy; `DRAFTS`, as many drafts of each prompt as a
                trail has answers; `REFERENCE`, drafts and revisions of the reference, prompted by the trained model's
                template; or an opponent named in `KINDS`, such as the best of several drafts.
        """
        by = KINDS.get(kind, "")
        drafts = self.draw(DRAFTS, task) if by else []
        path, settings, made_with = self.cache_file(kind, task)

        def draw(reviser: Reviser, skip: int, only: Collection[int] | None) -> Iterator[Trail]:
            if by:
                return keep_best(reviser, task.rows, drafts, by, skip=skip)
            if kind == DRAFTS:
                return several_drafts(reviser, task.rows, settings, skip=skip)
            return reviser.trails(task.rows, settings, skip=skip, only=only)

        return cached_trails(path, task.rows, made_with, lambda: self.reviser(*self._model_of(kind)), draw)

    def cache_file(self, kind: str, task: Task) -> tuple[Path, RevisionSettings, dict[str, object]]:
        """Returns the cache file for a task's answers, the sampling settings, and all else that decides the answers.

        Args:
            kind: kind of the answers: `ANSWERS`, `DRAFTS`, `REFERENCE` or an opponent; see the method `draw`.
        """
        model, template = self._model_of(kind)
        plan, policy = self.plan, self.model.policy if kind == ANSWERS else "always"
        revisions = plan.revisions if self.model.revisions is None else self.model.revisions
        select = self.model.select if kind == ANSWERS else LAST
        settings = RevisionSettings(revisions, task.temperature, self.seed, plan.max_new_tokens, policy, select)
        if kind in (GREEDY, REFERENCE_GREEDY):
            settings = replace(settings, revisions=0, temperature=0.0, seed=0)  # greedy drafts: one file for all seeds
        made_with = {
            **settings.made_with(),
            **models_in(model.model, model.reference, model.revision_template),
            **({"template": template.identity()} if template else {}),
            **({} if plan.dtype == "float32" else {"dtype": plan.dtype}),
            **({"no_chat_template": True} if plan.no_chat_template else {}),
            **({"chat_template_kwargs": plan.chat_template_kwargs} if plan.chat_template_kwargs else {}),
            **({"kind": kind} if kind not in (ANSWERS, REFERENCE) else {}),
            **({"drafts": content_hash(self.model.model)} if kind == BY_REFERENCE else {}),
        }
        name = ".".join([task.name, *([] if kind == ANSWERS else [kind]), task.split])
        path, made = cache_file(self.folder, name, task.rows, made_with)
        return path, settings, made

    def _model_of(self, kind: str) -> tuple[Model, RevisionTemplate | None]:
        """The model to load for a kind of answers; and, if that is the reference, the trained model's template."""
        if kind in (REFERENCE, REFERENCE_GREEDY, BY_REFERENCE):
            template = template_for(self.model.model, self.model.revision_template)
            template = template or RevisionTemplate.load(self.model.model)
            # The digest belongs to the trained model's tokenizer; only the template's words apply to the reference.
            return Model(str(self.model.reference)), replace(template, sha256="")
        # Confidence costs as much as revising, so a reference is loaded only if it decides which answers are kept.
        weighs = self.model.policy not in ("always", "vote") or self.model.select == REWARD
        confident = kind == BEST_OF or (kind == ANSWERS and weighs)
        return (self.model if confident else replace(self.model, reference=None)), None

    def _load(self, model: Model, template: RevisionTemplate | None = None) -> Reviser:
        from srpo.revise.reviser import Reviser  # imports transformers: only where answers are drawn

        return Reviser(
            model.model,
            template=template or model.revision_template,
            reference=model.reference,
            batch_size=self.plan.batch_size,
            trust_remote_code=self.plan.trust_remote_code,
            device=self.plan.device,
            dtype=self.plan.dtype,
            chat_template_kwargs=self.plan.chat_template_kwargs,
            no_chat_template=self.plan.no_chat_template,
        )
