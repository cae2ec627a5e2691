"""Chooses the class that loads a checkpoint: a causal language model, or the whole of a vision-language model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOWERS = ("vision_config", "audio_config")  # keys of a configuration for parts other than the language model
log = logging.getLogger("srpo")


def loader_for(config: PreTrainedConfig, *, text_only: bool = False) -> Any:
    """Returns the transformers class that loads a checkpoint with this configuration.

    A checkpoint with a vision or audio tower is loaded by the class in `architectures`. AutoModelForCausalLM has no
    class for some of these models, and for others it would drop the tower from every saved model.

    Args:
        text_only: True for the base of an adapter that was trained on AutoModelForCausalLM's class, which names weights
            in another way.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

    has_tower = any(getattr(config, name, None) is not None for name in TOWERS)
    text = text_only and type(config) in AutoModelForCausalLM._model_mapping
    if text or not has_tower or config.is_encoder_decoder or getattr(config, "auto_map", None):
        return AutoModelForCausalLM
    named = (getattr(config, "architectures", None) or [""])[0]
    found = getattr(transformers, named, None) if named.isidentifier() else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def outside_language(model: PreTrainedModel) -> list[str]:
    """Returns the names of the modules outside the language model and its head, such as a vision tower.

    Of nested modules only the outermost is named. A model of text gives [].
    """
    if not any(getattr(model.config, name, None) is not None for name in TOWERS):
        return []
    decoder = model.get_decoder()
    kept = [each for each in (decoder, model.get_input_embeddings(), model.get_output_embeddings()) if each is not None]
    inside = {id(module) for part in kept for module in part.modules()}
    around = {id(m) for m in model.modules() if any(id(each) in inside for each in m.modules())}
    names: list[str] = []
    for name, module in model.named_modules():
        if id(module) not in around and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return names


def freeze_towers(model: PreTrainedModel) -> None:
    """Freezes the parameters outside the language model, such as a vision tower's, so that training leaves them."""
    if not any(getattr(model.config, name, None) is not None for name in TOWERS):
        return
    decoder = model.get_decoder()
    if decoder is None or decoder is model:
        return
    parts = [decoder, model.get_input_embeddings(), model.get_output_embeddings()]
    text = {id(p) for part in parts if part is not None for p in part.parameters()}
    frozen = [p.requires_grad_(False) for p in model.parameters() if id(p) not in text]
    if frozen:
        message = "srpo: %s: %d weights outside the language model are kept and not trained"
        log.info(message, type(model).__name__, len(frozen))
