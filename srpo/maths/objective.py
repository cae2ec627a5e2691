"""The objectives: pure functions from six log-probs under policy and reference to a loss.

Equations follow arXiv 2406.01660 exactly as printed; w is the chosen answer, l the rejected one.

    g(a)   = log π(a|x)  − log π_ref(a|x)           a drafted after the prompt x
    h(a|b) = log π†(a|b,x) − log π_ref(a|b,x)       a as a revision of the draft b

One language model plays both roles by prompting, so both come from the same six sequences. α weights the improvement
term, as in Equations 2 and 17 and the appendix; Section 4.2.3 of the camera-ready prints it the other way round.

Axes: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SixLogps(NamedTuple):
    """Log-probs of a pair's six answers: six tensors [B pairs] in nats, summed over the tokens of each answer.

    `w` is the chosen answer as a draft, `l` the rejected one; `w_given_l` is log π†(w | l, x), the chosen answer as a
    revision of the rejected one. Objectives that draft only (DPO, IPO, SFT) need `w` and `l`; if only those are scored,
    the other four are nan, and so is any mean over them.

    Example:
        >>> import torch
        >>> six = SixLogps(*torch.zeros(6, 4))
        >>> six.w_given_l.shape
        torch.Size([4])
    """

    w: Tensor
    l: Tensor
    w_given_w: Tensor
    l_given_w: Tensor
    w_given_l: Tensor
    l_given_l: Tensor

    def minus(self, other: SixLogps) -> SixLogps:
        """Returns log-ratios to a reference's log-probs, [B] each in nats: g(w), g(l), h(w|w), h(l|w), h(w|l), h(l|l).

        g is the log-ratio of a draft, h(a|b) that of a as a revision of b.
        """
        return SixLogps(*(ours - theirs for ours, theirs in zip(self, other, strict=True)))

    def detach(self) -> SixLogps:
        """Returns a copy whose six tensors of log-probs are detached from the autograd graph."""
        return SixLogps(*(logps.detach() for logps in self))


@dataclass(frozen=True)
class LossOutput:
    """The loss of each pair of a batch of B pairs, and its drafting and revising terms.

    Attributes:
        per_pair: [B], the loss of each pair.
        generation: [B], each pair's drafting term (Eq. 16 for SRPO; the whole loss of DPO, IPO and SFT).
        improvement: [B], each pair's revising term (Eq. 15 for SRPO; the whole loss of the SFT reviser; else zero).
    """

    per_pair: Tensor
    generation: Tensor
    improvement: Tensor

    @property
    def loss(self) -> Tensor:
        """The scalar to minimise: the mean of the loss over the pairs of the batch."""
        return self.per_pair.mean()


def srpo_loss(policy: SixLogps, reference: SixLogps, *, beta: float, alpha: float) -> LossOutput:
    """Returns the SRPO loss of B pairs, which trains drafting and revising: Eq. 15, 16 and 17 of arXiv 2406.01660.

    Args:
        policy: log-probs of the six answers under the model in training; gradients flow through all six.
        reference: log-probs of the same answers under the frozen reference.
        beta: weight of the divergence from the reference, > 0.
        alpha: weight of the improvement term, in [0, 1]. The minimiser is unique for 0 < α < 1. At 0 the
            drafting policy is not identified; at 1 no gradient reaches a draft policy with parameters of its own.

    Example:
        >>> import torch
        >>> zero = SixLogps(*torch.zeros(6, 2))
        >>> srpo_loss(zero, zero, beta=0.1, alpha=0.5).loss
        tensor(0.7500)
    """
    g_w, g_l, h_ww, h_lw, h_wl, h_ll = policy.minus(reference)
    improvement_B = (0.5 - beta * (h_wl - h_ll)) ** 2 + (0.5 - beta * (h_ww - h_lw)) ** 2  # Eq. 15
    generation_B = (beta * (h_wl + g_w - h_lw - g_l) - 1.0) ** 2  # Eq. 16
    loss_B = (1.0 - alpha) * generation_B + alpha * improvement_B  # Eq. 17, whose mean over pairs is `loss`
    return LossOutput(loss_B, generation_B, improvement_B)


def dpo_loss(policy: SixLogps, reference: SixLogps, *, beta: float, alpha: float = 0.0) -> LossOutput:
    """Returns the DPO loss of B pairs (arXiv 2305.18290, Eq. 7), which reads the drafts w and l alone.

    `policy` and `reference` hold log-probs of the answers, `beta` weighs the divergence, `alpha` has no effect.

    Example:
        >>> import torch
        >>> zero = SixLogps(*torch.zeros(6, 2))
        >>> dpo_loss(zero, zero, beta=0.1).loss
        tensor(0.6931)
    """
    g_w, g_l, *_ = policy.minus(reference)
    loss_B = -F.logsigmoid(beta * (g_w - g_l))
    return LossOutput(loss_B, loss_B, torch.zeros_like(loss_B))


def ipo_loss(policy: SixLogps, reference: SixLogps, *, beta: float, alpha: float = 0.0) -> LossOutput:
    """Returns the IPO loss of B pairs (arXiv 2310.12036, Eq. 17 with τ = β), which reads the drafts w and l alone.

    `policy` and `reference` hold log-probs of the answers, `beta` weighs the divergence, `alpha` has no effect.

    Example:
        >>> import torch
        >>> zero = SixLogps(*torch.zeros(6, 2))
        >>> ipo_loss(zero, zero, beta=0.5).loss
        tensor(1.)
    """
    g_w, g_l, *_ = policy.minus(reference)
    loss_B = (g_w - g_l - 1.0 / (2.0 * beta)) ** 2
    return LossOutput(loss_B, loss_B, torch.zeros_like(loss_B))


def sft_loss(policy: SixLogps, reference: SixLogps, *, beta: float = 0.0, alpha: float = 0.0) -> LossOutput:
    """Returns the loss of supervised fine-tuning on the chosen answers, −log π(w|x) in nats; a control.

    `policy` holds log-probs of the answers; `reference`, `beta` and `alpha` have no effect.

    Example:
        >>> import torch
        >>> six = SixLogps(*torch.full((6, 2), -3.0))
        >>> sft_loss(six, six).loss
        tensor(3.)
    """
    loss_B = -policy.w
    return LossOutput(loss_B, loss_B, torch.zeros_like(loss_B))


def sft_reviser_loss(policy: SixLogps, reference: SixLogps, *, beta: float = 0.0, alpha: float = 0.0) -> LossOutput:
    """Returns the loss of supervised fine-tuning of revisions, −½ (log π†(w|l,x) + log π†(w|w,x)) in nats; a control.

    The model learns to write the chosen answer w after the rejected one l, and after w itself; drafts are not trained.
    `policy` holds log-probs of the answers; `reference`, `beta` and `alpha` have no effect.

    Example:
        >>> import torch
        >>> six = SixLogps(*torch.full((6, 2), -3.0))
        >>> sft_reviser_loss(six, six).loss
        tensor(3.)
    """
    loss_B = -0.5 * (policy.w_given_l + policy.w_given_w)
    return LossOutput(loss_B, torch.zeros_like(loss_B), loss_B)


def chosen_nll(policy: SixLogps, tokens_w: Tensor, *, drafts_only: bool) -> Tensor:
    """Returns the negative log-prob of each chosen answer per token, [B] in nats: an anchor against falling likelihood.

    A preference loss depends on differences alone, so it can lower both answers of a pair, most where the two are
    nearly equal (arXiv 2402.13228). A small multiple of this term, added to the loss, opposes that.

    Args:
        policy: log-probs summed over tokens.
        tokens_w: [B] number of tokens of the chosen answer, terminator included, ≥ 1.
        drafts_only: True takes log π(w|x) alone; False its mean with log π†(w|w,x) and log π†(w|l,x).
    """
    logps_B = policy.w if drafts_only else (policy.w + policy.w_given_w + policy.w_given_l) / 3
    return -logps_B / tokens_w


def length_averaged(six: SixLogps, tokens_w: Tensor, tokens_l: Tensor) -> SixLogps:
    """Returns the six log-probs divided by the number of answer tokens, as the paper does on UltraFeedback.

    Args:
        six: log-probs of the six answers, summed over their tokens, [B] each.
        tokens_w: [B] number of tokens of the chosen answer, terminator included, ≥ 1.
        tokens_l: [B] number of tokens of the rejected answer, terminator included, ≥ 1.
    """
    return SixLogps(
        six.w / tokens_w,
        six.l / tokens_l,
        six.w_given_w / tokens_w,
        six.l_given_w / tokens_l,
        six.w_given_l / tokens_w,
        six.l_given_l / tokens_l,
    )


@dataclass(frozen=True)
class Objective:
    """A loss function, and which of the six log-probs it needs; fields of `SixLogps` that it does not read may be nan.

    Attributes:
        loss: the function `(policy, reference, *, beta, alpha) -> LossOutput`.
        drafts_only: True if the loss reads only the fields `w` and `l`, not the revisions.
        compares: True if the loss compares the two answers; False for supervised controls.
    """

    loss: Callable[..., LossOutput]
    drafts_only: bool
    compares: bool = True


OBJECTIVES: Mapping[str, Objective] = {
    "srpo": Objective(srpo_loss, drafts_only=False),
    "dpo": Objective(dpo_loss, drafts_only=True),
    "ipo": Objective(ipo_loss, drafts_only=True),
    "sft": Objective(sft_loss, drafts_only=True, compares=False),
    "sft_reviser": Objective(sft_reviser_loss, drafts_only=False, compares=False),
}
