"""docs/thirty-lines.md and SRPOTrainer are the same method: equal losses and equal gradients on the same rows."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import RevisionTemplate
from tests.conftest import EOS
from tests.train.plain import ROWS, ids_of, logged, sharp_llama, trainer, weights_of

PAGE = Path(__file__).parents[2] / "docs" / "thirty-lines.md"
ASK = " Revise: "
FOUR = ROWS[:4]


@pytest.fixture(scope="module")
def step_loss() -> Any:
    """The page's `srpo_step_loss`."""
    block = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    names: dict[str, Any] = {"__name__": "thirty_lines"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block, PAGE.name, "exec"), names)
    return names["srpo_step_loss"]


@pytest.fixture
def template(tmp_path: Path) -> str:
    """The page's layout as a revision template: the draft, its end, the request."""
    RevisionTemplate("page", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}<eos>" + ASK).save(tmp_path)
    return str(tmp_path)


def page_rows() -> list[tuple[list[int], ...]]:
    """The rows as the page has them: prompt, chosen, rejected, request; answers with their terminator."""
    return [
        (ids_of(row["prompt"]), [*ids_of(row["chosen"]), EOS], [*ids_of(row["rejected"]), EOS], ids_of(ASK))
        for row in FOUR
    ]


@pytest.mark.parametrize("backend", ["path", "flat"])
@pytest.mark.parametrize("alpha", [0.25, 0.8])
def test_one_step_is_the_same(step_loss: Any, template: str, backend: str, alpha: float, tmp_path: Path) -> None:
    args = {
        "backend": backend,
        "alpha": alpha,
        "revision_template": template,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    run = trainer(tmp_path / "run", FOUR, ref_model=sharp_llama(1), args=args)
    run.train()

    model, reference = sharp_llama(0), sharp_llama(1)
    loss = step_loss(model, reference, page_rows(), beta=0.1, alpha=alpha)
    loss.backward()
    assert logged(run, "loss") == [pytest.approx(loss.item(), rel=1e-5)]
    stepped = weights_of(run.model)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(stepped[name], (weight - 0.1 * weight.grad).detach(), rtol=1e-4, atol=1e-5, msg=name)


def test_control_another_layout_is_another_loss(step_loss: Any, template: str, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", FOUR, ref_model=sharp_llama(1), args={"revision_template": template})
    run.train()
    unended = [(x, w, l, [*ids_of("\n"), *ask]) for x, w, l, ask in page_rows()]
    loss = step_loss(sharp_llama(0), sharp_llama(1), unended, beta=0.1, alpha=0.3)
    assert logged(run, "loss") != [pytest.approx(loss.item(), rel=1e-3)]
