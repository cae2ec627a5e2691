"""The dtype of a frozen base: chosen by the device's instructions, and never against the user."""

from __future__ import annotations

import pytest
import torch

from srpo.model.weights.precision import base_dtype, has_fast_bfloat16


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [({"avx512_f": True, "avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"arm_bf16": True}, True)],
)
def test_a_processor_by_its_instructions(
    instructions: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert has_fast_bfloat16("cpu") == fast
    dtype, sentence = base_dtype("", adapter=True, device="cpu")
    assert dtype == ("bfloat16" if fast else "float32")
    assert ("--dtype float32" if fast else "--dtype bfloat16") in sentence  # the other choice and its cost
    # Control: weights in training are never rounded, and a given dtype is kept.
    assert base_dtype("", adapter=False, device="cpu")[0] == "float32"
    for asked in ("float16", "float32", "auto"):
        assert base_dtype(asked, adapter=True, device="cpu") == (asked, f"weights in {asked}, as given")


def test_an_older_torch_without_a_list_of_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_fast_bfloat16("cpu")
    assert not has_fast_bfloat16("mps")
