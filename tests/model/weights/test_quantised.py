"""Which quantisation a saved model records: that of weights quantised while they were loaded, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srpo.model.weights.quantised import QUANTISATION, quantisation_of
from tests.conftest import make_tiny_llama

FOUR = {"load_in_4bit": True, "quant_method": "bitsandbytes"}


@pytest.mark.parametrize("stored", [False, True])
def test_a_base_stored_in_four_bits_has_no_record(stored: bool, tmp_path: Path) -> None:
    model = make_tiny_llama()
    assert quantisation_of(model) == {}
    model.config.save_pretrained(tmp_path)
    if stored:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": FOUR}))
    model.config.name_or_path, model.config.quantization_config = str(tmp_path), FOUR
    assert quantisation_of(model) == ({} if stored else {QUANTISATION: FOUR})


def test_a_base_that_is_gone_is_taken_for_a_full_one() -> None:
    model = make_tiny_llama()
    model.config.name_or_path, model.config.quantization_config = "gone/base", FOUR
    assert quantisation_of(model) == {QUANTISATION: FOUR}
