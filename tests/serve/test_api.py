"""The API through the standard client, whole and streamed, sync and async, against the Reviser in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from srpo import Reviser
from srpo.data.read import PromptRow
from srpo.generate.engine import Decoding
from srpo.revise.chain import Chain
from srpo.revise.policy import Policy
from srpo.revise.settings import RevisionSettings
from srpo.sequences.render import Renderer
from srpo.serve.asked import asked
from srpo.serve.scheduler import begun
from tests.conftest import make_byte_tokenizer
from tests.revise.test_drift import LONG, SHORT, calibrated
from tests.revise.tiny import PROMPTS, Scripted, reviser
from tests.sequences.chats import bundled, chat_tokenizer
from tests.serve.served import GREEDY, Served, get, openai, post, serving

NAMES = [
    ("tiny@draft", 0, "auto"),
    ("tiny", 1, "auto"),
    ("tiny@k=2", 2, "auto"),
    ("tiny@policy=always,k=2", 2, "always"),
]


def answers(subject: Reviser, prompt: str, revisions: int, policy: str) -> tuple[str, list[str]]:
    """The final answer and all answers, drawn without a server."""
    (trail,) = subject.revise([prompt], revisions, temperature=0.0, max_new_tokens=8, policy=policy)
    return trail.after(revisions).text, [answer.text for answer in trail.answers]


def joined(stream: Any) -> tuple[str, list[Any]]:
    chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


@pytest.mark.parametrize(("name", "revisions", "policy"), NAMES)
def test_answers_are_those_of_the_reviser(tiny: Reviser, client: Any, name: str, revisions: int, policy: str) -> None:
    for prompt in PROMPTS[:3]:
        final, every = answers(tiny, prompt, revisions, policy)
        messages = [{"role": "user", "content": prompt}]
        options = {"model": name, "extra_body": {"return_trail": True}}
        chat = client.chat.completions.create(messages=messages, **options)
        plain = client.completions.create(prompt=prompt, **options)
        assert chat.choices[0].message.content == plain.choices[0].text == final
        assert [step["text"] for step in chat.choices[0].srpo["trail"]] == every
        text, chunks = joined(client.chat.completions.create(messages=messages, stream=True, **options))
        assert text == final
        events = [c.choices[0].srpo["event"] for c in chunks if "event" in (getattr(c.choices[0], "srpo", None) or {})]
        assert [event["text"] for event in events] == every
        assert chunks[-1].usage == chat.usage
        assert chunks[-1].choices[0].finish_reason == chat.choices[0].finish_reason


def test_names_differ_in_their_answers(client: Any) -> None:
    """The control of the test above: a server that ignored the names would pass it if all answers were equal."""
    found = {
        client.completions.create(model=name, prompt=PROMPTS[1]).choices[0].srpo["revisions"]
        for name in ("tiny@draft", "tiny@policy=always,k=2")
    }
    assert len(found) == 2


def test_the_async_client(tiny: Reviser, served: Served) -> None:
    async def ask() -> list[str]:
        async with served.async_client() as client:
            one = await client.completions.create(model="tiny@k=2", prompt=PROMPTS[0])
            stream = await client.completions.create(
                model="tiny@k=2", prompt=PROMPTS[0], stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].choices == []
            assert chunks[-1].usage == one.usage
            assert all(chunk.usage is None for chunk in chunks[:-1])
            return [one.choices[0].text, "".join(c.choices[0].text for c in chunks if c.choices)]

    assert asyncio.run(ask()) == [answers(tiny, PROMPTS[0], 2, "auto")[0]] * 2


def test_usage_counts_draft_and_revisions(tiny: Reviser, client: Any) -> None:
    (trail,) = tiny.revise([PROMPTS[0]], 2, temperature=0.0, max_new_tokens=8, policy="always")
    used = client.completions.create(model="tiny@policy=always,k=2", prompt=PROMPTS[0]).usage
    draft, *rest = trail.answers
    assert used.completion_tokens == sum(answer.tokens for answer in trail.answers)
    assert used.prompt_tokens == draft.forward_tokens - draft.tokens
    details = used.completion_tokens_details
    assert (details.draft_tokens, details.revision_tokens) == (draft.tokens, sum(answer.tokens for answer in rest))
    assert details.forward_tokens == sum(answer.forward_tokens for answer in trail.answers)


def test_a_seed_repeats_draws_of_revise(tiny: Reviser, client: Any) -> None:
    options = {"temperature": 1.0, "max_new_tokens": 8, "seed": 7, "policy": "always"}
    trails = tiny.revise([PROMPTS[0]] * 2, 1, **options)
    found = client.completions.create(
        model="tiny@policy=always", prompt=PROMPTS[0], temperature=1, seed=7, n=2, max_tokens=8
    )
    assert [choice.text for choice in found.choices] == [trail.after(1).text for trail in trails]


def test_requests_without_a_seed_draw_anew(served: Served) -> None:
    def keys(**fields: Any) -> list[str]:
        body = {"model": "tiny", "prompt": "5+5=", "temperature": 1, **fields}
        found = asked(body, chat=False, name="tiny", most=5, choices=5)
        return [job.chain.key for job in served.service.model.jobs(found)[0]]

    assert keys() != keys()
    assert keys(seed=3) == keys(seed=3) == keys(temperature=0)
    assert len({*keys(n=3), *keys(n=3)}) == 6


def test_stop_texts_cut_the_draft_before_it_is_revised() -> None:
    subject = reviser()
    Scripted(subject, lambda context: "46" if "?" in context else "123+4")
    with serving(subject) as served:
        client = served.client()
        draft = client.completions.create(
            model="tiny@draft", prompt="12+34=", stop=["+", "9"], extra_body={"return_trail": True}
        ).choices[0]
        assert (draft.text, draft.finish_reason) == ("123", "stop")
        revised = client.completions.create(
            model="tiny", prompt="12+34=", stop="6", extra_body={"return_trail": True}
        ).choices[0]
        assert [step["text"] for step in revised.srpo["trail"]] == ["123+4", "4"]


@pytest.mark.parametrize("address", ["completions", "chat/completions"])
@pytest.mark.parametrize("form", ["path", "image_url", "pictures", "data"])
def test_pictures_of_requests_are_refused_unread(served: Served, tmp_path: Path, address: str, form: str) -> None:
    from tests.sequences.pictured import png

    file = tmp_path / "a.png"
    file.write_bytes(png())
    part: dict[str, Any] = {"type": "image", "path": str(file)}
    if form == "image_url":
        part = {"type": "image_url", "image_url": {"url": str(file)}}
    elif form == "data":
        part = {"type": "image", "base64": base64.b64encode(png()).decode()}
    message: dict[str, Any] = {"role": "user", "content": [part, {"type": "text", "text": "?"}]}
    if form == "pictures":
        message = {"role": "user", "content": "\ufffc?", "pictures": [{"path": str(file)}]}
    key = "messages" if "chat" in address else "prompt"
    found = post(f"{served.url}/v1/{address}", json={"model": "tiny", key: [message]})
    assert found.status_code == 400
    assert found.json()["error"]["param"] == key
    refusal = "'pictures' of a message is not taken" if form == "pictures" else "this model or server takes no pictures"
    wanted = refusal if "chat" in address else "texts are expected"
    assert wanted in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}], 400),
        ("response_format", {"type": "json_object"}, 400),
        ("top_p", 0.5, 400),
        ("logprobs", True, 400),
        ("temperature", 3, 400),
        ("temperature", True, 400),
        ("n", 0, 400),
        ("n", 99, 400),
        ("stop", ["a", "b", "c", "d", "e"], 400),
        ("n_revisions", 99, 400),
        ("policy", "allways", 400),
        ("seed", 1.5, 400),
        ("stream", "yes", 400),
        ("temprature", 1, 400),
        ("messages", [], 400),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], 400),
        ("model", "other", 404),
        ("model", "tiny@k=x", 404),
    ],
)
def test_a_field_is_refused_by_its_name(served: Served, field: str, value: object, status: int) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "1+1="}], field: value}
    found = post(f"{served.url}/v1/chat/completions", json=body)
    assert found.status_code == status
    error = found.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert error["param"] == field
    assert field in error["message"] or field == "model"


def test_fields_without_effect_are_taken(client: Any) -> None:
    found = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "1+1="}],
        top_p=1,
        presence_penalty=0,
        user="me",
        tools=[],
        response_format={"type": "text"},
        logprobs=False,
        metadata={"a": "b"},
    )
    assert found.choices[0].message.role == "assistant"


def test_a_prompt_that_does_not_fit(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="leaves 0 of the model's 64") as error:
        client.completions.create(model="tiny", prompt="1" * 70)
    assert error.value.code == "context_length_exceeded"


def test_models_health_and_metrics(client: Any, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@draft", "tiny@k=1", "tiny@k=2"]
    assert client.models.retrieve("tiny@k=3").parent == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert get(f"{served.url}/health").json()["status"] == "ok"
    client.completions.create(model="tiny", prompt="1+1=")
    text = get(f"{served.url}/metrics").text
    for line in (
        'srpo_requests_total{path="/v1/completions",status="200"}',
        'srpo_tokens_total{kind="revision"}',
        "srpo_waiting 0.0",
        'srpo_seconds_count{stage="draft"}',
        "srpo_trails_total{stopped=",
    ):
        assert line in text


def test_the_policy_stored_with_a_model_is_the_default() -> None:
    from srpo.revise.stored_calibration import CalibratedPolicy, Calibration
    from srpo.serve.model import ServedModel

    subject = reviser()
    choice = CalibratedPolicy("drafts", 0, 0.0, 0.0, 0.0, "always, k = 1")
    subject.calibration = Calibration(choice, 9, 9, None, None, None, None, None, None, (), {})
    model = ServedModel(subject, RevisionSettings(5, temperature=0.0))
    assert (model.policy.name, model.revisions) == ("drafts", 0)
    assert [each if isinstance(each, int) else each.name for each in model.policy_for("", 2)] == ["always", 2]
    assert model.policy_for("always", None)[1] == 5


def test_the_calibration_stored_with_a_model_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    subject = reviser()
    calibrated(subject, SHORT)  # two revisions, and the vote
    settings = RevisionSettings(5, max_new_tokens=3)
    with serving(subject, settings, max_choices=40) as served:

        def ask(prompts: list[str], **fields: Any) -> list[dict[str, Any]]:
            body = {"model": "tiny", "prompt": prompts, "seed": 2, "return_trail": True, **fields}
            choices: list[dict[str, Any]] = post(f"{served.url}/v1/completions", json=body).json()["choices"]
            return choices

        voted = [trail.after(2).text for trail in subject.revise(SHORT, 5, seed=2, max_new_tokens=3)]
        assert [choice["text"] for choice in ask(SHORT)] == voted
        assert get(f"{served.url}/health").json()["policy"] == "always"
        # Unlike prompts: after the first 32 prompts, one greedy draft. Drafts at another temperature are not counted.
        ask(LONG + LONG, temperature=0)
        ask(LONG + LONG, policy="greedy")
        assert not caplog.records
        with caplog.at_level(logging.WARNING, "srpo"):
            assert {len(choice["srpo"]["trail"]) for choice in ask(LONG)} == {3}
        assert "prompts unlike those of the calibration (length of the prompt, tokens" in caplog.text
        assert {len(choice["srpo"]["trail"]) for choice in ask(LONG)} == {1}
        assert get(f"{served.url}/health").json()["policy"] == "greedy"
        assert len(ask(LONG, policy="always", n_revisions=1)[0]["srpo"]["trail"]) == 2


def test_a_draft_alone_is_streamed_while_it_is_written(client: Any, served: Served) -> None:
    def deltas(model: str, **fields: Any) -> list[str]:
        asked = {"model": model, "prompt": PROMPTS[0], "temperature": 0.0, **fields}
        return [
            each.choices[0].text for each in client.completions.create(stream=True, **asked) if each.choices[0].text
        ]

    whole = client.completions.create(model="tiny@draft", prompt=PROMPTS[0], temperature=0.0).choices[0].text
    assert len(whole) > 3
    pieces = deltas("tiny@draft")
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    # Controls: an answer that revisions decide comes as a whole; a stop text ends the stream where it ends the answer.
    assert len(deltas("tiny@k=1")) == 1
    assert "".join(deltas("tiny@draft", stop=[whole[2:4]])) == whole[: whole.index(whole[2:4])]


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("qwen3", "<think>\nhm\n</think>\n\nyes it is"),
        ("qwen3", "yes it is"),
        ("qwen3_5_think", "hm\n</think>\n\nyes it is"),
    ],
)
def test_no_thinking_is_sent_early(template: str, written: str) -> None:
    tokenizer = chat_tokenizer(bundled(template))
    renderer = Renderer(tokenizer)
    chain = Chain(PromptRow("?", "", {}), "key", Policy.named("always"), 0)
    ids = [*tokenizer(written, add_special_tokens=False)["input_ids"], renderer.stop_ids[0]]
    sent = [begun(renderer, chain, ids[:length]) for length in range(1, len(ids) + 1)]
    assert all("yes it is".startswith(each) for each in sent)
    assert ("yes it" in sent) == (written == "yes it is")


@pytest.mark.parametrize("stop", [(), ("STOP",), ("S", "never")])
def test_what_is_sent_early_begins_every_later_text(stop: tuple[str, ...]) -> None:
    tokenizer = make_byte_tokenizer()
    renderer = Renderer(tokenizer)
    chain = Chain(PromptRow("?", "", {}), "key", Policy.named("always"), 0, stop=stop)
    text = "né 🙂 as STO go STOP end  "
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], renderer.stop_ids[0]]
    final = chain.cut(text)[0]
    sent = [begun(renderer, chain, ids[:length]) for length in range(1, len(ids) + 1)]
    for before, after in zip(sent, [*sent[1:], final], strict=True):
        assert after.startswith(before)
    assert not any("\ufffd" in each for each in sent)
    assert len({*sent}) > 2 + 5 * (stop == ())


def test_concurrent_requests_share_batches() -> None:
    subject = reviser()
    Scripted(subject, lambda context: "46")
    sizes: list[int] = []
    complete = subject.engine.complete

    class Counting(type(subject.engine)):  # type: ignore[misc]
        def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> Any:
            sizes.append(len(contexts))
            return complete(contexts, keys, decoding, **more)

    subject.engine.__class__ = Counting
    with serving(subject) as served:
        body = {"model": "tiny@draft", "prompt": [f"{i}+{i}=" for i in range(8)], "n": 2}
        found = post(f"{served.url}/v1/completions", json=body)
        assert [choice["text"] for choice in found.json()["choices"]] == ["46"] * 16
    assert sizes == [16]


def test_keys_and_hosts(monkeypatch: pytest.MonkeyPatch, tiny: Reviser) -> None:
    monkeypatch.setenv("MY_KEYS", "right-key-one, right-key-two")
    with serving(tiny, GREEDY, keys_env="MY_KEYS") as served:
        for key in ("right-key-one", "right-key-two"):
            assert served.client(key).models.list().data
        for key in ("wrong", "right-key-on", "right-key-one,"):
            with pytest.raises(openai.AuthenticationError) as error:
                served.client(key).models.list()
            assert error.value.code == "invalid_api_key"
        assert get(f"{served.url}/metrics").status_code == 401
        assert get(f"{served.url}/health").status_code == 200
        assert get(f"{served.url}/health", headers={"host": "evil.example"}).status_code == 403


def test_the_access_log_has_no_prompt(client: Any, caplog: pytest.LogCaptureFixture, tiny: Reviser) -> None:
    with caplog.at_level("INFO", logger="srpo"):
        client.completions.create(model="tiny", prompt="99+77=")
        with serving(tiny, GREEDY, log_prompts=True) as served:
            served.client().completions.create(model="tiny", prompt="88+66=")
    lines = [record.getMessage() for record in caplog.records if record.name == "srpo.access"]
    assert any("/v1/completions 200" in line and "completion_tokens=" in line for line in lines)
    assert "99+77=" not in caplog.text
    assert json.dumps(["88+66="]) in caplog.text
