"""Makes a `Reviser` on the engine that settings name: transformers or vLLM in this process, or a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srpo.errors import ConfigError
from srpo.generate.http import connect
from srpo.generate.journal import Journal, JournaledEngine
from srpo.generate.openai import ChatEngine, CompletionsEngine
from srpo.revise.confidence import RatioScorer
from srpo.revise.loading import training_record
from srpo.revise.reviser import Reviser
from srpo.revise.settings import SERVERS, EngineSettings, ReviserSettings
from srpo.sequences.render_messages import MessageRenderer
from srpo.sequences.templates import template_for


def make_reviser(
    settings: EngineSettings,
    model: str,
    *,
    template: str | None = None,
    reference: str | None = None,
    batch_size: int = ReviserSettings.batch_size,
    journal: Path | None = None,
    **keywords: Any,
) -> Reviser:
    """Makes a `Reviser` whose answers come from the engine that `settings` names.

    Args:
        model: folder of the trained model. Engines on a server read only its tokenizer and revision template, the
            engine "chat" only the template.
        reference: the model before training, loaded in this process.
        journal: file that keeps finished answers, so that a restarted run does not draw them again.
        keywords: further arguments of `Reviser`.

    Raises:
        ConfigError: `reference` is set for a model on a server, or `chat_template_kwargs` for the engine "chat".
    """
    if settings.engine not in SERVERS:
        if settings.engine == "vllm":
            keywords |= _vllm(settings, model, reference, batch_size, keywords.get("base_model"))
        else:
            keywords |= {"batch_size": batch_size, "device": settings.device, "dtype": settings.dtype}
            keywords["reference"] = reference
        reviser = Reviser(model, template=template, **keywords)
        if journal is not None:
            reviser.engine = JournaledEngine(reviser.engine, Journal(journal, durable=False))
        return reviser
    if reference is not None:
        fix = "name it as the server does: served_reference"
        raise ConfigError(f"has no use with engine {settings.engine}", where="reference", fix=fix)
    endpoint = connect(settings.endpoint)
    kind = ChatEngine if settings.engine == "chat" else CompletionsEngine
    kept = Journal(journal) if journal is not None else None
    fields = settings.endpoint.body
    engine = kind(endpoint, settings.endpoint.model, batch_size=batch_size, journal=kept, fields=fields)
    if settings.engine == "chat":
        if keywords.get("chat_template_kwargs"):
            fix = "give them to the server: --engine_body '{\"chat_template_kwargs\": …}'"
            raise ConfigError("engine chat leaves the template to the server", where="chat_template_kwargs", fix=fix)
        return Reviser(model, renderer=MessageRenderer(template_for(model, template)), engine=engine, **keywords)
    scorer = None
    if settings.served_reference:
        scorer = RatioScorer(engine.logps, CompletionsEngine(endpoint, settings.served_reference).logps)
    return Reviser(model, template=template, engine=engine, scorer=scorer, logps=engine.logps, **keywords)


def _vllm(
    settings: EngineSettings, model: str, reference: str | None, batch_size: int, base_model: str | None
) -> dict[str, Any]:
    from srpo.generate.vllm import VLLMEngine

    speculation, dtype = settings.speculation, settings.dtype
    engine = VLLMEngine(model, batch_size=batch_size, dtype=dtype, speculation=speculation, base_model=base_model)
    scorer = None
    if reference is not None:
        scorer = RatioScorer(engine.logps, VLLMEngine(reference, dtype=settings.dtype, speculation="none").logps)
    elif engine.has_adapter and training_record(model).get("reference") in (None, "adapter off"):
        scorer = RatioScorer(engine.logps, engine.base_logps)
    return {"engine": engine, "scorer": scorer, "logps": engine.logps}
