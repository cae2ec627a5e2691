"""p-values against full enumeration, Holm's correction by hand, the smallest detectable difference by simulation."""

from __future__ import annotations

import itertools

import pytest
import torch

from srpo.errors import ConfigError
from srpo.statistics.bootstrap import bootstrap
from srpo.statistics.significance import holm, sign_flip_p, smallest_detectable


def every_sign(differences: list[float]) -> float:
    """The exact p-value: all 2^N assignments."""
    seen, far = abs(sum(differences)), 0
    for signs in itertools.product((-1, 1), repeat=len(differences)):
        far += abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen - 1e-12
    return far / 2 ** len(differences)


@pytest.mark.parametrize(
    "differences",
    [[0.3, -0.1, 0.2, 0.4, 0.0, 0.1, -0.2, 0.5], [1.0, 1.0, 1.0, 0.0, 0.0, -1.0], [0.5] * 9, [0.0] * 5],
)
def test_p_values_equal_full_enumeration_of_signs(differences: list[float]) -> None:
    ours = sign_flip_p(torch.tensor(differences, dtype=torch.float64)[:, None], draws=40_000)[0]
    assert ours == pytest.approx(every_sign(differences), abs=0.008)


def test_false_positives_occur_at_the_nominal_rate() -> None:
    # 2,000 experiments without a difference: 5 % of p-values below 5 %, within four standard errors (0.5 points each).
    noise_NM = torch.randint(3, (200, 2000), generator=torch.Generator().manual_seed(1)).double() - 1
    found = sum(p <= 0.05 for p in sign_flip_p(noise_NM, draws=2000)) / 2000
    assert 0.03 <= found <= 0.07
    # Control: a difference is found.
    assert sum(p <= 0.05 for p in sign_flip_p(noise_NM + 0.2, draws=2000)) / 2000 > 0.8


def test_holm_by_hand() -> None:
    assert holm([0.005, 0.011, 0.02, 0.04]) == pytest.approx([0.02, 0.033, 0.04, 0.04])
    assert holm([0.04, 0.005, 0.02, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    noise_NM = torch.randn(100, 5 * 600, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p_values = sign_flip_p(noise_NM, draws=1000)
    families = [p_values[i : i + 5] for i in range(0, len(p_values), 5)]
    assert sum(min(holm(family)) <= 0.05 for family in families) / 600 <= 0.08
    # Control: unadjusted, a family of five finds something nearly one time in four.
    assert sum(min(family) <= 0.05 for family in families) / 600 > 0.15


def test_the_smallest_detectable_difference_is_detected_with_power_80_percent() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, experiments = 500, 2000
    noise_NM = torch.randint(3, (rows, experiments), generator=generator).double() - 1
    size = smallest_detectable(noise_NM[:, 0])

    def seen(shift: float) -> float:
        return float((bootstrap(noise_NM + shift, draws=1000).low > 0).double().mean())

    assert seen(size) == pytest.approx(0.8, abs=0.05)
    assert seen(size / 2) < 0.4  # control


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompts, columns"):
        sign_flip_p(torch.zeros(3))
    with pytest.raises(ConfigError, match="at least two"):
        smallest_detectable(torch.zeros(1))
    with pytest.raises(ConfigError, match="power"):
        smallest_detectable(torch.zeros(4), power=1.0)
