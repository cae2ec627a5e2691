"""The plan of an evaluation: a value made from a YAML file, flags, or both.

A file may be a recipe, whose settings of training stand beside one key `evaluate` with all of this below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError, did_you_mean
from srpo.judge.settings import LLMSettings
from srpo.settings import build, expect_known, options, part, setting, shared
from srpo.settings_file import read_settings

SECTION = "evaluate"
BEST_OF = "best_of"  # a policy of this file's models beside those of srpo.revise.policy
CONTROLS = {
    "draft_only": "its drafts, whatever k",
    "best_of": "best of k+1 drafts",
    "oracle": "oracle: best of k+1 drafts, picked by the judge",
    "reference": "reference asked to revise",
    "gold": "the gold answers",
}


@dataclass(frozen=True)
class Model:
    """A system that is drawn.

    Attributes:
        model: folder or hub name; `{seed}` in it stands for the seed, for models trained with several.
        reference: what it was before training, for its own confidence and the control best_of; `{seed}` likewise.
        revision_template: preset or file; what was saved with the model, if None.
        policy: as in `RevisionSettings`; or "best_of", which revises nothing and answers with the best of
            k + 1 drafts by implied reward.
        revisions: fewer than the others have, if it is to stop earlier; None for as many.
        controls: of this system, beside those of the highlighted one.
    """

    model: str
    reference: str | None = None
    revision_template: str | None = None
    policy: str = "always"
    revisions: int | None = None
    controls: tuple[str, ...] = ()

    def at(self, seed: int) -> Model:
        """Returns the model of one seed."""
        reference = self.reference.format(seed=seed) if self.reference else None
        return replace(self, model=self.model.format(seed=seed), reference=reference)

    def check(self, name: str) -> None:
        """Checks policy and folders.

        Raises:
            ConfigError: an unknown policy.
            InputError: a folder does not exist.
        """
        from srpo.revise.policy import AUTO, NAMES, Policy

        known, where = [*NAMES, AUTO, BEST_OF], f"models: {name}"
        try:
            Policy.named("always" if self.policy in known else self.policy)
        except ConfigError:
            fix, expected = did_you_mean(self.policy, known), "one of " + ", ".join(known)
            raise ConfigError(f"{self.policy!r}", where=f"{where}: policy", expected=expected, fix=fix) from None
        for path in filter(None, (self.model, self.reference)):
            if path.count("/") > 1 and not Path(path).is_dir():  # a hub name has one slash at most
                fix = f"make it first, or leave the model out by `--without {name}`"
                raise InputError("no such folder", where=f"{where}: {path}", expected="a saved model", fix=fix)


@dataclass(frozen=True)
class Plan:
    """One evaluation.

    Raises:
        ConfigError: an unknown control, models without prompts, or nothing to evaluate.
    """

    trails: list[str] = setting(
        [],
        "Files written by `srpo revise`, one for each system; files with the same name are seeds of one system.",
        metavar="[NAME=]FILE",
    )
    models: dict[str, Model] = setting(
        {}, "Models to draw answers from; {seed} in a path is replaced by each seed.", metavar="[NAME=]PATH"
    )
    prompts: dict[str, str] = setting(
        {}, "Prompts, one file or data set for each split; drawn answers need them.", metavar="[SPLIT=]FILE"
    )
    prompts_split: str = setting("test", "Split of prompts that `datasets` loads by name.")
    prompts_config: str | None = setting(None, "Configuration of prompts that `datasets` loads by name.")
    map: str | None = shared("map", help="Columns under other names, as ours=theirs: prompt=post,gold=summary.")
    limit: int | None = setting(None, "Number of prompts to take from the start of each split; unset: all.")
    references: str | None = setting(None, "Models before training, for confidence and best_of; {seed} as in --models.")
    revision_template: str | None = shared("revision_template")
    controls: list[str] = setting(
        [], "Controls to compare with the highlighted model: " + ", ".join(CONTROLS) + ".", metavar="CONTROL"
    )
    without: list[str] = setting([], "Models of the settings file to leave out.", metavar="NAME")
    revisions: int = shared("revisions")
    policy: str = setting(
        "always", "Policy that keeps revisions: always, if_preferred, …; best_of: best of k+1 drafts."
    )
    temperature: list[float] = setting(
        [1.0], "Sampling temperatures; 0 decodes greedily. Each one is reported separately.", metavar="T"
    )
    max_new_tokens: int = shared("max_new_tokens")
    batch_size: int = shared("batch_size")
    seeds: list[int] = setting([0], "Seeds to draw with; each is reported alone and pooled.", metavar="SEED")
    judge: str = setting("exact_match", "Judge that scores: of single answers or of two; exact_match costs nothing.")
    judge_runs: int = setting(1, "Judge llm: number of times everything is asked, to measure its self-agreement.")
    secondary: list[str] = setting([], "Judges to report as well.", metavar="JUDGE")
    against: str = setting("gold", "Opponent of each answer for a judge of two answers: gold or draft.")
    versus: list[str] = setting(
        ["draft"], "Further opponents for a judge of two answers: draft, rivals, everyone.", metavar="OPPONENT"
    )
    highlight: str = setting("", "System that the comparisons are about; unset: the first system.")
    curves: list[str] = setting(
        [], "Systems in the figures, in this order; the tables show all systems.", metavar="SYSTEM"
    )
    labels: dict[str, str] = setting({}, "Printed names of systems, splits and judges.", metavar="NAME=TEXT")
    resampling: str = setting("prompts", "Bootstrap: prompts: 10,000 draws of all prompts; paper: 20 draws of 512.")
    gold_key: str = shared("gold_key", help="Column of the prompts with the gold answer.")
    split_key: str = setting("split", "Column of the trails with the name of the split, if there is one.")
    seed: int = shared("seed", help="Seed of the bootstrap and of the trails that the report shows.")
    output_dir: str | None = setting(None, "Folder for report, figure, tables and drawn answers.")
    cache_dir: str | None = setting(None, "Folder for drawn answers, if several evaluations share them.")
    dtype: str = shared("dtype")
    device: str = shared("device")
    trust_remote_code: bool = shared("trust_remote_code")
    llm: LLMSettings = part(LLMSettings, group="judge llm")

    def __post_init__(self) -> None:
        for where, names in (("controls", self.controls), *((n, m.controls) for n, m in self.models.items())):
            for name in names:
                if name not in CONTROLS:
                    fix = did_you_mean(name, CONTROLS)
                    raise ConfigError(f"no control {name!r}", where=where, expected=", ".join(CONTROLS), fix=fix)
        if self.models and not self.prompts:
            raise ConfigError("models but no prompts", where="prompts", fix="add `--prompts FILE`, or give --trails")
        if not self.models and not self.trails:
            raise ConfigError("nothing to evaluate", expected="--trails FILE, or --models PATH with --prompts FILE")
        greedy = [name for name, model in self.models.items() if model.policy == BEST_OF and 0 in self.temperature]
        if greedy:
            fix = "a temperature above 0 for them"
            raise ConfigError("greedy drafts are all the same", where=f"models: {greedy[0]}: policy best_of", fix=fix)
        for name in ("seeds", "temperature"):
            if not getattr(self, name):
                raise ConfigError("none", where=name, expected="at least one")

    @property
    def owner(self) -> str:
        """The model that `controls` belong to."""
        return self.highlight if self.highlight in self.models else next(iter(self.models), "")

    def controls_of(self, name: str) -> list[str]:
        """Of a model, its own first."""
        return list(dict.fromkeys([*self.models[name].controls, *(self.controls if name == self.owner else ())]))

    @property
    def systems(self) -> list[str]:
        """Names of all systems: models with their controls, then those whose trails are in files."""
        drawn = [each for name in self.models for each in (name, *(f"{name}/{c}" for c in self.controls_of(name)))]
        return list(dict.fromkeys([*drawn, *named_files(self.trails)]))

    def check(self) -> None:
        """Checks all names, folders and policies, before any file is read or model loaded.

        Raises:
            ConfigError: a setting is missing, unknown or does not fit another one.
            InputError: the folder of a model does not exist.
        """
        from srpo.score.pooling import RESAMPLINGS

        if not self.output_dir:
            raise ConfigError("no output_dir", fix="add `--output_dir FOLDER`")
        if self.models and self.trails and len(self.temperature) > 1:
            what = "several, and trails that do not state theirs"
            raise ConfigError(what, where="temperature", expected="one")
        systems = self.systems
        names = [("highlight", self.highlight), *(("curves", each) for each in self.curves)]
        for where, name in [("resampling", self.resampling), *names]:
            known = list(RESAMPLINGS) if where == "resampling" else systems
            if name and name not in known:
                what = f"{name!r}" if where == "resampling" else f"no system {name!r}"
                raise ConfigError(what, where=where, expected=" or ".join(known), fix=did_you_mean(name, known))
        for name, model in self.models.items():
            for seed in self.seeds:
                model.at(seed).check(name)
            if "reference" in self.controls_of(name) and not model.reference:
                fix = "name it by --references"
                raise ConfigError("no reference to ask", where=f"models: {name}: reference", fix=fix)

    def check_labels(self, names: Iterable[str]) -> None:
        """Checks that every label belongs to a system, a control, or one of `names`: splits and judges.

        Raises:
            ConfigError: a label of nothing.
        """
        controls = [f"{name}/{control}" for name in self.models for control in CONTROLS]
        known = [*self.systems, *names, *controls]
        for name in self.labels:
            if name not in known:
                raise ConfigError(f"nothing is named {name!r}", where="labels", fix=did_you_mean(name, known))

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str = "") -> Plan:
        """The plan that these settings make; what is named in several ways is brought into one.

        Args:
            settings: by field; prompts and models as a path, a list of `[NAME=]PATH`, or a mapping of names to paths,
                a model's value a path or a mapping of `Model`'s fields.

        Raises:
            ConfigError: an unknown key, or a value of the wrong kind.

        Example:
            >>> plan = Plan.of({"models": "runs/srpo", "prompts": "test.jsonl", "seeds": [0, 1]})
            >>> plan.models["srpo"].model, plan.prompts
            ('runs/srpo', {'all': 'test.jsonl'})
        """
        expect_known(settings, KNOWN, where=where, verb="evaluate")
        found = dict(settings)
        for name in LISTS:
            value = found.get(name)
            if isinstance(value, str | int | float):
                found[name] = [value]
            elif name not in NAMED and value is not None:
                if not isinstance(value, list | tuple):
                    raise ConfigError(f"{value!r}", where=name, expected="a list")
                found[name] = list(value)
        models = named(found.pop("models", {}), "models", "")
        found["labels"] = _labels(found.get("labels") or {})
        _leave_out(found, models)
        common = {
            "reference": found.get("references"),
            "revision_template": found.get("revision_template"),
            "policy": found.get("policy", "always"),
        }
        found["models"] = {name: _model(name, value, common) for name, value in models.items()}
        found["prompts"] = named(found.pop("prompts", {}), "prompts", "all")
        return build(cls, found)


NAMED = ("models", "prompts", "labels")  # by name, in a mapping or as NAME=…
LISTED = ("curves", "labels")  # that name systems
KNOWN = [option.name for option in options(Plan)]
LISTS = [option.name for option in options(Plan) if option.rule.metavar]


def read_plan(path: str) -> dict[str, Any]:
    """The settings in a YAML file, or below `evaluate` in a recipe.

    Raises:
        InputError: no such file.
        ConfigError: it is no mapping.
    """
    return read_settings(path, KNOWN, section=SECTION, verb="evaluate")


def named(given: Any, where: str, alone: str) -> dict[str, Any]:
    """Paths by name.

    Args:
        given: a mapping, or a list of `[NAME=]PATH`.
        alone: what a path without a name is called; its last part, if empty.

    Raises:
        ConfigError: a name twice, or without a path.
    """
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    found: dict[str, Any] = {}
    for spec in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        if not isinstance(spec, str):
            raise ConfigError(f"{spec!r}", where=where, expected="path or name=path")
        name, equals, path = spec.partition("=")
        # An equals sign behind a slash belongs to the path.
        if not equals or "/" in name:
            name, path = alone or Path(spec).name, spec
        if not name or not path or name in found:
            problem = "stands twice" if name in found else "names nothing"
            raise ConfigError(f"{spec!r} {problem}", where=where, expected="path or name=path, each name once")
        found[name] = path
    return found


def named_files(specs: Iterable[str]) -> dict[str, list[str]]:
    """Returns files of trails by system, one per seed.

    Args:
        specs: `[NAME=]PATH`; the name of a bare path is its stem.

    Raises:
        ConfigError: two bare paths with the same stem, or a name without a path.
    """
    found: dict[str, list[str]] = {}
    for spec in specs:
        name, equals, path = spec.partition("=")
        # An equals sign behind a slash belongs to the path.
        if not equals or "/" in name:
            name, path = Path(spec).stem, spec
            if name in found:
                raise ConfigError(f"two systems named {name!r}", where=spec, fix="name them: --trails one=… other=…")
        if not name or not path:
            raise ConfigError(f"{spec!r} names no file", where="--trails", expected="path or name=path")
        found.setdefault(name, []).append(path)
    return found


def _leave_out(found: dict[str, Any], models: dict[str, Any]) -> None:
    """Takes the models that are named under `without` out of the others, out of figures and out of labels."""
    out = found.get("without") or []
    for name in out:
        if models.pop(name, None) is None:
            fix = did_you_mean(name, models)
            raise ConfigError(f"no model {name!r}", where="without", expected=" or ".join(models), fix=fix)
    stay = {where: [name for name in found.get(where) or [] if name.partition("/")[0] not in out] for where in LISTED}
    found |= {"curves": stay["curves"], "labels": {name: found["labels"][name] for name in stay["labels"]}}


def _labels(given: Any) -> dict[str, str]:
    """Text by name, from a mapping or a list of `NAME=TEXT`."""
    pairs = given.items() if isinstance(given, Mapping) else [str(each).partition("=")[::2] for each in given]
    found = {str(name): str(text) for name, text in pairs}
    if not all(map(str.strip, [*found, *found.values()])):
        raise ConfigError("a name or a text is missing", where="labels", expected="NAME=TEXT")
    return found


def _model(name: str, value: Any, common: Mapping[str, Any]) -> Model:
    own = {"model": value} if isinstance(value, str) else value
    if not isinstance(own, Mapping) or "model" not in own:
        raise ConfigError(f"{value!r}", where=f"models: {name}", expected="a path, or a mapping with `model`")
    expect_known(own, [each.name for each in fields(Model)], where=f"models: {name}", verb="evaluate")
    return Model(**{**common, **own, "controls": tuple(own.get("controls", ()))})
