"""`srpo serve` in a process of its own: SIGTERM under load, kill −9, another server on the port and the votes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from srpo.judge.votes import Votes
from tests.revise.tiny import PROMPTS, carry_llama, saved
from tests.serve.served import get, httpx, post

pytestmark = pytest.mark.faults
WORDS = ["--temperature", "0", "--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), carry_llama())


@contextmanager
def serving(model: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server's process, its address, and the lines of its standard error so far."""
    command = [sys.executable, "-m", "srpo", "serve", str(model), "--name", "tiny", *WORDS, *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "serving tiny" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    ready.wait()
    try:
        found = re.search(r"http://[\d.:]+", "".join(lines))
        assert found, lines
        yield process, found[0], lines
    finally:
        process.kill()
        process.wait()
        reader.join()


def test_sigterm_under_load_finishes_what_was_accepted(model: Path) -> None:
    with serving(model, "--port", "0") as (process, url, lines):
        statuses: list[int] = []
        begun = threading.Event()

        def client(number: int) -> None:
            while True:
                try:
                    body = {"model": "tiny", "prompt": PROMPTS[number % len(PROMPTS)]}
                    statuses.append(post(f"{url}/v1/completions", json=body).status_code)
                except httpx.TransportError:
                    return  # not accepted any more
                begun.set()

        clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for each in clients:
            each.start()
        begun.wait()
        process.send_signal(signal.SIGTERM)
        for each in clients:
            each.join()
        assert process.wait() == 0
    logged = [line.split()[2] for line in lines if "/v1/completions" in line]
    assert logged == ["200"] * len(statuses)  # an accepted request that broke off would be a line without an answer
    assert {*statuses} == {200}
    assert "Traceback" not in "".join(lines)


def test_kill_and_restart_on_the_same_port_and_votes(model: Path, tmp_path: Path) -> None:
    votes = str(tmp_path / "votes.jsonl")
    vote: dict[str, Any] = {"first": "a", "second": "b", "vote": "first"}
    with serving(model, "--port", "0", "--votes", votes) as (process, url, _):
        assert post(f"{url}/v1/votes", json={"prompt": "1", **vote}).status_code == 200
        process.kill()
        process.wait()
        port = url.rsplit(":", 1)[1]
        with serving(model, "--port", port, "--votes", votes) as (_, again, _):
            assert get(f"{again}/health").json()["status"] == "ok"
            assert post(f"{again}/v1/votes", json={"prompt": "2", **vote}).status_code == 200
            busy = subprocess.run(
                [sys.executable, "-m", "srpo", "serve", str(model), "--port", port], capture_output=True, text=True
            )
            assert busy.returncode == 74
            assert "cannot listen: Address already in use" in busy.stderr
    Votes(votes)
    assert [json.loads(line)["prompt"] for line in Path(votes).read_text("utf-8").splitlines()] == ["1", "2"]
