"""Settings of a `Reviser`: sampling of drafts and revisions, loading of its model, batches, and engine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from srpo.errors import ConfigError, did_you_mean
from srpo.generate.settings import EndpointSettings
from srpo.revise.policy import AUTO, Policy
from srpo.settings import expect_valid, options, part, setting, shared, values_of

ANSWERS = ".answers.jsonl"  # suffix of the journal of finished answers, kept beside trails until they are complete
ENGINES = ("hf", "vllm", "openai", "chat")
SERVERS = ("openai", "chat")
LAST, LOGP, MEAN_LOGP, REWARD, VOTE = SELECTORS = ("last", "logp", "mean_logp", "reward", "vote")  # revise/select.py
# Setting → engines that use it; the server engines use all settings that are not listed.
_ENGINES_OF = {"dtype": ("hf", "vllm"), "device": ("hf",), "speculation": ("vllm",)}


@dataclass(frozen=True)
class RevisionSettings:
    """Sampling of drafts and revisions, and the policy that keeps revisions.

    Attributes:
        revisions: Largest number of revisions. Greedy decoding stops earlier at a fixed point without changing any
            answer: a context that returned its own draft would return it again.
        temperature: Sampling temperature; 0 decodes greedily.
        seed: The seed and the prompt's text decide every number drawn, whatever batch the prompt is in. Equal prompts
            are numbered in order of occurrence.
        max_new_tokens: Largest number of tokens per answer, terminator included.
        policy: Name of a policy in revise/policy.py, or "auto": the policy that `srpo calibrate` stored with the model;
            if none is stored, if_preferred for a model with a confidence and always for any other.
        select: Name of a selector in revise/select.py, which chooses the final answer among draft and revisions.

    Raises:
        ConfigError: An unknown policy or a number out of range.
    """

    revisions: int = shared("revisions")
    temperature: float = shared("temperature")
    seed: int = shared("seed")
    max_new_tokens: int = shared("max_new_tokens")
    policy: str = setting(
        AUTO,
        "Policy that keeps or refuses revisions: always, if_preferred, if_preferred_and_likelier, until_worse, "
        "until_unchanged, fixed:K, drafts, greedy (one greedy draft); vote draws drafts and lets the reviser choose; "
        "auto takes the policy that `srpo calibrate` stored with the model.",
    )
    select: str = shared("select", choices=SELECTORS)

    def __post_init__(self) -> None:
        if self.policy != AUTO:
            Policy.named(self.policy)
        expect_valid(self)

    def made_with(self) -> dict[str, Any]:
        """Returns setting → value for the settings that decide the answers.

        The default selector is left out, so that files of answers made before selectors existed stay valid.
        """
        return {name: value for name, value in asdict(self).items() if (name, value) != ("select", LAST)}


def seed_of_draft(seed: int, draw: int) -> int:
    """Returns the seed of a prompt's further draft number `draw` ≥ 1; draft 0 has the seed of the settings itself."""
    return (seed + 1) * 1_000_003 + draw


@dataclass(frozen=True)
class ReviserSettings:
    """Settings by which a `Reviser` loads its model, forms batches and computes the confidence.

    Attributes:
        beta: β of training, in Eq. 9 and 14; None takes the value saved with the model.
        logps_reduction: Reduction of an answer's token log-probs in training, sum or mean; None takes the value saved
            with the model, otherwise sum.
        equation: Equation of the confidence, eq9 or eq14.
        batch_size: Prompts generated together.
        backend: Computation of the confidence in this process: auto, path or flat.
        device: Device of models given by path: cpu, cuda, cuda:1; "" takes a GPU if there is one. A reference given by
            path goes to the device of a model that is already loaded.
        dtype: Precision of models given by path: float32, bfloat16, float16, or auto for the stored precision. "" is
            float32, or the precision of a model that is already loaded.
        trust_remote_code: Allow Python code that comes with a model or tokenizer to run.
        chat_template_kwargs: Options of the chat template, such as `{"enable_thinking": False}`.
        no_chat_template: Write prompts as plain text, without the chat template of the tokenizer.
        base_model: Base model of an adapter given by path, in place of the one that the adapter names.
    """

    beta: float | None = None
    logps_reduction: str | None = None
    equation: str = "eq9"
    batch_size: int = shared("batch_size")
    backend: str = "auto"
    device: str = ""
    dtype: str = ""
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    no_chat_template: bool = False
    base_model: str | None = None

    def with_options(self, given: dict[str, Any]) -> ReviserSettings:
        """Returns a copy of the settings with the fields of `given` replaced.

        Raises:
            ConfigError: An option that is not a field.
        """
        known = [each.name for each in fields(self)]
        for name in given:
            if name not in known:
                expected = "one of " + ", ".join(known)
                raise ConfigError(
                    "unknown option of Reviser", where=name, expected=expected, fix=did_you_mean(name, known)
                )
        return replace(self, **given)


@dataclass(frozen=True)
class EngineSettings:
    """The engine that generates the answers, and the settings of that engine.

    Raises:
        ConfigError: an unknown engine, a server without a URL, or a setting that the engine does not use.

    Example:
        >>> EngineSettings("openai", EndpointSettings("http://localhost:8000/v1")).made_with()
        {'engine': 'openai'}
    """

    engine: str = setting(
        "hf",
        "hf: transformers in this process; vllm: vLLM in this process; openai: token ids to a server; chat: messages "
        "to a server; see docs/server.md.",
        choices=ENGINES,
    )
    endpoint: EndpointSettings = part(EndpointSettings, names={"model": "served_model", "body": "engine_body"})
    served_reference: str = setting(
        "", "Name at the server of the model before training; the model's own confidence needs it."
    )
    dtype: str = shared("dtype")
    device: str = shared("device")
    speculation: str = setting("auto", "Speculative decoding of engine vllm: suffix, ngram, none or auto.")

    def __post_init__(self) -> None:
        expect_valid(self)
        given = values_of(self)
        for option in options(type(self)):
            engines = ENGINES if option.name == "engine" else _ENGINES_OF.get(option.name, SERVERS)
            if self.engine not in engines and given[option.name] != option.default:
                fix = f"leave it out, or take --engine {' or '.join(engines)}"
                raise ConfigError(f"has no use with engine {self.engine}", where=option.name, fix=fix)
        if self.engine in SERVERS and not self.endpoint.base_url:
            fix = "name its address: http://…/v1"
            raise ConfigError(f"engine {self.engine} needs a server", where="base_url", fix=fix)
        if self.engine == "chat" and self.served_reference:
            raise ConfigError("engine chat has no log-probs", where="served_reference", fix="take --engine openai")

    def made_with(self) -> dict[str, str]:
        """Returns setting → value for the settings that decide the answers, without server address and device."""
        named = {
            "engine": self.engine,
            "served_model": self.endpoint.model,
            "served_reference": self.served_reference,
            "engine_body": json.dumps(self.endpoint.body, sort_keys=True) if self.endpoint.body else "",
        }
        decides = {} if self.engine == "hf" else {name: value for name, value in named.items() if value}
        return decides if self.dtype == "float32" else {**decides, "dtype": self.dtype}
