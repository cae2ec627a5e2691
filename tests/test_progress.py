"""A bar on a terminal, lines elsewhere, nothing where nobody asked; messages stand above the bar, whole."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from srpo import progress
from srpo.cli.output import show_progress
from srpo.progress import Forecast, Progress, counted, peak_memory, remark, remark_detail
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
    for name in ("FIRST", "EVERY"):
        monkeypatch.setattr(progress, name, 600.0)  # a busy machine may take the seconds to the first line
    with caplog.at_level(logging.INFO, "srpo"), Progress("prompts", 250, done=40) as under_way:
        for _ in range(210):
            under_way.step()
    assert caplog.messages == ["srpo: 250 of 250 prompts"]
    assert capsys.readouterr().err == ""


def test_slow_work_is_never_silent(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "monotonic", lambda: 100.0)  # a busy machine may take seconds to the first line
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


def test_the_rate_is_that_of_completed_items_and_the_time_left_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    with Progress("steps", 3) as under_way:
        now[0] += 10
        under_way.step()
        assert under_way.line() == "1 of 3 steps, 10.0 s each, 20 s left"
        now[0] += 9
        remark("confidence")
        remark_detail("3 of 9 tokens")
        assert under_way.line() == "1 of 3 steps, 10.0 s each, 11 s left, confidence, 3 of 9 tokens"
        now[0] += 30
        remark("another note")
        assert under_way.line() == "1 of 3 steps, 10.0 s each, 0 s left, another note"


def test_the_cost_of_long_work_is_announced_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 11, 28, 12, 0)

    monkeypatch.setattr(progress, "datetime", Noon)
    monkeypatch.setattr(progress, "peak_memory", lambda: 2_140_000_000)
    with caplog.at_level(logging.INFO, "srpo"):
        with Forecast("16 prompts, 3 answers each", 48, "answers") as outer:
            with Forecast("8 prompts", 8, "answers") as inner, Forecast("5 steps", 5, "steps") as steps:
                steps.timed(1, 600.0)  # of another kind than the outermost
                inner.timed(0, 9.0)
                assert caplog.messages == []
                inner.timed(8, 12.3)
            outer.timed(8, 99.0)
        with Forecast("", 3, "steps", "two saves") as forecast:
            forecast.timed(1, 86_400.0)
        with Forecast("short work", 3, "steps") as forecast:
            forecast.timed(1, 4.9)
    assert caplog.messages == [
        "srpo: 16 prompts, 3 answers each",
        "srpo: the first 8 of 48 answers took 12.3 s, 1.5 s each; 2.1 GB of memory so far",
        "srpo: about 1 min 2 s more, until 12:01",
        "srpo: the first of 3 steps took 86400.0 s; 2.1 GB of memory so far",
        "srpo: about 48 h 0 min more, until Mon 12:00; two saves come on top",
    ]
    assert progress._forecasts == []


# seconds at which the items come → items and seconds that the cost is computed from
ARRIVALS = {
    "one by one": ([3, 6, 9], [(1, 3)]),
    "batches of two": ([3, 3, 6, 6], [(2, 3)]),
    "without a pause": ([1 + i / 4 for i in range(20)], [(17, 5.25)]),
    "all at once": ([9, 9, 9], []),
}


@pytest.mark.parametrize("name", ARRIVALS)
def test_items_in_batches_are_timed_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (times, expected), now = ARRIVALS[name], [0.0]
    timed: list[tuple[int, float]] = []

    def announce(self: Forecast, count: int, seconds: float) -> None:
        timed.append((count, seconds))

    def items() -> Iterator[int]:
        for now[0] in times:
            yield 0

    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "EVERY", 4.0)
    monkeypatch.setattr(Forecast, "timed", announce)
    assert len(list(counted(items(), "verdicts", len(times)))) == len(times)
    assert timed[:1] == expected


def test_the_memory_is_that_of_the_process() -> None:
    before = peak_memory()
    block = bytearray(b"1") * 300_000_000
    assert peak_memory() >= max(before, len(block))


@pytest.mark.parametrize("done", [0, 3])
def test_a_signal_before_or_after_the_work(done: int) -> None:
    with terminal() as stream:
        if done == 0:
            logging.getLogger("srpo").setLevel(logging.WARNING)
        with Progress("prompts", 3, done) as under_way:
            if done == 0:
                under_way.step()
        assert stream.getvalue() == ""


def test_inner_work_takes_the_display_over_and_hands_it_back(caplog: pytest.LogCaptureFixture) -> None:
    with terminal() as stream:
        with Progress("prompts", 2) as prompts:
            with Progress("reading the weights"):
                prompts.step()  # counts, and shows nothing
            remark("drafts: 1 of 2 answers")
            prompts.step()
        text = stream.getvalue()
    assert text.index("0/2") < text.index("reading the weights") < text.index("1/2") < text.index("2/2")
    assert "drafts: 1 of 2 answers" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 3  # one display at a time
    assert progress._under_way == []


def test_an_item_is_counted_once_it_has_been_used() -> None:
    with Progress("all") as outer:
        done = []
        for _ in counted("abc", "letters", 3):
            done.append(progress._under_way[-1].done)
        assert progress._under_way == [outer]
    assert done == [0, 1, 2]


class Clock:
    """A clock that only waiting moves; the work ends at `end` seconds, and other lines are logged at `others`."""

    def __init__(self, patch: pytest.MonkeyPatch, end: float, others: tuple[float, ...] = ()) -> None:
        self.now, self.end, self.others = 0.0, end, list(others)
        self.shown: list[float] = []
        patch.setattr(progress, "monotonic", lambda: self.now)
        patch.setattr(progress, "_ends", self.wait)
        patch.setattr(progress, "FIRST", 2.0)
        patch.setattr(progress, "EVERY", 5.0)
        patch.setattr(progress, "_newest", 0.0)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        until = min(self.now + max(seconds, 0), self.end)
        while self.others and self.others[0] <= until:
            self.now = self.others.pop(0)
            logging.getLogger("srpo").info("srpo: a message")
        self.now = until
        return self.now >= self.end

    def run(self, caplog: pytest.LogCaptureFixture, *phases: float) -> list[float]:
        """Seconds at which lines appear, of phases of work that end at these seconds."""
        times: list[float] = []
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "srpo"):
            # Taken back: pytest has one such handler for all tests.
            patch.setattr(caplog.handler, "emit", lambda record: times.append(self.now))
            for self.end in phases:
                work = Progress("work")
                work._begun = self.now
                progress._Lines(work)._run()  # in this thread, where the clock decides
        return times


def test_a_line_comes_within_two_seconds_and_then_every_five(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Clock(monkeypatch, 0).run(caplog, 20.0) == [2, 7, 12, 17]


def test_a_message_postpones_the_next_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Clock(monkeypatch, 0, others=(5.0,)).run(caplog, 18.0) == [2, 5, 10, 15]


def test_short_phases_do_not_add_up_to_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 0)
    times = clock.run(caplog, 3.0, *(3.0 + 1.5 * n for n in range(1, 12)))
    assert (times[0], len(times)) == (2, 4)
    assert max(b - a for a, b in zip(times, [*times[1:], clock.now], strict=True)) <= 5
    monkeypatch.setattr(progress, "_newest", 1e9)  # control: a time of the newest line that is wrong
    assert clock.run(caplog, *(clock.now + 1.5 * n for n in range(1, 12))) == []
