"""The losses: pencil values, pencil gradients, finite differences, and a second, plain implementation."""

from __future__ import annotations

import math

import pytest
import torch

from srpo.maths.objective import (
    OBJECTIVES,
    SixLogps,
    chosen_nll,
    dpo_loss,
    ipo_loss,
    length_averaged,
    sft_loss,
    sft_reviser_loss,
    srpo_loss,
)

REFERENCE = {"w": -5.0, "l": -6.0, "w_given_w": -2.0, "l_given_w": -7.0, "w_given_l": -4.0, "l_given_l": -3.0}
# Log-ratios chosen to tell the fields apart: g(w)=1, g(l)=-1, h(w|w)=2, h(l|w)=-2, h(w|l)=3, h(l|l)=1.
RATIOS = {"w": 1.0, "l": -1.0, "w_given_w": 2.0, "l_given_w": -2.0, "w_given_l": 3.0, "l_given_l": 1.0}
FIELDS = SixLogps._fields


def six(numbers: dict[str, float], *, grad: bool = False) -> SixLogps:
    return SixLogps(
        **{field: torch.tensor([numbers[field]], dtype=torch.float64, requires_grad=grad) for field in FIELDS}
    )


def shifted(ratios: dict[str, float]) -> dict[str, float]:
    return {field: REFERENCE[field] + ratios[field] for field in FIELDS}


def gradients(loss: torch.Tensor, policy: SixLogps) -> dict[str, float]:
    values = torch.autograd.grad(loss, list(policy), allow_unused=True)
    return {field: 0.0 if g is None else float(g) for field, g in zip(FIELDS, values, strict=True)}


def random_six(seed: int, pairs: int = 4) -> tuple[SixLogps, SixLogps]:
    source = torch.Generator().manual_seed(seed)
    policy, reference = -20 * torch.rand(2, 6, pairs, generator=source, dtype=torch.float64)
    return SixLogps(*policy), SixLogps(*reference)


def from_the_page(policy: SixLogps, reference: SixLogps, beta: float, alpha: float) -> float:
    """Eq. 15 to 17 pair by pair in Python floats, by field name: the plain second implementation."""
    total = 0.0
    for i in range(len(policy.w)):
        r = {field: float(getattr(policy, field)[i]) - float(getattr(reference, field)[i]) for field in FIELDS}
        improve = (0.5 - beta * (r["w_given_l"] - r["l_given_l"])) ** 2
        improve += (0.5 - beta * (r["w_given_w"] - r["l_given_w"])) ** 2
        generate = (beta * (r["w_given_l"] + r["w"] - r["l_given_w"] - r["l"]) - 1) ** 2
        total += (1 - alpha) * generate + alpha * improve
    return total / len(policy.w)


# β = ½. Eq. 16: ½(3 + 1 + 2 + 1) − 1 = 2.5, squared 6.25.
# Eq. 15: ½ − ½(3 − 1) = −½, squared ¼; ½ − ½(2 + 2) = −1.5, squared 2.25; together 2.5.
@pytest.mark.parametrize(
    ("alpha", "loss"),
    [(0.0, 6.25), (0.25, 0.75 * 6.25 + 0.25 * 2.5), (0.5, 4.375), (1.0, 2.5)],
)
def test_srpo_by_hand(alpha: float, loss: float) -> None:
    out = srpo_loss(six(shifted(RATIOS)), six(REFERENCE), beta=0.5, alpha=alpha)
    assert out.generation.tolist() == [6.25]
    assert out.improvement.tolist() == [2.5]
    assert float(out.loss) == loss


def test_srpo_gradients_by_hand() -> None:
    # Eq. 16: 2 · 2.5 · β = 2.5 towards w and w|l, −2.5 towards l and l|w; times 1 − α = ¾: 1.875.
    # Eq. 15, first term: 2 · (−½) · (−β) = ½ towards w|l, −½ towards l|l; times α = ¼: 0.125.
    # Eq. 15, second:     2 · (−1.5) · (−β) = 1.5 towards w|w, −1.5 towards l|w; times ¼: 0.375.
    policy = six(shifted(RATIOS), grad=True)
    loss = srpo_loss(policy, six(REFERENCE), beta=0.5, alpha=0.25).loss
    assert gradients(loss, policy) == {
        "w": 1.875,
        "l": -1.875,
        "w_given_w": 0.375,
        "l_given_w": -1.875 - 0.375,
        "w_given_l": 1.875 + 0.125,
        "l_given_l": -0.125,
    }


def test_srpo_at_the_reference() -> None:
    # All log-ratios are 0: Eq. 16 is (−1)² = 1, Eq. 15 is ¼ + ¼. With α = ½: ½ + ¼.
    out = srpo_loss(six(REFERENCE), six(REFERENCE), beta=0.01, alpha=0.5)
    assert float(out.loss) == 0.75


def test_the_mean_is_over_pairs() -> None:
    # The pair worked above (α = ½: 4.375) and one at the reference (0.75).
    both = (six(shifted(RATIOS)), six(REFERENCE))
    policy = SixLogps(*(torch.cat(pair) for pair in zip(*both, strict=True)))
    reference = SixLogps(*(torch.cat([ref, ref]) for ref in six(REFERENCE)))
    assert float(srpo_loss(policy, reference, beta=0.5, alpha=0.5).loss) == (4.375 + 0.75) / 2


def test_dpo_by_hand() -> None:
    # β(g(w) − g(l)) = ½ · 2 = 1. Loss −ln σ(1) = ln(1 + 1/e); gradient −β σ(−1) = −½ / (1 + e) towards w.
    policy = six(shifted(RATIOS), grad=True)
    out = dpo_loss(policy, six(REFERENCE), beta=0.5)
    assert out.loss.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-15)
    assert out.improvement.tolist() == [0.0]
    slope = 0.5 / (1 + math.e)
    expected = dict.fromkeys(FIELDS, 0.0) | {"w": -slope, "l": slope}
    assert gradients(out.loss, policy) == pytest.approx(expected, abs=1e-15)


def test_ipo_by_hand() -> None:
    # g(w) − g(l) − 1/(2β) = 2 − 1 = 1, squared 1; gradient 2 · 1 towards w.
    policy = six(shifted(RATIOS), grad=True)
    out = ipo_loss(policy, six(REFERENCE), beta=0.5)
    assert out.loss.item() == 1.0
    assert out.improvement.tolist() == [0.0]
    assert gradients(out.loss, policy) == dict.fromkeys(FIELDS, 0.0) | {"w": 2.0, "l": -2.0}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_srpo_equals_the_page(seed: int, alpha: float) -> None:
    policy, reference = random_six(seed)
    loss = float(srpo_loss(policy, reference, beta=0.1, alpha=alpha).loss)
    assert loss == pytest.approx(from_the_page(policy, reference, 0.1, alpha), rel=1e-12)
    # Control: reading α the other way round is seen wherever it makes a difference.
    if alpha != 0.5:
        assert loss != pytest.approx(from_the_page(policy, reference, 0.1, 1 - alpha), rel=1e-3)


@pytest.mark.parametrize("field", FIELDS)
def test_the_page_notices_a_misplaced_field(field: str) -> None:
    policy, reference = random_six(0)
    wrong = policy._replace(**{field: getattr(policy, field) + 1.0})
    loss = float(srpo_loss(policy, reference, beta=0.1, alpha=0.5).loss)
    assert loss != pytest.approx(from_the_page(wrong, reference, 0.1, 0.5), rel=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name: str) -> None:
    policy, reference = random_six(1)
    policy = SixLogps(*(logps.requires_grad_() for logps in policy))

    def loss(*fields: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = OBJECTIVES[name].loss(SixLogps(*fields), reference, beta=0.2, alpha=0.3).loss
        return out

    assert torch.autograd.gradcheck(loss, tuple(policy), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_reaches_the_fields_an_objective_reads(name: str) -> None:
    policy, reference = random_six(2)
    policy = SixLogps(*(logps.requires_grad_() for logps in policy))
    out = OBJECTIVES[name].loss(policy, reference, beta=0.2, alpha=0.5).loss
    reached = {
        field
        for field, g in zip(FIELDS, torch.autograd.grad(out, list(policy), allow_unused=True), strict=True)
        if g is not None and bool((g != 0).all())
    }
    read = {"srpo": {*FIELDS}, "dpo": {"w", "l"}, "ipo": {"w", "l"}, "sft": {"w"}}
    assert reached == {**read, "sft_reviser": {"w_given_l", "w_given_w"}}[name]
    assert OBJECTIVES[name].drafts_only == (reached <= {"w", "l"})


def test_supervised_controls_by_hand() -> None:
    # −log π(w) is 4; −½ (log π†(w|l) + log π†(w|w)) is ½ (1 + 0), whatever β, α and the reference.
    numbers = shifted(RATIOS)
    policy = six(numbers, grad=True)
    for reference in (six(REFERENCE), six(dict.fromkeys(FIELDS, -1.0))):
        drafts, revisions = (loss(policy, reference, beta=3.0, alpha=0.2) for loss in (sft_loss, sft_reviser_loss))
        assert (drafts.loss.item(), revisions.loss.item()) == (4.0, 0.5)
    assert gradients(drafts.loss, policy) == dict.fromkeys(FIELDS, 0.0) | {"w": -1.0}
    both = {"w_given_l": -0.5, "w_given_w": -0.5}
    assert gradients(revisions.loss, policy) == dict.fromkeys(FIELDS, 0.0) | both


def test_the_anchor_by_hand() -> None:
    # w: −4, w|w: 0, w|l: −1; two tokens. Drafts alone: 4 / 2. All three: 5 / 3 / 2.
    policy, tokens = six(shifted(RATIOS)), torch.tensor([2.0])
    assert float(chosen_nll(policy, tokens, drafts_only=True)) == 2.0
    assert float(chosen_nll(policy, tokens, drafts_only=False)) == pytest.approx(5 / 6)
    # Control: a preference loss does not see both answers of a pair fall by the same amount; the anchor does.
    fallen = policy._replace(w=policy.w - 3, l=policy.l - 3)
    assert float(dpo_loss(fallen, six(REFERENCE), beta=0.5).loss) == float(
        dpo_loss(policy, six(REFERENCE), beta=0.5).loss
    )
    assert float(chosen_nll(fallen, tokens, drafts_only=True)) == 3.5


@pytest.mark.parametrize("name", ["dpo", "ipo", "sft"])
def test_drafts_only_objectives_never_look_at_revisions(name: str) -> None:
    policy, reference = random_six(3)
    nan = torch.full_like(policy.w, torch.nan)
    unscored = {field: nan for field in FIELDS if field not in ("w", "l")}
    full, drafts = (
        OBJECTIVES[name].loss(policy._replace(**gap), reference._replace(**gap), beta=0.2, alpha=0.5).loss
        for gap in ({}, unscored)
    )
    assert float(full) == float(drafts)


def test_srpo_with_an_unscored_revision_is_nan() -> None:
    policy, reference = random_six(3)
    nan = torch.full_like(policy.w, torch.nan)
    assert srpo_loss(policy._replace(w_given_l=nan), reference, beta=0.2, alpha=0.5).loss.isnan()


def test_length_averaged_divides_each_answer_by_its_own_length() -> None:
    tokens_w, tokens_l = torch.tensor([2.0]), torch.tensor([4.0])
    mean = length_averaged(six(dict.fromkeys(FIELDS, -8.0)), tokens_w, tokens_l)
    assert {field: float(getattr(mean, field)) for field in FIELDS} == {
        "w": -4.0,
        "l": -2.0,
        "w_given_w": -4.0,
        "l_given_w": -2.0,
        "w_given_l": -4.0,
        "l_given_l": -2.0,
    }
