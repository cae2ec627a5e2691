"""Models and prompts in, trails by system out; what has been drawn once is not drawn again.

A file of trails is named by the sha256 of all that decides them: the contents of the model's files, of the reference's
and of the prompts, the template, the settings. So a changed model draws anew although its path is the same, an
unchanged one does not although it was moved, and a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from srpo.data.read import PromptRow, read_prompts
from srpo.data.source import Source, columns_of
from srpo.disk import writable_folder
from srpo.errors import ConfigError, InputError, did_you_mean
from srpo.evaluate.best_of import several_drafts, weighed
from srpo.evaluate.controls import draft_only, gold_answers, oracle
from srpo.evaluate.plan import BEST_OF, CONTROLS, Model, Plan
from srpo.revise.policy import AUTO, NAMES, Policy
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.revise.trail_files import located_trails, write_trails
from srpo.score.scores import Key
from srpo.sequences.templates import RevisionTemplate, template_for

log = logging.getLogger("srpo")
FOLDER = "drawn"
# What decides a model's answers; optimiser states, logs and cards beside it do not.
DECIDES = (".safetensors", ".json", ".jinja", ".model", ".txt")
IGNORED = ("trainer_state.json", "run.json", "results.json", "added_by_user.txt")


@dataclass(frozen=True)
class Drawn:
    """Trails by (seed, system, split, temperature), and how the systems are called in print."""

    trails: dict[Key, list[Trail]]
    labels: dict[str, str]


def draw_all(plan: Plan, judge: Any) -> Drawn:
    """Draws every model and control of a plan, seed by seed.

    Args:
        judge: for the oracle.

    Raises:
        SRPOError: a model, reference or file of prompts is missing or wrong, or the cache cannot be written.
    """
    folder = Path(plan.cache_dir or Path(str(plan.output_dir)) / FOLDER)
    writable_folder(folder)
    for name, model in plan.models.items():
        for seed in plan.seeds:
            _expect_there(name, _at(model, seed))
    trails: dict[Key, list[Trail]] = {}
    labels: dict[str, str] = {}
    for seed in plan.seeds:
        rows = _prompts(plan, seed)
        for name, model in plan.models.items():
            studio = Studio(plan, _at(model, seed), folder, seed)
            for split, prompts in rows.items():
                for heat in plan.temperature:
                    for system, found in _systems(studio, name, split, prompts, heat, judge).items():
                        trails[seed, system, split, heat] = found
                        if control := system.removeprefix(name).lstrip("/"):
                            alone = len(plan.models) == 1 or control == "gold"
                            labels[system] = CONTROLS[control] + ("" if alone else f", {plan.labels.get(name, name)}")
    return Drawn(trails, labels)


def _systems(
    studio: Studio, name: str, split: str, rows: list[PromptRow], heat: float, judge: Any
) -> dict[str, list[Trail]]:
    """One model and its controls on one split at one temperature."""
    wanted, gold_key = studio.plan.controls_of(name), studio.plan.gold_key
    found = {name: studio.answers(name, split, rows, heat)}
    if "draft_only" in wanted:
        found[f"{name}/draft_only"] = draft_only(found[name])
    if heat:  # greedy drafts are all the same, so none is the best of them
        if "best_of" in wanted:
            found[f"{name}/best_of"] = studio.best_of(name, split, rows, heat)
        if "oracle" in wanted:
            found[f"{name}/oracle"] = oracle(studio.drafts(name, split, rows, heat), judge, gold_key)
    if "reference" in wanted:
        found[f"{name}/reference"] = studio.untrained(name, split, rows, heat)
    if "gold" in wanted:
        found[f"{name}/gold"] = gold_answers(found[name], gold_key)
    return found


class Studio:
    """Draws with one model, and with the one it was trained from; weights are read when first needed."""

    def __init__(self, plan: Plan, model: Model, folder: Path, seed: int) -> None:
        self.plan, self.model, self.folder, self.seed = plan, model, folder, seed
        # One at a time: a model with its reference beside it is two in memory.
        self.reviser = lru_cache(maxsize=1)(self._load)

    def answers(self, name: str, split: str, rows: list[PromptRow], heat: float) -> list[Trail]:
        """What the model answers under its policy."""
        drawn = self.best_of if self.model.policy == BEST_OF else self.revised
        return drawn(name, split, rows, heat)

    def revised(self, name: str, split: str, rows: list[PromptRow], heat: float) -> list[Trail]:
        """Drafts and revisions."""
        settings = self._settings(heat, self.model.policy)
        # Confidence costs as much as revising: only where it decides what is kept.
        model = self.model if settings.policy != "always" else replace(self.model, reference=None)

        def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
            return self.reviser(model).trails(rows, settings, skip=skip, only=only)

        return self._kept(f"{name}.{split}", rows, draw, self._made_with(model, settings))

    def drafts(self, name: str, split: str, rows: list[PromptRow], heat: float) -> list[Trail]:
        """As many drafts as there are answers in a trail."""
        settings, bare = self._settings(heat, "always"), replace(self.model, reference=None)

        def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
            return several_drafts(self.reviser(bare), rows, settings, skip=skip)

        return self._kept(f"{name}.drafts.{split}", rows, draw, {**self._made_with(bare, settings), "kind": "drafts"})

    def best_of(self, name: str, split: str, rows: list[PromptRow], heat: float) -> list[Trail]:
        """The same drafts, weighed by the model itself."""
        drafts, settings = self.drafts(name, split, rows, heat), self._settings(heat, "always")

        def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
            return weighed(self.reviser(self.model), rows, drafts, skip=skip)

        made_with = {**self._made_with(self.model, settings), "kind": "best_of"}
        return self._kept(f"{name}.best_of.{split}", rows, draw, made_with)

    def untrained(self, name: str, split: str, rows: list[PromptRow], heat: float) -> list[Trail]:
        """The reference, asked to revise by the trained model's template."""
        if not self.model.reference:
            raise ConfigError("no reference to ask", where=f"{name}: reference", fix="name it by --references")
        settings = self._settings(heat, "always")
        asked = self.model.revision_template
        template = template_for(self.model.model, asked) or RevisionTemplate.load(self.model.model)
        template = replace(template, sha256="")  # made for another tokenizer file; the words are what is wanted
        reference = Model(self.model.reference)

        def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
            return self.reviser(reference, template).trails(rows, settings, skip=skip, only=only)

        made_with = self._made_with(reference, settings) | {"template": template.identity()}
        return self._kept(f"{name}.reference.{split}", rows, draw, made_with)

    def _settings(self, heat: float, policy: str) -> RevisionSettings:
        revisions = self.plan.revisions if self.model.revisions is None else self.model.revisions
        return RevisionSettings(revisions, heat, self.seed, self.plan.max_new_tokens, policy)

    def _load(self, model: Model, template: RevisionTemplate | None = None) -> Reviser:
        return Reviser(
            model.model,
            template=template or model.revision_template,
            reference=model.reference,
            batch_size=self.plan.batch_size,
            trust_remote_code=self.plan.trust_remote_code,
            device=self.plan.device,
            dtype=self.plan.dtype,
        )

    def _made_with(self, model: Model, settings: RevisionSettings) -> dict[str, Any]:
        named = model.revision_template
        return {
            **asdict(settings),
            "model": contents(model.model),
            "reference": contents(model.reference) if model.reference else "",
            "template": _text_of(named) if named else "saved",
            **({} if self.plan.dtype == "float32" else {"dtype": self.plan.dtype}),
        }

    def _kept(
        self,
        name: str,
        rows: list[PromptRow],
        draw: Callable[[int, Collection[int] | None], Iterator[Trail]],
        made_with: Mapping[str, Any],
    ) -> list[Trail]:
        asked = json.dumps([row._replace(where="") for row in rows], sort_keys=True, default=str)
        made = {**made_with, "prompts": hashlib.sha256(asked.encode()).hexdigest()}
        key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
        safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        path = self.folder / f"{safe}.{key}.jsonl"
        present = write_trails(path, rows, draw, made)
        log.info("srpo: %s: %d trails, %d of them were there", path, len(rows), present)
        return [trail for _, trail in located_trails(path)]


@cache
def contents(path: str) -> str:
    """sha256 of what decides a model's answers; an adapter's includes its base's, a hub name stands for its commit."""
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path)}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in DECIDES and file.name not in IGNORED and not file.name.startswith("optimizer"):
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
            if file.name == "adapter_config.json":
                base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
                digest.update(contents(base).encode() if base else b"")
    return digest.hexdigest()


def _commit(name: str) -> str:
    """The commit of a hub name that is in the local cache; "" where it has not been fetched yet."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""


def _at(model: Model, seed: int) -> Model:
    reference = model.reference.format(seed=seed) if model.reference else None
    return replace(model, model=model.model.format(seed=seed), reference=reference)


def _expect_there(name: str, model: Model) -> None:
    """Of all models, before the first is asked: the last may be hours away."""
    known = [*NAMES, AUTO, BEST_OF]
    try:
        Policy.named("always" if model.policy in known else model.policy)
    except ConfigError:
        fix, expected = did_you_mean(model.policy, known), "one of " + ", ".join(known)
        raise ConfigError(f"{model.policy!r}", where=f"models: {name}: policy", expected=expected, fix=fix) from None
    for path in filter(None, (model.model, model.reference)):
        if path.count("/") > 1 and not Path(path).is_dir():  # a hub name has one slash at most
            fix = f"make it first, or leave the model out by `--without {name}`"
            raise InputError("no such folder", where=f"models: {name}: {path}", expected="a saved model", fix=fix)


def _text_of(template: str) -> str:
    """A preset's name, or what stands in the file."""
    return Path(template).read_text("utf-8") if Path(template).is_file() else template


def _prompts(plan: Plan, seed: int) -> dict[str, list[PromptRow]]:
    """Split → its prompts: each file is one, unless its rows say which they belong to."""
    found: dict[str, list[PromptRow]] = {}
    for split, path in plan.prompts.items():
        origin, columns = path.format(seed=seed), columns_of(plan.map)
        rows = read_prompts(Source(origin, columns, split=plan.prompts_split, config=plan.prompts_config))
        for row in rows[: plan.limit]:
            found.setdefault(str(row.meta.get(plan.split_key, split)), []).append(row)
    return found
