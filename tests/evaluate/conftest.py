"""Fixtures of tests that evaluate."""

from __future__ import annotations

import pytest


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes matplotlib write figures without drawing them, half the time of an evaluation; tests/report draws them."""
    monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda figure, renderer: None)
