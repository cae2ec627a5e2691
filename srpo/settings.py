"""Settings: dataclasses whose fields carry help, range and choices; YAML files and flags are made from them.

A field is declared with `setting`, or with `shared` where several commands have it; a group of settings inside another
one with `part`. `build` makes a dataclass from values by name, `expect_valid` checks one made in Python, and
`srpo.cli.flags` makes the command line. A new setting is one line in one dataclass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, get_origin, get_type_hints

from srpo.errors import ConfigError, did_you_mean
from srpo.renamed_settings import remedies
from srpo.setting_kinds import fits, in_words, kinds, words_of


class Dataclass(Protocol):
    """The protocol, for type checkers, of a dataclass or an instance of one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Dataclass)
# The parser of transformers replaces values of these settings by another type, which a copy of the settings then holds.
_REWRITTEN = ("fsdp", "debug")

# ---------------------------------------------------------------------- declaring


@dataclass(frozen=True)
class Rule:
    """A record of one setting's range, choices and place in the help.

    Attributes:
        group: heading of the help page that lists the flag.
        choices: the values allowed; empty allows any.
        least, above, most, below: bounds of a number; `least` and `most` are included in the range.
        metavar: name of the value in the usage line.
        flag: name of the flag and YAML key; "" takes the name of the field.
        positional: the command line takes the value without a flag in front.
    """

    group: str = ""
    choices: tuple[Any, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    metavar: str = ""
    flag: str = ""
    positional: bool = False

    @property
    def expected(self) -> str:
        """The allowed values as words for error messages, such as "above 0"; "" if any value is allowed."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        bounds = ((self.least, "{:g} or more"), (self.above, "above {:g}"), (self.most, "at most {:g}"))
        words = [text.format(bound) for bound, text in (*bounds, (self.below, "below {:g}")) if bound is not None]
        return " and ".join(words)

    def check(self, value: object, where: str) -> None:
        """Checks range and choices of a value of the setting `where`; None, and text instead of a number, are accepted.

        Raises:
            ConfigError: the value is out of range or not among the choices.
        """
        if self.choices:
            fits = value is None or value in self.choices
        else:
            fits = not isinstance(value, Real) or self._in_range(float(value))
        if not fits:
            fix = did_you_mean(str(value), map(str, self.choices))
            raise ConfigError(f"{value!r}", where=where, expected=self.expected, fix=fix)

    def _in_range(self, value: float) -> bool:
        bounds = (
            self.least is None or value >= self.least,
            self.above is None or value > self.above,
            self.most is None or value <= self.most,
            self.below is None or value < self.below,
        )
        return all(bounds) and (math.isfinite(value) or not self.expected)  # nan and infinity are in no range


class Help(str):
    """A string, the help text of a setting, that carries the setting's `Rule`.

    HfArgumentParser hands every key of a field's metadata to argparse, so a rule cannot have a key of its own.
    """

    rule = Rule()


def setting(default: object = MISSING, help: str = "", **rule: Any) -> Any:
    """Returns a dataclass field with a default, a help text and a rule.

    Args:
        default: default value; without one the setting is required. A list or dict is copied for each instance.
        help: one sentence that is understood without the other flags.
        rule: fields of `Rule` by name.

    Example:
        >>> @dataclass
        ... class Sampling:
        ...     temperature: float = setting(1.0, "Sampling temperature; 0 decodes greedily.", least=0)
        >>> build(Sampling, {"temperature": "0.5"})
        Sampling(temperature=0.5)
    """
    text = Help(help)
    text.rule = Rule(**rule)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


# One definition for settings that several commands share: default, help text and rule.
SHARED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "revision_template": (None, "Template that shows a draft: a preset or a file; unset: the one in the model.", {}),
    "chat_template_kwargs": (None, "Options of the chat template, as JSON or key=value: enable_thinking=false.", {}),
    "base_model": (None, "Base model of an adapter (folder or hub name); unset: the base that the adapter names.", {}),
    "no_chat_template": (False, "Write prompts as plain text, without the chat template of the tokenizer.", {}),
    "reference": (None, "Model before training (folder or hub name); the model's own confidence needs it.", {}),
    "trust_remote_code": (False, "Run Python code that comes with the model or tokenizer.", {}),
    "dtype": ("float32", "Precision of the weights: float32, bfloat16, float16, or auto: the stored precision.", {}),
    "device": ("", "Device of the model: cpu, cuda, cuda:1; unset: a GPU if there is one.", {}),
    "seed": (0, "Seed of all random draws.", {}),
    "revisions": (5, "Largest number of revisions of each draft.", {"least": 0}),
    "temperature": (1.0, "Sampling temperature; 0 decodes greedily.", {"least": 0}),
    "select": (
        "last",
        "Final answer of draft and revisions. last: the last one kept; logp or mean_logp: the likeliest, in all or per "
        "token; reward: the largest log-ratio to the reference; vote: by the reviser's vote.",
        {},
    ),
    "max_new_tokens": (256, "Largest number of tokens in each answer.", {"least": 1}),
    "batch_size": (32, "Number of prompts generated together.", {"least": 1}),
    "gold_key": ("gold", "Column with the gold answer, for judges that compare with one.", {}),
    "map": (None, "Columns under other names, as ours=theirs: prompt=instruction,chosen=good.", {}),
    "rankings": ("all", "Pairs made of a ranked list: all, or best-worst.", {}),
    "bad_rows": ("error", "error: stop at an unusable row; skip: leave the row out and count it.", {}),
    "truncate": ("none", "none, or prompt: cut the oldest tokens of a prompt that is too long.", {}),
    "max_length": (None, "Largest number of tokens in each of the six sequences; unset: the model's context.", {}),
    "dataset_config": (None, "Configuration of a data set loaded by name.", {}),
    "dataset_train_split": ("train", "Split to train on, of a data set loaded by name.", {}),
    "dataset_test_split": ("test", "Split to evaluate on, of a data set loaded by name.", {}),
    "dataset_num_proc": (None, "Processes that tokenise; unset: one per core, at most eight.", {}),
    "eval_dataset_name": (None, "Evaluation pairs: a file, a folder, or a name that `datasets` can load.", {}),
}


def shared(name: str, default: object = MISSING, help: str = "", **rule: Any) -> Any:
    """Returns the field of a setting that several commands share, such as "seed", as `SHARED` declares it under `name`.

    The other arguments replace the declared default, help text and fields of `Rule`.
    """
    usual, text, rules = SHARED[name]
    return setting(usual if default is MISSING else default, help or text, **(rules | rule))


class Part(NamedTuple):
    """A record that places one dataclass of settings inside another.

    Attributes:
        kind: the dataclass inside.
        prefix: text before the names of its flags.
        names: field → flag, for flags that differ from the field's name.
        without: fields that get no flag.
        defaults: values of fields that differ from the dataclass's own defaults.
        group: heading of its flags in the help.
    """

    kind: type[Dataclass]
    prefix: str
    names: Mapping[str, str]
    without: tuple[str, ...]
    defaults: dict[str, Any]
    group: str


def part(
    kind: type[Dataclass],
    *,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
    without: Iterable[str] = (),
    group: str = "",
    **defaults: Any,
) -> Any:
    """Returns a dataclass field that holds another dataclass of settings, `kind`, such as those of a server.

    `prefix`, `names` (field → flag), `without` and `group` (heading in the help) are those of `Part`, and decide the
    flags of the fields inside; `defaults` are values that differ from the defaults in `kind`.
    """
    made = Part(kind, prefix, names or {}, tuple(without), defaults, group)
    return field(default_factory=lambda: kind(**defaults), metadata={"part": made})


class Option(NamedTuple):
    """One setting of a dataclass or of a part of it.

    Attributes:
        name: name of the flag and of the YAML key.
        hint: type of the value.
        default: the default value; `MISSING` for a required setting.
        help: the help text.
        rule: range, choices and group.
    """

    name: str
    hint: Any
    default: Any
    help: str
    rule: Rule


def options(kind: type[Dataclass]) -> list[Option]:
    """Returns every setting of a dataclass and of the dataclasses inside it, in the order of declaration."""
    return [option for option, _ in _located(kind)]


def _located(kind: type[Dataclass]) -> Iterator[tuple[Option, tuple[str, ...]]]:
    """Every setting of a dataclass and its parts, each with the names of the fields that lead to the setting."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        inner: Part | None = each.metadata.get("part")
        if inner is not None:
            for option, path in _located(inner.kind):
                if path[0] in inner.without:
                    continue
                name = inner.names.get(path[0], inner.prefix + option.name)
                default = inner.defaults.get(path[0], option.default) if len(path) == 1 else option.default
                rule = replace(option.rule, group=inner.group) if inner.group else option.rule
                yield option._replace(name=name, default=default, rule=rule), (each.name, *path)
        elif each.init and "help" in each.metadata:
            help = each.metadata["help"]
            rule = getattr(help, "rule", Rule())
            default = each.default if each.default_factory is MISSING else each.default_factory()
            yield Option(rule.flag or each.name, hints[each.name], default, str(help), rule), (each.name,)


# ---------------------------------------------------------------------- building and checking


def build(kind: type[T], values: Mapping[str, Any], *, file: str = "") -> T:
    """Makes the dataclass `kind` from values by flag name; settings without a value take their defaults.

    Args:
        file: the file that the values come from, for error messages; "" for flags and Python.

    Raises:
        ConfigError: an unknown name, or a value of the wrong kind, out of range or not among the choices.
    """
    located = list(_located(kind))
    expect_known(values, [option.name for option, _ in located], where=file)
    tree: dict[str, Any] = {}
    for option, path in located:
        if option.name in values:
            value = _converted(values[option.name], option.hint)
            _expect_kind(option.name, value, option.hint, file)
            option.rule.check(value, f"{file}: {option.name}" if file else option.name)
            _put(tree, path, value)
    made: T = _made(kind, tree)
    return made


def _put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _made(kind: type[Dataclass], tree: dict[str, Any]) -> Any:
    found = dict(tree)
    for each in fields(kind):
        inner: Part | None = each.metadata.get("part")
        if inner is not None and each.name in found:
            found[each.name] = _made(inner.kind, {**inner.defaults, **found[each.name]})
    return kind(**found)


def values_of(settings: Dataclass) -> dict[str, Any]:
    """Returns flag name → value for all settings, also those of dataclasses inside: the inverse of `build`."""
    found = {}
    for option, path in _located(type(settings)):
        value: object = settings
        for name in path:
            value = getattr(value, name)
        found[option.name] = value
    return found


def expect_valid(settings: Dataclass) -> None:
    """Checks range and choices of every field of one dataclass of settings; its `__post_init__` calls this.

    Raises:
        ConfigError: a value is out of range or not among the choices.
    """
    for each in fields(settings):
        if isinstance(help := each.metadata.get("help"), Help):
            help.rule.check(getattr(settings, each.name), help.rule.flag or each.name)


def expect_known(names: Iterable[object], known: Iterable[str], *, where: str = "", verb: str = "") -> None:
    """Checks that all names of settings in `names` are known.

    Args:
        where: the file that the names come from, for the error.
        verb: the srpo command whose help lists the names, for the error.

    Raises:
        ConfigError: an unknown name; the message suggests a known one.
    """
    known = list(known)
    if unknown := [name for name in names if name not in known]:
        fix = remedies(map(str, unknown), known) or (f"`srpo {verb} --help` lists the keys" if verb else "")
        keys = ", ".join(map(repr, unknown))
        raise ConfigError(f"unknown key{'s' * (len(unknown) > 1)} {keys}", where=where, fix=fix)


def _converted(value: object, hint: object) -> object:
    """A value from YAML or a flag, converted to the type `hint`: YAML reads 2e-6 as text, flags give JSON."""
    allowed = [get_origin(kind) or kind for kind in kinds(hint)]
    if isinstance(value, str) and str not in allowed:
        if float in allowed:
            try:
                return float(value)
            except ValueError:
                return value
        if dict in allowed:
            return _mapping(value)
    if list in allowed and isinstance(value, str | int | float) and not isinstance(value, bool):
        return [value]
    return value


def _mapping(text: str) -> object:
    """The mapping in a flag's text, written as JSON or as key=value,…; any other text is returned unchanged."""
    try:
        return json.loads(text)
    except ValueError:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(key.strip() and equals for key, equals, _ in pairs):
            return text
    return {key.strip(): _json_or_text(value.strip()) for key, _, value in pairs}


def _json_or_text(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value


def as_mapping(value: object, name: str) -> dict[str, Any]:
    """Returns the setting `name`, whose value is `value`, as a mapping, parsed if a flag gave it as text; {} for None.

    Raises:
        ConfigError: the value is not a mapping.

    Example:
        >>> as_mapping("enable_thinking=false", "chat_template_kwargs")
        {'enable_thinking': False}
    """
    found = _mapping(value) if isinstance(value, str) else value or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{value!r}", where=name, expected="a mapping: a JSON object, or key=value,…")
    return found


def expect_kinds(values: Mapping[str, Any], groups: Iterable[type[Dataclass]], *, file: str = "") -> None:
    """Checks that every value has the declared type of its setting; objects that no file can hold pass.

    Args:
        values: values by name.
        groups: dataclasses that declare the settings.
        file: the file that the values come from; "" for Python.

    Raises:
        ConfigError: a value is of another kind.
    """
    for group in groups:
        hints = get_type_hints(group)
        for name in (each.name for each in fields(group) if each.init and each.name in values):
            if name not in _REWRITTEN:
                _expect_kind(name, values[name], hints[name], file)


def _expect_kind(name: str, value: object, hint: object, file: str) -> None:
    if not fits(value, hint):
        fix = did_you_mean(value, words_of(hint)) if isinstance(value, str) else ""
        what, where = (f"{name}: {value!r}", file) if file else (f"{value!r}", name)
        raise ConfigError(what, where=where, expected=in_words(hint), fix=fix)
