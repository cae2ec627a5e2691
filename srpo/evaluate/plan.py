"""The plan of an evaluation: all its settings, made from a YAML file, flags, or both.

The file may be a recipe: settings of training, and the settings of a plan below the key `evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError, did_you_mean
from srpo.judge.settings import LLMSettings
from srpo.settings import build, expect_known, options, part, setting, shared, values_of
from srpo.settings_file import read_settings

SECTION = "evaluate"
BEST_OF = "best_of"  # policy of a model in a plan, in addition to the policies of srpo.revise.policy
CONTROLS = {
    "draft_only": "its drafts, whatever k",
    "greedy": "one greedy draft",
    "best_of": "best of k+1 drafts",
    "best_of_logp": "best of k+1 drafts by log π",
    "best_of_mean_logp": "best of k+1 drafts by log π per token",
    "best_of_vote": "best of k+1 drafts by the reviser's vote",
    "best_of_reference_logp": "best of k+1 drafts by log π of the reference",
    "majority": "most frequent of k+1 drafts",
    "oracle": "oracle: best of k+1 drafts, picked by the judge",
    "reference": "reference asked to revise",
    "reference_greedy": "one greedy draft of the reference",
    "gold": "the gold answers",
}
BOUNDS = ("oracle", "gold")  # controls that use the gold answer, and are therefore bounds, not opponents


@dataclass(frozen=True)
class Model:
    """One model from which an evaluation draws answers.

    Attributes:
        model: folder or hub name; `{seed}` is replaced by the seed, for models trained with several seeds.
        reference: the model before training, for confidence and the best of several drafts; `{seed}` is replaced too.
        revision_template: name of a preset or a file; None takes the template saved with the model.
        policy: as in `RevisionSettings`, or "best_of": no revisions, but the best of k + 1 drafts by implied reward.
        revisions: largest number of revisions; None takes that of the plan.
        select: selector of the final answer, as in `RevisionSettings`.
        controls: names of this model's opponents, keys of `CONTROLS`; the highlighted model has the plan's too.
    """

    model: str
    reference: str | None = None
    revision_template: str | None = None
    policy: str = "always"
    revisions: int | None = None
    controls: tuple[str, ...] = ()
    select: str = "last"

    def at(self, seed: int) -> Model:
        """Returns a copy with `{seed}` in the paths of model and reference replaced by the seed."""
        reference = self.reference.format(seed=seed) if self.reference else None
        return replace(self, model=self.model.format(seed=seed), reference=reference)


@dataclass(frozen=True)
class Plan:
    """All settings of one evaluation; the fields are the flags of `srpo evaluate`.

    Raises:
        ConfigError: an unknown opponent in `controls`, models without prompts, or nothing to evaluate.
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
    chat_template_kwargs: dict[str, Any] | None = shared("chat_template_kwargs")
    no_chat_template: bool = shared("no_chat_template")
    controls: list[str] = setting(
        [], "Controls to compare with the highlighted model: " + ", ".join(CONTROLS) + ".", metavar="CONTROL"
    )
    without: list[str] = setting([], "Models of the settings file to leave out.", metavar="NAME")
    revisions: int = shared("revisions")
    policy: str = setting(
        "always", "Policy that keeps revisions: always, if_preferred, …; best_of: best of k+1 drafts."
    )
    select: str = shared("select")
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
            _expect_known(where, names, CONTROLS, "no control ")
        if self.models and not self.prompts:
            raise ConfigError("models but no prompts", where="prompts", fix="add `--prompts FILE`, or give --trails")
        if not self.models and not self.trails:
            raise ConfigError("nothing to evaluate", expected="--trails FILE, or --models PATH with --prompts FILE")
        fresh = (BEST_OF, "vote")
        greedy = [name for name, model in self.models.items() if model.policy in fresh and 0 in self.temperature]
        if greedy:
            fix = "a temperature above 0 for them"
            raise ConfigError(
                "greedy drafts are all the same",
                where=f"models: {greedy[0]}: policy {self.models[greedy[0]].policy}",
                fix=fix,
            )
        for name in ("seeds", "temperature"):
            if not getattr(self, name):
                raise ConfigError("no value", where=name, expected="at least one")

    def controls_of(self, name: str) -> list[str]:
        """Returns the names of the opponents made from the model `name`, keys of `CONTROLS` such as "best_of".

        Those in the model's own settings come first. The highlighted model, or without one the first model, also has
        those of the whole plan.
        """
        owner = self.highlight if self.highlight in self.models else next(iter(self.models), "")
        return list(dict.fromkeys([*self.models[name].controls, *(self.controls if name == owner else ())]))

    @property
    def systems(self) -> list[str]:
        """Names of all systems of the evaluation: models, each with opponents made from it, then those in files."""
        drawn = [each for name in self.models for each in (name, *(f"{name}/{c}" for c in self.controls_of(name)))]
        return list(dict.fromkeys([*drawn, *named_files(self.trails)]))

    def check(self) -> None:
        """Checks all names, folders and policies of the evaluation before a file is read or a model loaded.

        Raises:
            ConfigError: a setting is missing, unknown or does not fit another one.
            InputError: the folder of a model does not exist.
        """
        from srpo.revise.policy import AUTO, NAMES, Policy
        from srpo.revise.settings import SELECTORS
        from srpo.score.pooling import RESAMPLINGS

        if not self.output_dir:
            raise ConfigError("no output_dir", fix="add `--output_dir FOLDER`")
        if self.models and self.trails and len(self.temperature) > 1:
            what = "several, and trails that do not state theirs"
            raise ConfigError(what, where="temperature", expected="one")
        for name, model in self.models.items():
            for control in self.controls_of(name):
                if "reference" in control and not model.reference:
                    fix = "name it by --references"
                    raise ConfigError("no reference to ask", where=f"models: {name}: {control}", fix=fix)
            for seed in self.seeds:
                _expect_folders(name, model.at(seed))
        fixed = [model.policy for model in self.models.values() if model.policy.startswith("fixed:")]
        policies = [*NAMES, AUTO, BEST_OF, *fixed]
        _expect_known("resampling", [self.resampling], RESAMPLINGS)
        _expect_known("highlight", filter(None, [self.highlight]), self.systems, "no system ")
        _expect_known("curves", self.curves, self.systems, "no system ")
        for name, model in self.models.items():
            _expect_known(f"models: {name}: policy", [model.policy], policies)
            _expect_known(f"models: {name}: select", [model.select], SELECTORS)
        for name in fixed:
            Policy.named(name)

    def check_labels(self, names: Iterable[str]) -> None:
        """Checks that every label in `labels` belongs to something in the evaluation.

        Args:
            names: names of splits and judges; systems and opponents are known.

        Raises:
            ConfigError: a label belongs to no system, opponent, split or judge.
        """
        controls = [f"{name}/{control}" for name in self.models for control in CONTROLS]
        _expect_known("labels", self.labels, [*self.systems, *names, *controls], "nothing is named ")

    @property
    def record(self) -> dict[str, Any]:
        """Setting → value for the settings printed in the report, without output paths and names of judges."""
        hidden = ("trails", "output_dir", "cache_dir", "judge", "secondary", "llm")
        found = {name: value for name, value in asdict(self).items() if name not in hidden}
        llm = values_of(self.llm)
        found["asked"] = {each.name: llm[each.name] for each in options(LLMSettings) if llm[each.name] != each.default}
        return {name: value for name, value in found.items() if value not in (None, [], {}, "")}

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str = "") -> Plan:
        """Makes the plan of an evaluation from the settings that a file or flags give.

        Args:
            settings: value by name of a field. Prompts and models are a path, a list of `[NAME=]PATH`, or a mapping
                from names to paths; in a mapping, a model may also be a mapping of `Model`'s fields.
            where: name of the settings' file, for error messages.

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
            "select": found.get("select", "last"),
        }
        found["models"] = {name: _model(name, value, common) for name, value in models.items()}
        found["prompts"] = named(found.pop("prompts", {}), "prompts", "all")
        return build(cls, found)


NAMED = ("models", "prompts", "labels")  # settings that are mappings; flags give them as NAME=VALUE
LISTED = ("curves", "labels")  # settings that list names of systems
KNOWN = [option.name for option in options(Plan)]
LISTS = [option.name for option in options(Plan) if option.rule.metavar]


def read_plan(path: str) -> dict[str, Any]:
    """Reads the settings of an evaluation from a YAML file into setting → value.

    In a recipe, which has settings of training as well, they are below the key `evaluate`.

    Raises:
        InputError: the file does not exist.
        ConfigError: the file is not a mapping, or has an unknown key.
    """
    return read_settings(path, KNOWN, section=SECTION, verb="evaluate")


def named(given: object, where: str, alone: str) -> dict[str, Any]:
    """Returns name → path for a setting that takes one path or several named ones.

    Args:
        given: a path, a mapping from names to paths, or a list of `[NAME=]PATH`.
        where: name of the setting, for error messages.
        alone: name of a path without a name; "" takes the last part of the path.

    Raises:
        ConfigError: a name twice, or without a path.
    """
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    found: dict[str, Any] = {}
    for spec in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        if not isinstance(spec, str):
            raise ConfigError(f"{spec!r}", where=where, expected="path or name=path")
        name, path = _name_and_path(spec, alone or Path(spec).name)
        if not name or not path or name in found:
            problem = "has a name that is given twice" if name in found else "names nothing"
            raise ConfigError(f"{spec!r} {problem}", where=where, expected="path or name=path, each name once")
        found[name] = path
    return found


def named_files(specs: Iterable[str]) -> dict[str, list[str]]:
    """Returns system → paths of its files of drafts and revisions, one per seed.

    Args:
        specs: `[NAME=]PATH` for each file; a path without a name gets the file's stem as name.

    Raises:
        ConfigError: two paths without a name that have the same stem, or a name without a path.
    """
    found: dict[str, list[str]] = {}
    for spec in specs:
        name, path = _name_and_path(spec, Path(spec).stem)
        if path == spec and name in found:
            raise ConfigError(f"two systems named {name!r}", where=spec, fix="name them: --trails one=… other=…")
        if not name or not path:
            raise ConfigError(f"{spec!r} names no file", where="--trails", expected="path or name=path")
        found[name] = [*found.get(name, ()), path]
    return found


def _name_and_path(spec: str, alone: str) -> tuple[str, str]:
    """Splits `NAME=PATH`; without a name, the name is `alone`. An equals sign after a slash belongs to the path."""
    name, equals, path = spec.partition("=")
    return (name, path) if equals and "/" not in name else (alone, spec)


def _expect_known(where: str, names: Iterable[str], known: Iterable[str], what: str = "") -> None:
    known = list(known)
    for name in names:
        if name not in known:
            expected, fix = " or ".join(known), did_you_mean(name, known)
            raise ConfigError(f"{what}{name!r}", where=where, expected=expected, fix=fix)


def _expect_folders(name: str, model: Model) -> None:
    for path in filter(None, (model.model, model.reference)):
        if path.count("/") > 1 and not Path(path).is_dir():  # not checked: a hub name, which has one slash at most
            fix = f"make it first, or leave the model out by `--without {name}`"
            raise InputError("no such folder", where=f"models: {name}: {path}", expected="a saved model", fix=fix)


def _leave_out(found: dict[str, Any], models: dict[str, Any]) -> None:
    """Removes the models in the setting `without` from `models` and from the curves and labels in `found`."""
    out = found.get("without") or []
    _expect_known("without", out, models, "no model ")
    for name in out:
        models.pop(name, None)
    stay = {where: [name for name in found.get(where) or [] if name.partition("/")[0] not in out] for where in LISTED}
    found |= {"curves": stay["curves"], "labels": {name: found["labels"][name] for name in stay["labels"]}}


def _labels(given: Mapping[str, object] | Iterable[object]) -> dict[str, str]:
    """Returns name → printed name, from a mapping or a list of `NAME=TEXT`."""
    pairs = given.items() if isinstance(given, Mapping) else [str(each).partition("=")[::2] for each in given]
    found = {str(name): str(text) for name, text in pairs}
    if not all(map(str.strip, [*found, *found.values()])):
        raise ConfigError("a name or a text is missing", where="labels", expected="NAME=TEXT")
    return found


def _model(name: str, value: object, common: Mapping[str, Any]) -> Model:
    own = {"model": value} if isinstance(value, str) else value
    if not isinstance(own, Mapping) or "model" not in own:
        raise ConfigError(f"{value!r}", where=f"models: {name}", expected="a path, or a mapping with `model`")
    expect_known(own, [each.name for each in fields(Model)], where=f"models: {name}", verb="evaluate")
    return Model(**{**common, **own, "controls": tuple(own.get("controls", ()))})
