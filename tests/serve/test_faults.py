"""Faults of clients, of the model, of the model's server and of the disk; each error has OpenAI's shape."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from srpo import Reviser
from srpo.disk import os_write
from srpo.errors import DataError, OutputError
from srpo.generate.engine import Completion, Decoding
from srpo.generate.http import Endpoint
from srpo.generate.openai import ChatEngine
from srpo.judge.votes import Votes, append_vote
from srpo.sequences.render_messages import MessageRenderer
from tests.revise.tiny import Scripted, reviser
from tests.scripted_server import JSON, Say, serve
from tests.serve.served import GREEDY, Served, get, openai, post, request, serving

JSON_BODY = {"content-type": "application/json"}
GOOD = {"model": "tiny", "prompt": "1+1="}


def problem(found: httpx.Response) -> dict[str, Any]:
    """The error of a response, whose shape is checked."""
    error: dict[str, Any] = found.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    return error


# ---------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b'{"model": "tiny", "prompt": "\xff"}', "not UTF-8"),
        (b'{"model": "tiny", "prompt": "1+1=", "temperature": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "not a JSON object"),
        (b'{"model": "tiny"}', "prompt: "),
        (rb'{"model": "tiny", "prompt": "\ud800"}', "surrogate"),
    ],
)
def test_a_body_that_cannot_be_read(served: Served, content: bytes, message: str) -> None:
    found = post(f"{served.url}/v1/completions", content=content, headers=JSON_BODY)
    assert found.status_code == 400
    assert message in problem(found)["message"]
    assert post(f"{served.url}/v1/completions", json=GOOD).status_code == 200  # the control


def test_paths_methods_and_kinds_of_content(served: Served) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ):
        found = request(method, served.url + path)
        assert (found.status_code, problem(found)["param"]) == (status, None)
    found = post(f"{served.url}/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert (found.status_code, problem(found)["code"]) == (415, None)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused(tiny: Reviser, chunked: bool) -> None:
    content = json.dumps({**GOOD, "user": "x" * 5000}).encode()
    with serving(tiny, GREEDY, max_body=1000) as small, serving(tiny, GREEDY, max_body=10_000) as large:
        for server, status in ((small, 413), (large, 200)):
            body: Any = iter([content]) if chunked else content
            found = post(f"{server.url}/v1/completions", content=body, headers=JSON_BODY)
            assert found.status_code == status
            assert status == 200 or problem(found)["code"] == "body_too_large"


# ---------------------------------------------------------------------- the model


class Gate:
    """An engine's answers held back until `go` is set; `begun` is set at the first one."""

    def __init__(self) -> None:
        self.begun, self.go, self.asked = threading.Event(), threading.Event(), 0
        self.subject = reviser()
        Scripted(self.subject, self.answer)

    def answer(self, context: str) -> str:
        self.asked += 1
        self.begun.set()
        self.go.wait()
        return "46"


@pytest.fixture
def gate() -> Iterator[Gate]:
    found = Gate()
    yield found
    found.go.set()  # no thread may wait beyond its test


def finished(served: Served, path: str, count: int) -> None:
    """Returns once so many requests of that path have ended, as the server's metrics count them."""

    def ended() -> float:
        lines = get(f"{served.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f'srpo_requests_total{{path="{path}"'))

    while ended() < count:
        pass


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_answered_further(gate: Gate, stream: bool) -> None:
    with serving(gate.subject) as served:
        body = json.dumps({**GOOD, "stream": stream}).encode()
        with httpx.Client() as client:
            sending = threading.Thread(target=lambda: _post_and_leave(client, served, body, gate), daemon=True)
            sending.start()
            sending.join()
        finished(served, "/v1/completions", 1)
        gate.go.set()
        assert served.client().completions.create(model="tiny", prompt="2+2=").choices[0].text == "46"
        assert gate.asked == 1 + 2  # one draft of the client that left, then draft and revision of the other


def _post_and_leave(client: httpx.Client, served: Served, body: bytes, gate: Gate) -> None:
    import socket

    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        gate.begun.wait()


def test_a_full_queue_and_a_slow_model(gate: Gate) -> None:
    with serving(gate.subject, GREEDY, max_waiting=1, request_timeout=0.2) as served:
        slow = post(f"{served.url}/v1/completions", json=GOOD)
        assert (slow.status_code, problem(slow)["code"]) == (504, "timeout")
        full = post(f"{served.url}/v1/completions", json=GOOD)  # the model still writes the first one
        assert (full.status_code, problem(full)["code"]) == (429, "queue_full")
        assert full.headers["retry-after"] == "1"
        gate.go.set()
    assert gate.asked == 1


def test_accepted_requests_finish_when_the_server_is_told_to_stop(gate: Gate) -> None:
    with ThreadPoolExecutor() as pool, serving(gate.subject) as served:
        waiting = [pool.submit(post, f"{served.url}/v1/completions", json=GOOD) for _ in range(3)]
        gate.begun.wait()
        while get(f"{served.url}/health").json()["waiting"] < 3:
            pass
        served.stop()
        gate.go.set()
        assert [each.result().status_code for each in waiting] == [200] * 3
    with pytest.raises(httpx.ConnectError):
        get(f"{served.url}/health")


class Breaking:
    """A part of an engine that fails for contexts that hold a text."""

    def __init__(self, subject: Reviser, text: str) -> None:
        self.inner, self.text, self.tokenizer = subject.engine, text, subject.renderer.tokenizer
        self.batch_size, self.same_batch_same_bits, self.max_length = 32, True, 64
        subject.engine = self

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        if any(self.text in self.tokenizer.decode(context) for context in contexts):
            raise RuntimeError(f"cannot answer {self.text}")
        return self.inner.complete(contexts, keys, decoding, **more)


def test_a_fault_of_the_model_has_no_prompt_in_it_and_spares_the_rest_of_its_batch(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    subject = reviser()
    Scripted(subject, lambda context: "46")
    Breaking(subject, "99+88")
    bodies = [{"model": "tiny@draft", "prompt": prompt} for prompt in ("1+1=", "99+88=", "2+2=", "3+3=")]
    with caplog.at_level("DEBUG"), serving(subject) as served, ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda body: post(f"{served.url}/v1/completions", json=body), bodies))
    assert [each.status_code for each in found] == [200, 500, 200, 200]
    assert problem(found[1])["message"] == "internal error: RuntimeError"
    shown = caplog.text + "".join(capfd.readouterr())
    assert "99+88" not in shown
    assert "Traceback" not in shown


# ---------------------------------------------------------------------- another server behind this one

ANSWER = {"choices": [{"message": {"content": "46"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
UPSTREAM = [
    (lambda body, before: Say(ANSWER), 200),
    (lambda body, before: Say(ANSWER) if before else Say({"error": "slow down"}, 429), 200),
    (lambda body, before: Say(ANSWER) if before else Say(ANSWER, cut=20), 200),
    (lambda body, before: Say({"error": "down"}, 500), 502),
    (lambda body, before: Say({"error": "slow down"}, 429), 502),
    (lambda body, before: Say(ANSWER, cut=20), 502),
    (lambda body, before: Say(hang=True), 502),
    (lambda body, before: Say({"error": "the key planted-key-123 is wrong"}, 401), 502),
]


@pytest.mark.parametrize(("script", "status"), UPSTREAM)
def test_faults_of_the_models_server(script: Any, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM", "planted-key-123")
    hangs = script({}, 0).hang

    def named(body: JSON, before: int) -> Say:
        said: Say = script(body, before)
        return said

    with serve(named) as upstream:
        timeout = 0.3 if hangs else 60.0
        endpoint = Endpoint(upstream.url, tries=2, backoff=0.0, timeout=timeout, api_key_env="UPSTREAM")
        subject = Reviser("", renderer=MessageRenderer(), engine=ChatEngine(endpoint, "far", batch_size=4))
        with serving(subject) as served:
            for stream in (False, True):
                found = post(f"{served.url}/v1/completions", json={**GOOD, "stream": stream})
                assert found.status_code == (200 if stream else status)
                assert ("upstream_error" in found.text) == (status != 200)
                assert "planted-key-123" not in found.text
                assert not stream or found.text.endswith("data: [DONE]\n\n")
            if status != 200:
                with pytest.raises(openai.APIError):
                    list(served.client().completions.create(model="tiny", prompt="1+1=", stream=True))


# ---------------------------------------------------------------------- votes


def test_a_full_disk_leaves_no_torn_vote(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    append_vote(str(file), "p", "a", "b", "first")
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            append_vote(str(file), "p", "c", "d" * 1000, "first")
        torn = tmp_path / "torn"  # the control: plain appending leaves a part of the line
        with torn.open("ab") as plain, pytest.raises(OSError, match="too large"):
            os_write(plain.fileno(), b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    assert torn.stat().st_size == len(before) + 40
    append_vote(str(file), "p", "c", "d", "first")
    assert len(file.read_bytes().splitlines()) == 2


def test_a_vote_after_a_torn_line_begins_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    file.write_text('{"prompt": "p", "fir')
    append_vote(str(file), "p", "a", "b", "first")
    assert json.loads(file.read_text().splitlines()[1])["chosen"] == "a"


def test_several_writers_of_one_vote_file(tmp_path: Path) -> None:
    file = str(tmp_path / "votes.jsonl")

    def vote(number: int) -> str:
        try:
            append_vote(file, f"p{number // 2}", "a" * 3000, "b", ("first", "second")[number % 2])
        except DataError:
            return "refused"
        return "written"

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(vote, range(40)))
    assert ends.count("written") == ends.count("refused") == 20  # of two that contradict each other, one
    Votes(file)
