"""Fault 20: a server that misbehaves under `srpo revise`. Every prompt ends exactly once, finished or failed with a
reason; what was answered once is never asked for again, whatever became of the client."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from srpo.cli.main import run
from srpo.errors import ConfigError, InputError, SRPOError
from srpo.revise.trail import Trail
from tests.generate.served import VLLM, completion, spoken
from tests.revise.tiny import saved
from tests.scripted_server import JSON, Asked, Say, serve
from tests.warm_command import Fork

PROMPTS = ["1+0=", "2+0=", "3+0=", "4+0=", "5+0=", "6+0="]
SECRET = "sk-fault20-secret"
KEY = "SRPO_FAULT20_KEY"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a client needs of a model: tokenizer and template; its weights are the server's."""
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), "utf-8")
    return file


def command(server: Asked, model: Path, prompts: Path, **flags: object) -> list[str]:
    given = {
        "model_name_or_path": model,
        "input": prompts,
        "output": prompts.with_name("trails.jsonl"),
        "revisions": 2,
        "max_new_tokens": 4,
        "engine": "openai",
        "base_url": server.url,
        "backoff": 0,
        "tries": 3,
        "batch_size": 3,
        **flags,
    }
    return ["revise", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def trails(prompts: Path) -> list[Trail]:
    return [Trail.from_json(line) for line in prompts.with_name("trails.jsonl").read_text("utf-8").splitlines()]


def first(body: JSON) -> str:
    """The first operand of what is asked, which names the prompt."""
    return spoken(body)[0]


def honest(body: JSON, before: int = 0) -> Say:
    """Revises 7 to 8 to 9."""
    draft = spoken(body).partition("=")[2]
    return Say(completion(body, {"": "7", "7?": "8", "8?": "9"}[draft]))


def misbehaving(wrong: Callable[[JSON], Say]) -> Callable[[JSON, int], Say]:
    """Every request of prompt 2 meets it once, and the revisions of prompt 4 for ever."""

    def script(body: JSON, before: int) -> Say:
        once = first(body) == "2" and not before
        ever = first(body) == "4" and "?" in spoken(body)
        return wrong(body) if once or ever else honest(body)

    return script


WRONG: dict[str, tuple[Callable[[JSON], Say], str]] = {
    "429": (lambda body: Say({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"}), "HTTP 429: slow down"),
    "500": (lambda body: Say("oops", 500), "HTTP 500: oops"),
    "torn": (lambda body: Say(json.dumps(completion(body))[:-9]), "torn JSON"),
    "cut": (lambda body: Say(completion(body), cut=20), "the connection broke"),
    "hangs": (lambda body: Say(hang=True), "no answer within 0.5 s"),
    "nothing": (lambda body: Say({"choices": []}), "JSON of another shape"),
    "empty": (lambda body: Say(completion(body, "", token_ids=[])), "an empty completion"),
    "aborted": (lambda body: Say(completion(body, finish_reason="abort")), "ended by 'abort'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_prompt_gets_exactly_one_result(
    kind: str, model: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, reason = WRONG[kind]
    monkeypatch.setenv(KEY, SECRET)
    flags = {"api_key_env": KEY, "timeout": 0.5 if kind == "hangs" else 30}
    with serve(misbehaving(wrong), VLLM) as server:
        with pytest.raises(InputError, match="1 of 6 prompts failed: 1 × ") as caught:
            run(command(server, model, prompts, **flags))
        assert caught.value.exit_code == 66
        assert reason in str(caught.value)
        assert "the same command tries them again" in str(caught.value)
        done = trails(prompts)
        assert [trail.prompt for trail in done] == PROMPTS
        assert [[answer.text for answer in trail.answers] for trail in done] == [
            ["7"] if trail.prompt == "4+0=" else ["7", "8", "9"] for trail in done
        ]
        # A request for each answer, one more where it went wrong once, three where it failed.
        asked = Counter(first(body) for body in server.bodies)
        assert asked == {"1": 3, "2": 6, "3": 3, "4": 4, "5": 3, "6": 3}
    # A rerun against a server that is well again asks for what is missing, the two revisions of prompt 4.
    with serve(honest_again, VLLM) as server:
        assert run(command(server, model, prompts, **flags)) == 0
        assert [spoken(body) for body in server.bodies] == ["4+0=7?", "4+0=8?"]
        assert all(len(trail.answers) == 3 and not trail.failed for trail in trails(prompts))
        assert run(command(server, model, prompts, **flags)) == 0
        assert len(server.bodies) == 2
    assert SECRET not in "".join(file.read_text("utf-8") for file in prompts.parent.iterdir())
    assert SECRET not in str(caught.value)
    assert not list(prompts.parent.glob("*.answers.jsonl"))


def honest_again(body: JSON, before: int) -> Say:
    return honest(body)


def test_control_a_good_server_fails_no_prompt(model: Path, prompts: Path) -> None:
    with serve(honest_again, VLLM) as server:
        assert run(command(server, model, prompts)) == 0
        assert len(server.bodies) == 18
        assert max(Counter(map(spoken, server.bodies)).values()) == 1


@pytest.mark.parametrize(
    ("sent", "killed_after"),
    [(signal.SIGKILL, 1), (signal.SIGINT, 4), (signal.SIGKILL, 10)],
    ids=lambda each: int(each),
)
def test_a_killed_client_repeats_no_request(
    sent: signal.Signals, killed_after: int, model: Path, prompts: Path
) -> None:
    """Killed, or stopped by Ctrl-C, while a request is under way: that one is lost, and no other."""
    reached = threading.Event()
    held = threading.Event()

    def script(body: JSON, before: int) -> Say:
        if len(server.bodies) > killed_after and not held.is_set():
            reached.set()
            held.wait()
        return honest(body)

    with serve(script, VLLM) as server:
        words = command(server, model, prompts, concurrency=1)
        client = Fork(*words)
        while not reached.wait(0.05):
            assert os.waitpid(client.pid, os.WNOHANG) == (0, 0)
        os.kill(client.pid, sent)
        code, _, err = client.end()
        assert code == (75 if sent == signal.SIGINT else -sent), err  # though the server still says nothing
        held.set()
        answered = [spoken(body) for body in server.bodies[:killed_after]]
        assert run(words) == 0
        after = [spoken(body) for body in server.bodies[killed_after + 1 :]]
    assert len(after) == 18 - killed_after
    assert not {*answered} & {*after}
    assert [[answer.text for answer in trail.answers] for trail in trails(prompts)] == [["7", "8", "9"]] * 6


def test_control_without_the_journal_requests_are_repeated(model: Path, prompts: Path) -> None:
    """What the test above rests on: the file of answers gone, a rerun repeats the batch that was cut off."""

    def script(body: JSON, before: int) -> Say:
        return Say("gone", 401) if len(server.bodies) == 5 else honest(body)

    with serve(script, VLLM) as server:
        words = command(server, model, prompts, concurrency=1)
        with pytest.raises(ConfigError, match="HTTP 401"):
            run(words)
        before = [spoken(body) for body in server.bodies]
        prompts.with_name("trails.jsonl.answers.jsonl").unlink()
        assert run(words) == 0
        # A request that was under way beside the refused one may be answered, and its answer kept, after the file went.
        assert {*before[:4]} <= {spoken(body) for body in server.bodies[len(before) :]}


def test_without_a_server_no_prompt_gets_a_trail(model: Path, prompts: Path) -> None:
    with serve(honest_again, VLLM) as server:
        pass
    with pytest.raises(InputError, match="no server answers") as caught:
        run(command(server, model, prompts))
    assert caught.value.exit_code == 66
    assert prompts.with_name("trails.jsonl").read_bytes() == b""  # it was found out to be writable, no more


def test_a_failed_confidence_fails_its_prompt_only(model: Path, prompts: Path) -> None:
    """A server that tells no log-probs for prompt 4: its revision is neither taken nor thrown away unseen."""

    def script(body: JSON, before: int) -> Say:
        if "prompt_logprobs" not in body:
            return honest(body)
        rows = [None, *({str(id_): {"logprob": -1.0}} for id_ in body["prompt"][1:])]
        return Say(completion(body, prompt_logprobs=None if first(body) == "4" else rows))

    (model / "srpo_training.json").write_text(json.dumps({"beta": 0.1}), "utf-8")
    with serve(script, [*VLLM, {"id": "base", "owned_by": "vllm"}]) as server:
        flags = {"served_model": "tiny", "served_reference": "base", "policy": "if_preferred"}
        with pytest.raises(InputError, match="1 of 6 prompts failed: 1 × no confidence"):
            run(command(server, model, prompts, **flags))
    (model / "srpo_training.json").unlink()
    assert [bool(trail.failed) for trail in trails(prompts)] == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"engine": "hf"}, "base_url: has no use with engine hf"),
        ({"engine": "openai", "base_url": ""}, "base_url: engine openai needs a server"),
        ({"engine": "chat", "served_reference": "base"}, "served_reference: engine chat has no log-probs"),
        ({"reference": "base"}, "reference: has no use with engine openai"),
        ({"dtype": "bfloat16"}, "dtype: has no use with engine openai"),
        ({"api_key_env": SECRET}, "api_key_env: not the name of a variable"),
        ({"engine": "opneai"}, "engine: 'opneai'; expected one of hf, vllm, openai, chat"),
    ],
)
def test_a_flag_without_effect_is_an_error(flags: dict[str, str], said: str, model: Path, prompts: Path) -> None:
    with serve(honest_again, VLLM) as server, pytest.raises(SRPOError) as caught:
        run(command(server, model, prompts, **flags))
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert server.bodies == []
