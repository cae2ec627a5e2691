"""Loads the policy of a run with its adapter, and a reference that is given by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from srpo.errors import ConfigError
from srpo.model.weights.architecture import outside_language
from srpo.model.weights.load import load_model, load_processor, load_tokenizer
from srpo.sequences.render import Renderer, template_for
from srpo.train.adapters import expect_trainable, keep_gradients
from srpo.train.config import SRPOConfig
from srpo.train.first_steps import train_in_float32

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger("srpo")


def name_of(model: str | nn.Module) -> str:
    """Returns the path or hub name of a model; "" for a model made in memory."""
    return model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or ""


def load_reference(ref_model: str | nn.Module | None, args: SRPOConfig) -> nn.Module | None:
    """Returns the user's reference model, loaded with the policy's options if it is given by name; None for None.

    Raises:
        ConfigError: its weights are split over processes, by tensor parallelism for example.
    """
    if ref_model is None:
        return None
    if isinstance(ref_model, nn.Module):
        _expect_whole(ref_model, "ref_model")
        return ref_model
    own = ("revision", "base_model")  # options that belong to the policy only
    options = {key: value for key, value in args.loading_options().items() if key not in own}
    reference: nn.Module = load_model(ref_model, trust_remote_code=args.trust_remote_code, **options)
    _expect_whole(reference, "ref_model")
    return reference


def renderer_for(given: Any, model: str, where: Mapping[str, Any], args: SRPOConfig) -> tuple[Any, Renderer]:
    """Returns the tokenizer or processor of a run, and the renderer of its prompts.

    A processor of pictures that is not given is loaded at the first picture.

    Args:
        given: a tokenizer, or a processor of pictures and text; None loads the tokenizer of `model`.
        model: path or hub name of the model; "" for a model in memory.
        where: keywords of `load_tokenizer`, such as the revision.
    """
    given = given or load_tokenizer(model, **where)
    sees = hasattr(given, "image_processor")
    tokenizer = given.tokenizer if sees else given
    if sees and tokenizer.chat_template is None:
        tokenizer.chat_template = given.chat_template
    processor = given if sees else partial(load_processor, model, **where) if model else None
    return given, Renderer(
        tokenizer,
        template_for(model, args.revision_template),
        chat_template_kwargs=args.chat_template_kwargs,
        no_chat_template=args.no_chat_template,
        processor=processor,
    )


def _leave_out_towers(policy: Any, config: Any) -> None:
    """Sets an adapter's configuration to leave out modules outside the language model, such as a vision tower.

    Does nothing if the user has chosen modules to leave out.
    """
    towers = outside_language(policy)
    if towers and getattr(config, "exclude_modules", "") is None:
        config.exclude_modules = rf"({'|'.join(map(re.escape, towers))})(\..*)?"
        log.info("srpo: the adapter is inside the language model; frozen without one: %s", ", ".join(towers))


def _fused_experts(model: nn.Module) -> list[str]:
    """Names, from the layer on, of experts' weights that are one parameter for all experts and have no adapter.

    Experts among `modules_to_save`, which are trained without an adapter, are left out. An adapter of one parameter
    wraps the module that holds it, so the wrapper's other parameters have no adapter.
    """
    from peft.tuners.lora.layer import ParamWrapper

    wrappers = ((name, module) for name, module in model.named_modules() if isinstance(module, ParamWrapper))
    adapted = {_unwrapped(f"{name}.{wrapper.parameter_name}") for name, wrapper in wrappers}
    fused = [_unwrapped(name) for name, p in model.named_parameters() if p.ndim == 3]
    saved = {"original_module", "modules_to_save"}  # peft's names of the two copies of such a module
    without = [each for each in fused if "experts" in each[1:] and each not in adapted and not saved & set(each)]
    return list(dict.fromkeys(".".join(parts[parts.index("experts") - 1 :]) for parts in without))


def _unwrapped(name: str) -> tuple[str, ...]:
    """The parts of a weight's name without the levels that peft's wrappers put in."""
    return tuple(part for part in name.split(".") if part != "base_layer")


def _expect_whole(model: nn.Module, where: str) -> None:
    """Checks that a model given as the argument `where` holds its weights whole, as the trainer splits them itself.

    Raises:
        ConfigError: weights are split over processes.
    """
    if any(hasattr(p, "_local_tensor") for p in model.parameters()):
        fix = "pass it whole, without tp_plan, distributed_config or fully_shard; `--launch fsdp2` splits it"
        raise ConfigError("its weights are split over processes already", where=where, fix=fix)


def load_policy(
    model: str | nn.Module, args: SRPOConfig, quantization_config: object, peft_config: PeftConfig | None
) -> Any:
    """Returns the model to train, loaded if it is given by name, and with a new adapter if `peft_config` is not None.

    Args:
        quantization_config: settings to quantise a model that is given by name; None does not quantise.

    Raises:
        ConfigError: a second adapter, quantised weights without an adapter, no trainable weight, or weights that
            are split over processes, by tensor parallelism for example.
    """
    policy: Any = model
    if isinstance(model, str):
        options = dict(args.loading_options())
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        expect_trainable(model, options, peft_config)
        policy = load_model(model, trust_remote_code=args.trust_remote_code, trainable=peft_config is None, **options)
    expect_trainable(policy, {}, peft_config)
    _expect_whole(policy, "model")  # before the reference would copy them
    keep_gradients(policy)
    if peft_config is not None:
        if hasattr(policy, "peft_config"):
            fix = "merge the adapter first, or leave peft_config out to continue training it"
            raise ConfigError("the model already has an adapter", where="peft_config", fix=fix)
        from peft import get_peft_model

        peft_config = deepcopy(peft_config)  # what follows, and peft, would write into the caller's
        _leave_out_towers(policy, peft_config)
        named = vars(peft_config).get("target_parameters") or []  # peft adds the experts that it knows to this list
        every_linear = getattr(peft_config, "target_modules", None) == "all-linear"
        if args.disable_dropout and _fused_experts(policy) and vars(peft_config).get("lora_dropout"):
            vars(peft_config)["lora_dropout"] = 0.0  # peft refuses any other number for an adapter of such experts
        try:
            policy = get_peft_model(policy, peft_config)
        except ValueError as error:  # unknown target modules, for example
            raise ConfigError(str(error).split("\n")[0], where="peft_config") from None
        if every_linear and (experts := _fused_experts(policy)):
            message = (
                "srpo: all-linear gives these experts no adapter: %s; to train them, use --lora_target_parameters %s"
            )
            log.warning(message, ", ".join(experts), " ".join([*named, *experts]))
    if not any(p.requires_grad for p in policy.parameters()):
        raise ConfigError("no weight is trainable", where="model", fix="unfreeze weights, or pass a peft_config")
    train_in_float32(policy)
    return policy
