"""What writes the answers, by name: a `Reviser` on transformers, on vLLM in this process, or on a server."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, did_you_mean
from srpo.generate.http import Endpoint
from srpo.generate.journal import Journal
from srpo.generate.openai import ChatEngine, CompletionsEngine
from srpo.revise.confidence import RatioScorer
from srpo.revise.reviser import Reviser, training_record
from srpo.sequences.render_messages import MessageRenderer
from srpo.sequences.templates import template_for

ENGINES = ("hf", "vllm", "openai", "chat")
_SERVERS = ("openai", "chat")
# The engines to which a setting means something; every other setting does to those that ask a server.
_ENGINES_OF = {"dtype": ("hf", "vllm"), "device": ("hf",), "speculation": ("vllm",)}


@dataclass(frozen=True)
class EngineSettings:
    """An engine and its settings.

    Attributes:
        engine: hf is transformers in this process; vllm is vLLM in it; openai sends token ids to a server, chat sends
            messages.
        base_url: of the server.
        api_key_env: name of the environment variable that holds its key.
        served_model: the model's name there, if it serves several.
        served_reference: the name there of what the model was before training, for its own confidence.
        concurrency: requests under way at the same time.
        timeout: seconds that one request may take.
        tries: requests for one answer, at most.
        backoff: seconds before the second of them; twice as many before each further one.
        dtype: of the weights in this process, vLLM's or ours.
        device: of engine hf, as `Reviser` takes it.
        speculation: of vLLM.

    Raises:
        ConfigError: no such engine, a server without a URL, or a setting that would mean nothing to the engine.

    Example:
        >>> EngineSettings("openai", base_url="http://localhost:8000/v1").made_with()
        {'engine': 'openai'}
    """

    engine: str = "hf"
    base_url: str = ""
    api_key_env: str = ""
    served_model: str = ""
    served_reference: str = ""
    concurrency: int = 16
    timeout: float = 120.0
    tries: int = 6
    backoff: float = 0.5
    dtype: str = "float32"
    device: str = ""
    speculation: str = "auto"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            fix = did_you_mean(self.engine, ENGINES)
            raise ConfigError(f"{self.engine!r}", where="engine", expected="one of " + ", ".join(ENGINES), fix=fix)
        served = self.engine in _SERVERS
        for each in fields(self)[1:]:
            engines = _ENGINES_OF.get(each.name, _SERVERS)
            if self.engine not in engines and getattr(self, each.name) != each.default:
                fix = f"leave it out, or take --engine {' or '.join(engines)}"
                raise ConfigError(f"means nothing to engine {self.engine}", where=each.name, fix=fix)
        if served and not self.base_url:
            raise ConfigError(f"engine {self.engine} asks a server", where="base_url", fix="say which: http://…/v1")
        if self.engine == "chat" and self.served_reference:
            raise ConfigError("chat tells no log-probs", where="served_reference", fix="engine openai does")

    def made_with(self) -> dict[str, str]:
        """What of it decides the answers: where a server stands, or a model in this process, does not."""
        named = {"engine": self.engine, "served_model": self.served_model, "served_reference": self.served_reference}
        decides = {} if self.engine == "hf" else {name: value for name, value in named.items() if value}
        return decides if self.dtype == "float32" else {**decides, "dtype": self.dtype}

    def reviser(
        self,
        model: str,
        *,
        template: str | None = None,
        reference: str | None = None,
        batch_size: int = 32,
        journal: Path | None = None,
        **keywords: Any,
    ) -> Reviser:
        """A reviser on that engine.

        Args:
            model: the trained model's folder; for a server its tokenizer and template are read there, and for chat the
                template alone.
            reference: what it was before training, in this process.
            journal: a file for what a server has answered.
            keywords: further ones of `Reviser`.

        Raises:
            ConfigError: a reference in this process beside a model on a server.
        """
        if self.engine == "hf":
            return Reviser(
                model,
                template=template,
                reference=reference,
                batch_size=batch_size,
                device=self.device,
                dtype=self.dtype,
                **keywords,
            )
        if self.engine == "vllm":
            return Reviser(model, template=template, **self._vllm(model, reference, batch_size), **keywords)
        if reference is not None:
            fix = "name it as the server does: served_reference"
            raise ConfigError(f"means nothing to engine {self.engine}", where="reference", fix=fix)
        endpoint = Endpoint(
            self.base_url,
            api_key_env=self.api_key_env,
            timeout=self.timeout,
            tries=self.tries,
            concurrency=self.concurrency,
            backoff=self.backoff,
        )
        kind = ChatEngine if self.engine == "chat" else CompletionsEngine
        kept = Journal(journal) if journal is not None else None
        engine = kind(endpoint, self.served_model, batch_size=batch_size, journal=kept)
        if self.engine == "chat":
            return Reviser(model, renderer=MessageRenderer(template_for(model, template)), engine=engine, **keywords)
        scorer = None
        if self.served_reference:
            scorer = RatioScorer(engine.logps, CompletionsEngine(endpoint, self.served_reference).logps)
        return Reviser(model, template=template, engine=engine, scorer=scorer, **keywords)

    def _vllm(self, model: str, reference: str | None, batch_size: int) -> dict[str, Any]:
        from srpo.generate.vllm import VLLMEngine

        engine = VLLMEngine(model, batch_size=batch_size, dtype=self.dtype, speculation=self.speculation)
        scorer = None
        if reference is not None:
            scorer = RatioScorer(engine.logps, VLLMEngine(reference, dtype=self.dtype, speculation="none").logps)
        elif engine.has_adapter and training_record(model).get("reference") in (None, "adapter off"):
            scorer = RatioScorer(engine.logps, engine.base_logps)
        return {"engine": engine, "scorer": scorer}
