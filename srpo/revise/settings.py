"""Settings of a `Reviser`: how its trails are drawn, and how its model is loaded, batched and scored."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from srpo.errors import ConfigError, did_you_mean
from srpo.generate.engine import expect_temperature
from srpo.revise.policy import AUTO, Policy


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
        policy: Name of a policy in revise/policy.py. "auto" takes the policy that `srpo calibrate` stored with the
            model; otherwise if_preferred with a confidence and always without one.

    Raises:
        ConfigError: An unknown policy or a number out of range.
    """

    revisions: int = 5
    temperature: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    policy: str = AUTO

    def __post_init__(self) -> None:
        if self.policy != AUTO:
            Policy.named(self.policy)
        for name, least in (("revisions", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{getattr(self, name)}", where=name, expected=f"{least} or more")
        expect_temperature(self.temperature)


@dataclass(frozen=True)
class ReviserSettings:
    """How a `Reviser` loads its model, forms batches and computes the confidence.

    Attributes:
        beta: β of Eq. 9; None takes the value saved with the model.
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
    """

    beta: float | None = None
    logps_reduction: str | None = None
    equation: str = "eq9"
    batch_size: int = 32
    backend: str = "auto"
    device: str = ""
    dtype: str = ""
    trust_remote_code: bool = False

    def with_options(self, options: dict[str, Any]) -> ReviserSettings:
        """Returns the settings with some fields replaced.

        Raises:
            ConfigError: An option that is not a field.
        """
        known = [each.name for each in fields(self)]
        for name in options:
            if name not in known:
                expected = "one of " + ", ".join(known)
                raise ConfigError(
                    "unknown option of Reviser", where=name, expected=expected, fix=did_you_mean(name, known)
                )
        return replace(self, **options)
