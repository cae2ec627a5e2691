"""Adds terms to the objective's loss: log-probs of chosen answers, and balance of routed experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srpo.errors import ConfigError
from srpo.maths.objective import LossOutput, SixLogps, chosen_nll
from srpo.model.packed.sums import wide
from srpo.model.unwrap import core


def with_added_terms(
    output: LossOutput, summed: SixLogps, tokens_B: Tensor, nll_weight: float, balance: list[Tensor], *, drafts: bool
) -> LossOutput:
    """Adds two terms to the objective's loss of each pair, `output`, and returns the result.

    Args:
        summed: log-probs of the policy, nats, summed over tokens.
        tokens_B: number of tokens of each chosen answer.
        nll_weight: weight of the first term, −log π of the chosen answer per token; 0 adds nothing.
        balance: the second term, weighted losses that balance routed experts, from `balance_losses`; [] adds nothing.
        drafts: True if the objective reads drafts alone, so that the first term does, too.
    """
    per_pair = output.per_pair
    if nll_weight:
        per_pair = per_pair + nll_weight * chosen_nll(summed, tokens_B, drafts_only=drafts)
    if balance:
        per_pair = per_pair + torch.stack([wide(each) for each in balance]).mean()
    return output if per_pair is output.per_pair else replace(output, per_pair=per_pair)


class Balance(NamedTuple):
    """Settings of the loss that spreads tokens evenly over a model's routed experts.

    Attributes:
        weight: weight of the loss; 0 adds nothing.
        required: True if the user gave the weight, so that a model without the loss is an error.
    """

    weight: float
    required: bool = True


def balance_of(model: nn.Module, asked: float | None, *, padded: bool = False) -> Balance:
    """Returns the settings of the loss that spreads tokens evenly over a model's routed experts.

    Args:
        asked: the user's weight of the loss; None takes the weight in the model's configuration, or 0 for a model
            without routed experts.
        padded: True if batches are padded.

    Raises:
        ConfigError: a weight for a model that routes no tokens, or for padded batches, whose padding is routed too.
    """
    config = core(model).config.get_text_config()
    routes = hasattr(config, "output_router_logits")
    if asked and not routes:
        what = f"{asked:g}, but {type(core(model)).__name__} has no routed experts"
        raise ConfigError(what, where="router_aux_loss_coef", fix="leave it out")
    own = getattr(config, "router_aux_loss_coef", None) or 0.0
    weight = float(own if asked is None else asked) if routes else 0.0
    if padded and weight:
        what = "padded tokens would count in the loss that balances routed experts"
        fix = "leave it out, or set `--router_aux_loss_coef 0`"
        raise ConfigError(what, where="pad_to_multiple_of", fix=fix)
    return Balance(weight, required=asked is not None)


@contextmanager
def balance_losses(model: nn.Module, balance: Balance) -> Iterator[list[Tensor]]:
    """Inside this `with` block, each forward pass adds its weighted balance loss of routed experts to the yielded list.

    The loss is transformers' own (Switch Transformers, arXiv 2101.03961, Eq. 4 to 6) over the tokens of the pass: in a
    packed batch a shared token counts once. The list stays empty without gradients, with weight 0, and for a model
    whose code computes no such loss, unless the loss is required.

    Raises:
        ConfigError: the model returns no such loss, and it is required.
    """
    found: list[Tensor] = []
    if not balance.weight or not torch.is_grad_enabled():
        yield found
        return
    inner: Any = core(model)
    config, before = inner.config.get_text_config(), inner.config.get_text_config().output_router_logits

    def add(module: nn.Module, inputs: object, output: Any) -> None:
        if not torch.is_grad_enabled():  # a pass that only looks at the model's logits
            return
        loss = getattr(output, "aux_loss", None)
        if loss is not None:
            found.append(balance.weight * loss)
        elif balance.required:
            fix = "set it to 0 to train without that loss"
            where = "router_aux_loss_coef"
            raise ConfigError(f"{type(inner).__name__} returns no loss that balances experts", where=where, fix=fix)

    watch = inner.register_forward_hook(add)
    config.output_router_logits = True
    try:
        yield found
    finally:
        config.output_router_logits = before
        watch.remove()
