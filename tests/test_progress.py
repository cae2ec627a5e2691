"""A bar on a terminal, lines elsewhere, nothing where nobody asked; messages stand above the bar, whole."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from srpo import progress
from srpo.cli.output import show_progress
from srpo.progress import Progress
from srpo.secrets import Redacting


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Standard error of the command line on a terminal, the log with it."""
    stream, root = Terminal(), logging.getLogger()
    with pytest.MonkeyPatch.context() as patch:  # in the test itself: pytest has handlers and streams of its own
        patch.setattr(sys, "stderr", Redacting(stream))
        patch.setenv("TERM", "xterm")
        patch.setattr(root, "handlers", [])
        patch.setattr(root, "level", root.level)
        show_progress()
        yield stream


def test_a_bar_on_a_terminal_and_messages_above_it() -> None:
    with terminal() as stream, Progress("prompts", 4, done=1) as under_way:
        under_way.step()
        logging.getLogger("srpo").warning("srpo: something about a prompt")
        under_way.step()
        under_way.step()
    shown = stream.getvalue()
    assert "prompts" in shown
    assert "4/4" in shown
    assert "\nsrpo: something about a prompt\n" in shown.replace("\r", "\n").replace("\x1b[2K", "")
    assert "srpo: 4 of 4" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back


def interrupted() -> None:
    with Progress("prompts", 4) as under_way:
        under_way.step()
        raise KeyboardInterrupt


def test_a_bar_is_taken_away_by_ctrl_c() -> None:
    with terminal() as stream, pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_lines_elsewhere(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])  # without handlers of other tests
    with caplog.at_level(logging.INFO, "srpo"), Progress("prompts", 250, done=40) as under_way:
        for _ in range(210):
            under_way.step()
    assert caplog.messages == ["srpo: 250 of 250 prompts"]
    assert capsys.readouterr().err == ""


def test_slow_work_is_never_silent(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(caplog.handler, "emit", lambda record: (lines.append(record.getMessage()), heard.set()))
    lines: list[str] = []
    with caplog.at_level(logging.INFO, "srpo"), Progress("prompts", 9):
        assert heard.wait(30)  # a line without any step
    assert lines[0] == "srpo: 0 of 9 prompts, 0 s"
    heard.clear()
    with caplog.at_level(logging.INFO, "srpo"), Progress("reading the weights of my-model"):
        assert heard.wait(30)
    assert lines[-1] == "srpo: reading the weights of my-model, 0 s"


def test_a_line_has_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    under_way = Progress("prompts", 90, done=10)
    with under_way:
        now[0] += 8
        under_way.step(4, note="1 failed")
        assert under_way.line() == "14 of 90 prompts, 2.0 s each, 2 min 32 s left, 1 failed"
        now[0] += 2
        under_way.step(36)
        assert under_way.line() == "50 of 90 prompts, 4.0 a second, 10 s left, 1 failed"


@pytest.mark.parametrize("done", [0, 3])
def test_a_signal_before_or_after_the_work(done: int) -> None:
    with terminal() as stream:
        if done == 0:
            logging.getLogger().setLevel(logging.WARNING)
        with Progress("prompts", 3, done) as under_way:
            if done == 0:
                under_way.step()
        assert stream.getvalue() == ""
