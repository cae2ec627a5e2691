"""What an evaluation is to do: a value, from a YAML file, flags, or both.

A file may be a recipe, whose settings of training stand beside one key `evaluate` with all of this below it.
"""

# ruff: noqa: RUF009  `_option` makes a field
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError, did_you_mean
from srpo.settings import expect_known
from srpo.settings_file import read_settings

SECTION = "evaluate"
# Fields of JudgeArguments, which is not imported here: this file is read for `--help`.
ASKED = (
    "judge_model",
    "judge_base_url",
    "judge_api_key_env",
    "judge_prompt",
    "judge_temperature",
    "judge_max_tokens",
    "judge_orders",
    "judge_body",
    "judge_concurrency",
    "judge_timeout",
    "price_in",
    "price_out",
    "max_cost",
    "verdicts",
)
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


def _option(help: str, default: Any = None, *, many: bool = False, metavar: str = "") -> Any:
    metadata = {"help": help, "many": many, "metavar": metavar}
    return field(default_factory=lambda: type(default)(default) if many else default, metadata=metadata)


@dataclass(frozen=True)
class Plan:
    """One evaluation. What its fields mean is said where they are flags.

    Raises:
        ConfigError: a control that does not exist, or models without prompts.
    """

    trails: list[str] = _option(
        "files written by `srpo revise`, one per system; a name that stands twice is a system with two seeds",
        [],
        many=True,
        metavar="[NAME=]FILE",
    )
    models: dict[str, Model] = _option(
        "models to draw from; {seed} in a path stands for each seed", {}, many=True, metavar="[NAME=]PATH"
    )
    prompts: dict[str, str] = _option(
        "file or name of the prompts, one per split", {}, many=True, metavar="[SPLIT=]FILE"
    )
    prompts_split: str = _option("split of what `datasets` loads", "test")
    prompts_config: str | None = _option("configuration of what `datasets` loads")
    map: str | None = _option("columns of other names, ours=theirs: prompt=post,gold=summary")
    limit: int | None = _option("take the first so many prompts of each split")
    references: str | None = _option("what the models were before training, for confidence and best_of")
    revision_template: str | None = _option("preset or file, for models that were saved without one")
    controls: list[str] = _option(
        "what to hold the highlighted model against: " + ", ".join(CONTROLS), [], many=True, metavar="CONTROL"
    )
    without: list[str] = _option("models of the settings file to leave out", [], many=True, metavar="NAME")
    revisions: int = _option("revisions at most", 5)
    policy: str = _option("always, if_preferred: keep what the model prefers, best_of: of k+1 drafts, …", "always")
    temperature: list[float] = _option("0 is greedy; several are reported apart", [1.0], many=True, metavar="T")
    max_new_tokens: int = _option("tokens per answer", 256)
    batch_size: int = _option("prompts generated together", 32)
    seeds: list[int] = _option("seeds to draw with; each is reported alone and pooled", [0], many=True, metavar="SEED")
    judge: str = _option("who scores: a judge of single answers or of two; this one costs nothing", "exact_match")
    judge_runs: int = _option("of llm: how often everything is asked, to see how far the judge agrees with itself", 1)
    secondary: list[str] = _option("judges to report beside it", [], many=True, metavar="JUDGE")
    against: str = _option("what a judge of two answers holds them against: gold or draft", "gold")
    versus: list[str] = _option(
        "whom else to hold them against: draft, rivals, everyone", ["draft"], many=True, metavar="WHOM"
    )
    highlight: str = _option("the system that the comparisons are about; default: the first", "")
    curves: list[str] = _option(
        "systems in the figures, in this order; the tables have all of them", [], many=True, metavar="SYSTEM"
    )
    labels: dict[str, str] = _option(
        "what systems, splits and judges are called in print", {}, many=True, metavar="NAME=TEXT"
    )
    resampling: str = _option("prompts: 10,000 draws of all of them, or paper: 20 of 512", "prompts")
    gold_key: str = _option("column of the prompts that holds the gold answer", "gold")
    split_key: str = _option("column of trails that holds the name of the split, if any", "split")
    seed: int = _option("of the resampling and of the trails shown", 0)
    output_dir: str | None = _option("folder for report, figure, tables and what is drawn")
    cache_dir: str | None = _option("folder for what is drawn, if several evaluations share it")
    dtype: str = _option("of the models' weights: float32, bfloat16, float16, or auto, as they are stored", "float32")
    device: str = _option("where they work: cpu, cuda, cuda:1, …; unset: a GPU if there is one", "")
    trust_remote_code: bool = _option("run code that comes with a model", False)

    asked: dict[str, Any] = _option("how a model behind a server is asked, as the flags of the judge are", {})

    def asking(self) -> Any:
        """How a model behind a server is asked; prices and limits with it.

        Raises:
            ConfigError: a setting that no judge has.
        """
        from srpo.judge.settings import JudgeArguments

        expect_known(self.asked, [each.name for each in fields(JudgeArguments)], where="judge")
        return JudgeArguments(**self.asked)

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
        for each in fields(cls):
            value = found.get(each.name)
            if each.metadata["many"] and isinstance(value, str | int | float):
                found[each.name] = [value]
            elif each.name not in NAMED and each.metadata["many"] and value is not None:
                if not isinstance(value, list | tuple):
                    raise ConfigError(f"{value!r}", where=each.name, expected="a list")
                found[each.name] = list(value)
        models = named(found.pop("models", {}), "models", "")
        found["labels"] = _labels(found.get("labels") or {})
        _leave_out(found, models)
        shared = {
            "reference": found.get("references"),
            "revision_template": found.get("revision_template"),
            "policy": found.get("policy", "always"),
        }
        found["models"] = {name: _model(name, value, shared) for name, value in models.items()}
        found["asked"] = {name: found.pop(name) for name in [*found] if name in ASKED}
        found["prompts"] = named(found.pop("prompts", {}), "prompts", "all")
        return cls(**found)


NAMED = ("models", "prompts", "labels")  # by name, in a mapping or as NAME=…
LISTED = ("curves", "labels")  # that name systems
KNOWN = [*(each.name for each in fields(Plan) if each.name != "asked"), *ASKED]


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


def _model(name: str, value: Any, shared: Mapping[str, Any]) -> Model:
    own = {"model": value} if isinstance(value, str) else value
    if not isinstance(own, Mapping) or "model" not in own:
        raise ConfigError(f"{value!r}", where=f"models: {name}", expected="a path, or a mapping with `model`")
    expect_known(own, [each.name for each in fields(Model)], where=f"models: {name}", verb="evaluate")
    return Model(**{**shared, **own, "controls": tuple(own.get("controls", ()))})
