"""Engines on a server: the fields of requests, the reading of answers, and the rejection of unusable ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.errors import BackendError, ConfigError, InputError
from srpo.generate.engine import Completion, Decoding, seed_of
from srpo.generate.http import Endpoint
from srpo.generate.journal import Journal
from srpo.generate.openai import ChatEngine, CompletionsEngine
from srpo.revise.confidence import ModelScorer, RatioScorer
from srpo.sequences.render_messages import MessageRenderer
from srpo.sequences.templates import RevisionTemplate
from tests.generate.served import OTHER, VLLM, answering, completion, scoring
from tests.revise.tiny import PROMPTS, Scripted, carry_llama, ids_of, reviser
from tests.scripted_server import JSON, Asked, Say, serve


def engine(server: Asked, kind: type[CompletionsEngine] = CompletionsEngine, **settings: Any) -> CompletionsEngine:
    return kind(Endpoint(server.url, backoff=0.0, tries=2, timeout=60.0), **settings)


def ask(subject: CompletionsEngine, contexts: list[Any], **settings: Any) -> list[Completion]:
    keys = [f"key {i}" for i in range(len(contexts))]
    how = Decoding(**{"max_new_tokens": 4, "stop_ids": (14, 15), "temperature": 0.0, **settings})
    return subject.complete(contexts, keys, how)


def test_trails_from_a_server_equal_trails_in_process() -> None:
    """A scripted engine in process and a server of the same script: the same contexts, answers and token counts."""

    def answer(text: str) -> str:
        return str(len(text) % 10) if "?" in text else "5"

    near = reviser()
    Scripted(near, answer)
    with serve(answering(answer), VLLM) as server:
        far = reviser(engine=engine(server, batch_size=4))
        ours, theirs = (each.revise(PROMPTS, revisions=3, temperature=0, max_new_tokens=4) for each in (near, far))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.prompt, one.stopped) == (other.prompt, other.stopped)
        assert [(a.text, a.tokens, a.finished, a.forward_tokens) for a in one.answers] == [
            (a.text, a.tokens, a.finished, a.forward_tokens) for a in other.answers
        ]


def test_fields_of_a_request_to_vllm() -> None:
    with serve(answering(str), VLLM) as server:
        subject = engine(server)
        assert (subject.model, subject.max_length, subject.dialect) == ("tiny", 64, "vllm")
        ask(subject, [[3, 4]])
        ask(subject, [[3, 4]], temperature=0.5, seed=9)
    greedy, sampled = server.bodies
    assert server.paths == ["/v1/completions"] * 2
    unshaped = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    unshaped |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    ends = {"ignore_eos": True, "stop_token_ids": [14, 15], "return_token_ids": True}
    assert greedy == {"model": "tiny", "prompt": [3, 4], "max_tokens": 4, "temperature": 0.0, **unshaped, **ends}
    assert sampled == {**greedy, "temperature": 0.5, "seed": seed_of(9, "key 0")}


def test_other_servers_get_standard_fields_only() -> None:
    standard = {"model", "prompt", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"}
    with serve(
        lambda body, before: Say(completion(body, "42", token_ids=None, prompt_token_ids=None)), OTHER
    ) as server:
        subject = engine(server)
        assert (subject.max_length, subject.dialect) == (None, "openai")
        (done,) = ask(subject, [[3, 4]])
        assert (done.ids, done.text, done.tokens, done.read, done.finished) == ((), "42", 3, 2, True)
        assert {*server.bodies[0]} == standard
        engine(server, dialect="vllm")
        with pytest.raises(ConfigError, match="dialect"):
            engine(server, dialect="klingon")


def test_request_seeds_depend_on_seed_and_key_only() -> None:
    assert seed_of(1, "a") == seed_of(1, "a") < 2**31
    assert len({seed_of(seed, key) for seed in range(50) for key in "abc"}) == 150


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish_reason": None}, "ended by None"),
        ({"finish_reason": "abort"}, "ended by 'abort'"),
        ({"finish_reason": "content_filter"}, "content filter"),
        ({"token_ids": []}, "an empty completion"),
        ({"token_ids": ["7"]}, "token ids that are not integers"),
        ({"token_ids": None, "text": "", "finish_reason": "length"}, "an empty completion"),
        ({"token_ids": None, "text": None}, "an answer without text"),
    ],
)
def test_unusable_answers_fail(changes: JSON, reason: str) -> None:
    with serve(lambda body, before: Say(completion(body, **changes)), VLLM) as server:
        (done,) = ask(engine(server), [[3, 4]])
    assert reason in done.failed
    assert len(server.bodies) == (1 if reason == "content filter" else 2)


def test_an_answer_of_the_terminator_alone_is_accepted() -> None:
    with serve(lambda body, before: Say(completion(body, "")), VLLM) as server:
        (done,) = ask(engine(server), [[3, 4]])
    assert (len(done.ids), done.finished, done.failed) == (1, True, "")


@pytest.mark.parametrize("told", ["prompt_token_ids", "usage"])
def test_a_server_that_reads_other_tokens_raises_an_error(told: str) -> None:
    """It puts a BOS before ids, say; without the check every answer would be one to another prompt."""

    def script(body: JSON, before: int) -> Say:
        said = completion(body, token_ids=None)
        said["usage"]["prompt_tokens"] += 1
        if told == "prompt_token_ids":
            said = completion(body, prompt_token_ids=[1, *body["prompt"]])
        return Say(said)

    with serve(script, VLLM) as server, pytest.raises(BackendError, match="read 3 tokens where 2 were sent"):
        ask(engine(server), [[3, 4]])


def test_the_model_is_chosen_by_name() -> None:
    several = [*VLLM, {"id": "adapter", "owned_by": "vllm", "parent": "tiny"}, {"id": "other", "owned_by": "vllm"}]
    with serve(answering(str), several) as server:
        assert engine(server, model="adapter").max_length == 64
        with pytest.raises(ConfigError, match=r"several models; expected one of tiny, adapter, other"):
            engine(server)
        with pytest.raises(ConfigError, match=r"no model 'adaptor'.*did you mean 'adapter'"):
            engine(server, model="adaptor")
    with serve(answering(str)) as server:  # keeps no list
        assert engine(server, model="any").dialect == "openai"
        with pytest.raises(InputError, match="no list of models: HTTP 404"):
            engine(server)


# ---------------------------------------------------------------------- log-probs

SEQUENCES = [
    [(ids_of("1+2="), ids_of("30")), (ids_of("1+2="), ids_of("4"))],
    [(ids_of("9+9="), ids_of("81")), (ids_of("9+9="), ids_of("81"))],
]


@pytest.mark.parametrize("models", [VLLM, OTHER], ids=["vllm", "openai"])
def test_log_ratios_equal_those_of_the_models_in_process(models: list[JSON]) -> None:
    policy, reference = carry_llama(0), carry_llama(1)
    expected = ModelScorer(policy, reference).log_ratios(SEQUENCES)
    with serve(scoring(policy), models) as ours, serve(scoring(reference), models) as theirs:
        scorer = RatioScorer(engine(ours).logps, engine(theirs).logps)
        torch.testing.assert_close(scorer.log_ratios(SEQUENCES), expected, atol=1e-5, rtol=0)
        assert len(ours.bodies) == 3  # the second row's two are one
        # The control: the same with the first answer token left out is nats away.
        cut = [[([*context, answer[0]], answer[1:]) for context, answer in row] for row in SEQUENCES[:1]]
        assert (scorer.log_ratios(cut) - expected[:1]).abs().max() > 0.1


@pytest.mark.parametrize("models", [VLLM, OTHER], ids=["vllm", "openai"])
@pytest.mark.parametrize("hole", ["absent", "a position"])
def test_missing_log_probs_are_tried_again_and_become_nan(
    models: list[JSON], hole: str, caplog: pytest.LogCaptureFixture
) -> None:
    honest = scoring(carry_llama(0))

    def script(body: JSON, before: int) -> Say:
        said: JSON = honest(body, before).body
        if body["prompt"][:2] == ids_of("9+") or not before:
            choice = said["choices"][0]
            rows = choice["prompt_logprobs"] if "prompt_logprobs" in choice else choice["logprobs"]["token_logprobs"]
            if hole == "absent":
                choice["prompt_logprobs"] = choice["logprobs"] = None
            else:
                rows[3] = None
        return Say(said)

    with serve(script, models) as server, caplog.at_level(logging.WARNING, "srpo"):
        pairs = [(tuple(context), tuple(answer)) for context, answer in (SEQUENCES[0][0], SEQUENCES[1][0])]
        found = engine(server).logps(pairs)
    assert [logp != logp for logp in found] == [False, True]
    assert "log-probs" in caplog.text


# ---------------------------------------------------------------------- chat


def test_chat_sends_messages_and_reads_text() -> None:
    def script(body: JSON, before: int) -> Say:
        content = "42" if len(body["messages"]) == 1 else "43"
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        return Say({"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}})

    template = RevisionTemplate.preset("turn")
    with serve(script, OTHER) as server:
        from srpo import Reviser

        subject = Reviser("", renderer=MessageRenderer(template), engine=engine(server, ChatEngine))
        (trail,) = subject.revise(["What is 6×7?"], revisions=1, temperature=0)
    assert [(a.text, a.tokens, a.forward_tokens) for a in trail.answers] == [("42", 3, 14), ("43", 3, 14)]
    assert server.paths == ["/v1/chat/completions"] * 2
    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "What is 6×7?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": template.fill_revision("What is 6×7?", "42")},
    ]


def spoken_chat(body: JSON, before: int) -> Say:
    choice = {"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}
    return Say({"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}})


def rejecting(*names: str) -> Callable[[JSON, int], Say]:
    """A chat server that rejects some fields, as newer models do."""

    def script(body: JSON, before: int) -> Say:
        for name in names:
            if name in body:
                other = "; use 'max_completion_tokens' instead" if name == "max_tokens" else ""
                return Say({"error": {"message": f"Unsupported parameter: '{name}'{other}.", "param": name}}, 400)
        return spoken_chat(body, before)

    return script


def test_a_chat_server_that_wants_max_completion_tokens_gets_it() -> None:
    asked = [[{"role": "user", "content": f"{n}+{n}"}] for n in range(5)]
    with serve(rejecting("max_tokens"), OTHER) as server:
        subject = engine(server, ChatEngine)
        assert [done.text for done in ask(subject, asked)] == ["42"] * 5
        # Rejected requests sent side by side may reach the server late, so the accepted ones are counted.
        assert [done.text for done in ask(subject, asked)] == ["42"] * 5
        accepted = [body["max_completion_tokens"] for body in server.bodies if "max_tokens" not in body]
        assert accepted == [4] * 10
        assert len(server.bodies) - len(accepted) <= 5  # remembered: the second time none is rejected
    # A neutral field is left out: presence_penalty 0 changes no distribution.
    with serve(rejecting("presence_penalty", "max_tokens"), OTHER) as server:
        assert [done.text for done in ask(engine(server, ChatEngine), asked)] == ["42"] * 5
        accepted = [body for body in server.bodies if {"presence_penalty", "max_tokens"}.isdisjoint(body)]
        assert len(accepted) == 5
    # Control: another rejected field fails, since the answers would not be greedy without it …
    with serve(rejecting("max_tokens", "temperature"), OTHER) as server:
        (done,) = ask(engine(server, ChatEngine), asked[:1])
        assert "temperature" in done.failed
        # … unless the user leaves it out.
        fields = {"temperature": None, "reasoning_effort": "low"}
        (done,) = ask(engine(server, ChatEngine, fields=fields), asked[:1])
        assert done.text == "42"
        assert server.bodies[-1]["reasoning_effort"] == "low"


def test_a_chat_answer_without_content_fails() -> None:
    choice = {"message": {"content": None, "tool_calls": []}, "finish_reason": "stop"}
    with serve(lambda body, before: Say({"choices": [choice]}), OTHER) as server:
        (done,) = ask(engine(server, ChatEngine), [[{"role": "user", "content": "hi"}]])
    assert "without text" in done.failed


# ---------------------------------------------------------------------- the journal


def test_answered_requests_are_not_sent_again(tmp_path: Path) -> None:
    """Whatever line the file is cut in, only what is missing or torn goes over again, and the answers are the same."""
    file = tmp_path / "answers.jsonl"
    contexts = [ids_of(prompt) for prompt in PROMPTS[:4]]
    with serve(answering(lambda text: text[0]), VLLM) as server:
        whole = ask(engine(server, journal=Journal(file)), contexts)
        content = file.read_bytes()
        ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
        for cut in (0, 5, ends[0], ends[1] + 7, ends[3] - 1, ends[3]):
            file.write_bytes(content[:cut])
            present = sum(end <= cut or end - 1 == cut for end in ends)
            asked = len(server.bodies)
            again = ask(engine(server, journal=Journal(file)), contexts)
            assert len(server.bodies) - asked == 4 - present
            assert [(a.ids, a.finished) for a in again] == [(a.ids, a.finished) for a in whole]
            assert len(ask(engine(server, journal=Journal(file)), contexts)) == 4
            assert len(server.bodies) - asked == 4 - present
        other = ask(engine(server, journal=Journal(file)), contexts, max_new_tokens=5)  # the control: another request
        assert len(other) == 4
        assert len(server.bodies) - asked == 4


def test_failures_are_not_stored_in_the_journal(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with serve(lambda body, before: Say("no", 400) if not before else Say(completion(body)), VLLM) as server:
        assert ask(engine(server, journal=Journal(file)), [[3, 4]])[0].failed
        assert not ask(engine(server, journal=Journal(file)), [[3, 4]])[0].failed
