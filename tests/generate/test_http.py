"""The HTTP client: every item ends exactly once, in order, and no message contains a secret."""

from __future__ import annotations

import base64
import json
import logging
import threading
from concurrent.futures import Future
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import RetryCallState, Retrying

from srpo.errors import ConfigError, InputError
from srpo.generate.http import Endpoint, Reply, UnusableAnswer, _awaited, _seconds, _TryAgain
from srpo.signals import signals
from tests.scripted_server import JSON, Asked, Say, serve

SECRET = "sk-very/secret+key"


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url, **{"backoff": 0.0, "tries": 3, "timeout": 60.0, **settings})


def number(answer: Any) -> int:
    """What these tests want of an answer."""
    if answer["n"] is None:
        raise UnusableAnswer("no number")
    return int(answer["n"])


def ask(server: Asked, count: int, **settings: Any) -> list[Reply[int]]:
    return list(endpoint(server.url, **settings).each("numbers", [{"n": n} for n in range(count)], number))


def good(body: JSON, before: int) -> Say:
    return Say({"n": body["n"] * 10})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Say({"error": {"message": "too many"}}, 429, {"Retry-After": "0"}), "HTTP 429: too many"),
        (Say("Internal Server Error", 500), "HTTP 500: Internal Server Error"),
        (Say({"detail": "starting"}, 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), "HTTP 503: starting"),
        (Say('{"n": 1'), "torn JSON"),
        (Say("[" * 100_000), "torn JSON"),
        (Say({"n": 10}, cut=4), "the connection broke"),
        (Say({"n": 10}, cut=0), "the connection broke"),
        (Say({"n": None}), "no number"),
        (Say({"m": 1}), "another shape: KeyError('n')"),
        (Say([]), "another shape: TypeError"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_temporary_errors_are_tried_again(wrong: Say, reason: str) -> None:
    """Item 1 goes wrong once and item 2 for ever; the others are untouched by it."""

    def script(body: JSON, before: int) -> Say:
        return wrong if body["n"] == 2 or (body["n"] == 1 and not before) else good(body, before)

    with serve(script) as server:
        replies = ask(server, 4)
        assert [reply.value for reply in replies] == [0, 10, None, 30]
        assert [reply.tries for reply in replies] == [1, 2, 3, 1]
        assert [reply.worn_out for reply in replies] == [False, False, True, False]
        assert reason in replies[2].failed
        assert "3 tries" in replies[2].failed
        assert [server.times({"n": n}) for n in range(4)] == [1, 2, 3, 1]


def test_a_request_without_answer_is_tried_again() -> None:
    """On a busy machine good answers come late, too: the first part allows many tries, the second needs no answer."""
    with serve(lambda body, before: good(body, before) if before or body["n"] else Say(hang=True)) as server:
        first, second = ask(server, 2, timeout=0.2, tries=100)
        assert (first.value, second.value) == (0, 10)
        assert first.tries == server.times({"n": 0}) >= 2
    with serve(lambda body, before: Say(hang=True)) as server:
        (reply,) = ask(server, 1, timeout=0.2)
        assert (reply.value, reply.tries, reply.worn_out) == (None, 3, True)
        assert reply.failed == "no answer within 0.2 s (3 tries)"


def test_refused_requests_are_not_tried_again() -> None:
    with serve(
        lambda body, before: Say({"message": "too\nlong"}, 400) if body["n"] == 1 else good(body, before)
    ) as server:
        replies = ask(server, 3)
        assert [(reply.value, reply.failed, reply.worn_out) for reply in replies] == [
            (0, "", False),
            (None, "HTTP 400: too long", False),
            (20, "", False),
        ]
        assert server.times({"n": 1}) == 1


def test_replies_keep_their_order_and_concurrency_its_limit() -> None:
    """The first four requests wait for each other, and the very first is answered last."""
    together, last = threading.Barrier(4), threading.Event()

    def script(body: JSON, before: int) -> Say:
        if body["n"] < 4 and not before:
            together.wait()
        if body["n"] == 15:
            last.set()
        if body["n"] == 0:
            last.wait()
        return good(body, before)

    with serve(script) as server:
        assert [reply.value for reply in ask(server, 24, concurrency=4, timeout=60.0)] == [10 * n for n in range(24)]
        assert server.at_once == 4


def test_bodies_are_consumed_as_needed() -> None:
    taken = []

    def bodies() -> Any:
        for n in range(1000):
            taken.append(n)
            yield {"n": n}

    with serve(good) as server:
        replies = endpoint(server.url, concurrency=2).each("numbers", bodies(), number)
        assert next(replies).value == 0
        assert len(taken) == 8
        replies.close()


def test_one_retry_after_holds_back_all_requests() -> None:
    """One Retry-After holds back every other request, too."""
    wait = Say("later", 429, {"Retry-After": "500"})
    with serve(lambda body, before: wait) as server:
        client = endpoint(server.url, tries=1)
        assert client._quiet_until < monotonic()
        (reply,) = client.each("numbers", [{"n": 1}], number)
        assert reply.failed == "HTTP 429: later (1 tries)"
        assert 400 < client._quiet_until - monotonic() <= 500
        # Another request waits until the caller leaves, and is then not sent.
        left = threading.Event()
        left.set()
        assert client._item("numbers", {"n": 2}, number, left).failed == "not sent"
        assert server.times({"n": 2}) == 0


def test_the_wait_doubles_with_each_try() -> None:
    client = Endpoint("http://h", backoff=1.0)
    for attempt, most in ((1, 1.0), (2, 2.0), (3, 4.0), (19, 60.0)):
        assert most / 2 <= client._wait(after(attempt, _TryAgain("HTTP 500"))) <= most
        assert client._wait(after(attempt, _TryAgain("HTTP 429", after=7.0))) == 7.0


def after(attempt: int, error: Exception) -> RetryCallState:
    """The state in which tenacity asks for a wait: a try failed."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    state.set_exception((type(error), error, None))
    return state


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        *(("", None), ("soon", None), ("nan", None), ("0", 0.0), ("2.5", 2.5), ("-3", 0.0), ("1e9", 600.0)),
        *(("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 GMT", 600.0), ("inf", 600.0)),
    ],
)
def test_retry_after(said: str, seconds: float | None) -> None:
    assert _seconds(said) == seconds


# ---------------------------------------------------------------------- what ends the whole run


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405])
def test_errors_of_every_request_stop_at_once(status: int) -> None:
    with serve(lambda body, before: Say({"error": "no"}, status, {"Location": "http://elsewhere.test/"})) as server:
        with pytest.raises(ConfigError, match=f"numbers: HTTP {status}"):
            ask(server, 50, concurrency=1)
        assert len(server.bodies) <= 4  # the window, not the fifty


def test_an_unreachable_server_raises_an_error() -> None:
    with serve(good) as server:
        pass
    with pytest.raises(InputError, match="no server answers"):
        ask(server, 3)


def test_a_server_that_only_fails_stops_the_run() -> None:
    with serve(lambda body, before: Say("down", 500)) as server:
        replies = endpoint(server.url, concurrency=2).each("numbers", ({"n": n} for n in range(1000)), number)
        with pytest.raises(InputError, match="9 requests in a row failed: HTTP 500: down"):
            list(replies)
        assert len({body["n"] for body in server.bodies}) < 30


def test_one_success_resets_the_count_of_failures() -> None:
    with serve(lambda body, before: Say("down", 500) if body["n"] % 8 else good(body, before)) as server:
        replies = ask(server, 33, concurrency=2, tries=1)
        assert [reply.value for reply in replies if not reply.failed] == [0, 80, 160, 240, 320]


# ---------------------------------------------------------------------- secrets


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    echo = Say({"error": {"message": f"no such key {SECRET}"}}, 400)
    with serve(lambda body, before: echo) as server:
        client = endpoint(server.url, api_key_env="SOME_KEY")
        (reply,) = client.each("numbers", [{"n": 1}], number)
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
        assert reply.failed == "HTTP 400: no such key ***"
        assert SECRET not in repr(client)
        # The control: without the guard it would have been shown.
        client._secrets = []
        (reply,) = client.each("numbers", [{"n": 1}], number)
        assert SECRET in reply.failed


def test_nothing_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serve(good) as server, caplog.at_level(logging.DEBUG):
        (reply,) = endpoint(f"{server.url}?token=t0ken").each("numbers", [{"n": 1}], number)
    assert reply.value == 10
    assert "t0ken" not in caplog.text


def test_a_user_in_the_url_is_sent_and_never_shown() -> None:
    def echo(body: JSON, before: int) -> Say:
        basic = server.headers[-1]["authorization"].removeprefix("Basic ")
        return Say(f"{basic} {base64.b64decode(basic).decode()} p%40ss {server.paths[-1]}", 403)

    with serve(echo) as server:
        url = server.url.replace("http://", "http://me:p%40ss@") + "/?token=t0ken"
        with pytest.raises(ConfigError) as caught:
            list(endpoint(url).each("numbers", [{"n": 1}], number))
        assert server.paths == ["/v1/numbers?token=t0ken"]
    assert str(caught.value).startswith(f"{server.url}/numbers: HTTP 403: *** ***:*** *** /v1/numbers?token=***")
    assert repr(endpoint(url)) == f"Endpoint({server.url!r})"


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("localhost:8000", {}, "base_url"),
        (f"ftp://me:{SECRET}@host", {}, "base_url"),
        (f"http://me:{SECRET}@host:port/", {}, "base_url"),
        ("http://h", {"api_key_env": SECRET}, "api_key_env: not the name"),
        ("http://h", {"api_key_env": "NOT_SET"}, "NOT_SET: the environment has no such variable"),
        ("http://h", {"api_key_env": "BROKEN_KEY"}, "BROKEN_KEY: a header cannot carry its value"),
        (f"http://me:1/{SECRET}@h", {}, "an @ behind the host"),
        ("http://me:pass@h", {"api_key_env": "SOME_KEY"}, "authenticate in one way"),
        ("http://h", {"tries": 0}, "tries: 0"),
        ("http://h", {"concurrency": 0}, "concurrency: 0"),
        ("http://h", {"backoff": -1.0}, "backoff: -1.0"),
        ("http://h", {"timeout": float("nan")}, "timeout: nan"),
    ],
)
def test_invalid_settings_are_rejected_before_any_request(
    url: str, settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    monkeypatch.setenv("BROKEN_KEY", f"{SECRET}\n{SECRET}")
    with pytest.raises(ConfigError) as caught:
        Endpoint(url, **settings)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_any_text_can_be_sent() -> None:
    body = {"n": 1, "text": "\ud800 \u0000 ß 🙂"}
    with serve(good) as server:
        (reply,) = endpoint(server.url).each("numbers", [body], number)
        assert reply.value == 10
        assert json.dumps(server.bodies[0]) == json.dumps(body)


def test_a_signal_that_came_unnoticed_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    never: Future[Reply[int]] = Future()
    monkeypatch.setattr(signals, "asked", "SIGINT")  # as if its KeyboardInterrupt had been raised where Python drops it
    monkeypatch.setattr("srpo.generate.http.PULSE", 0.01)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        _awaited(never)
    monkeypatch.setattr("srpo.generate.http.wait", looked_once())
    with signals.held_back(), pytest.raises(Looked):  # control: there the caller looks at `asked` itself
        _awaited(never)


class Looked(Exception):
    pass


def looked_once() -> Any:
    """A `wait` that comes back once without a result, and raises `Looked` the second time."""
    turns = iter([SimpleNamespace(done=set())])

    def wait(futures: Any, timeout: float) -> Any:
        try:
            return next(turns)
        except StopIteration:
            raise Looked from None

    return wait
