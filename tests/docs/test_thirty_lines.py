"""docs/thirty-lines.md: its blocks run, and its loss is the library's."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from srpo.maths.objective import SixLogps, srpo_loss

PAGE = Path(__file__).parents[2] / "docs" / "thirty-lines.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
ROWS = [
    ([2, 5, 6, 20], [7, 8, 1], [9, 1], [3, 4]),
    ([2, 10], [11, 1], [12, 13, 14, 1], [3, 4, 21]),
    ([2], [1], [15, 16, 1], [3]),
]


@pytest.fixture(scope="module")
def page() -> tuple[dict[str, Any], str]:
    """What the first block defines, and what it prints."""
    names: dict[str, Any] = {"__name__": "thirty_lines"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(BLOCKS[0], f"{PAGE.name}, first block", "exec"), names)
    return names, printed.getvalue()


def labelled_logp(model: LlamaForCausalLM, context: list[int], answer: list[int]) -> torch.Tensor:
    """Another way to the same number: transformers' own cross-entropy, masked to the answer, times its tokens."""
    labels = torch.tensor([[-100] * len(context) + answer])
    return -model(input_ids=torch.tensor([context + answer]), labels=labels).loss.double() * len(answer)


def labelled_six(model: LlamaForCausalLM, rows: list[tuple[list[int], ...]]) -> SixLogps:
    columns: dict[str, list[torch.Tensor]] = {field: [] for field in SixLogps._fields}
    for prompt, chosen, rejected, revise in rows:
        answers = {"w": chosen, "l": rejected}
        for field, column in columns.items():
            answer, _, draft = field.partition("_given_")
            context = prompt + answers[draft] + revise if draft else prompt
            column.append(labelled_logp(model, context, answers[answer]))
    return SixLogps(**{field: torch.stack(column) for field, column in columns.items()})


def test_the_block_has_thirty_lines() -> None:
    code = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) == 30
    assert max(map(len, code)) <= 120


def test_the_first_block_trains(page: tuple[dict[str, Any], str]) -> None:
    losses = [float(line.split()[1]) for line in page[1].splitlines()]
    assert len(losses) == 20
    assert losses[0] == 0.75
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_the_loss_equals_the_library_s(page: tuple[dict[str, Any], str], alpha: float) -> None:
    model, reference = page[0]["model"], page[0]["reference"]
    loss = page[0]["srpo_step_loss"](model, reference, ROWS, 0.2, alpha)
    policy, frozen = labelled_six(model, ROWS), labelled_six(reference, ROWS)
    assert (policy.w - frozen.w).abs().max() > 0.1  # trained: a loss at log-ratio 0 would compare nothing
    assert loss.item() == pytest.approx(srpo_loss(policy, frozen, beta=0.2, alpha=alpha).loss.item(), rel=1e-5)

    without_request = [(*row[:3], []) for row in ROWS]
    swapped = [(prompt, rejected, chosen, revise) for prompt, chosen, rejected, revise in ROWS]
    for wrong in (without_request, swapped):
        policy, frozen = labelled_six(model, wrong), labelled_six(reference, wrong)
        assert loss.item() != pytest.approx(srpo_loss(policy, frozen, beta=0.2, alpha=alpha).loss.item(), rel=1e-3)


def test_the_reference_never_moved(page: tuple[dict[str, Any], str]) -> None:
    torch.manual_seed(0)
    fresh = LlamaForCausalLM(page[0]["reference"].config)
    for ours, theirs in zip(fresh.parameters(), page[0]["reference"].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_skeleton_has_no_gradient_and_prints_the_reason(page: tuple[dict[str, Any], str]) -> None:
    assert len(BLOCKS) == 2
    names = dict(page[0])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(BLOCKS[1], f"{PAGE.name}, second block", "exec"), names)
    assert "does not require grad" in printed.getvalue()
    # Control: the block's own assertion fails once the pattern is mended.
    mended = BLOCKS[1].replace(".loss.detach()", ".loss")
    with pytest.raises(AssertionError):
        exec(compile(mended, "mended", "exec"), dict(page[0]))
