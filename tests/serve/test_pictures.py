"""Pictures in requests: data: URLs through the standard client, and bodies that name files, addresses or bombs."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from srpo import Reviser
from srpo.errors import ConfigError
from srpo.serve.asked import Asked, asked
from srpo.serve.pictures import PictureLimits
from tests.data.test_pictures import animated, bomb
from tests.revise.test_pictures import reviser_for
from tests.sequences.pictured import idefics_processor, picture, png
from tests.serve.served import GREEDY, Served, get, openai, post, serving


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def part(found: object, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": found, **more}}


def asking(*parts: object, text: str = "What?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def sees() -> Reviser:
    return reviser_for(idefics_processor())


@pytest.fixture(scope="module")
def seeing(sees: Reviser) -> Iterator[Served]:
    with serving(sees, max_pictures=2, max_pixels=4096, max_body=100_000) as served:
        yield served


def test_answers_are_those_of_the_reviser_with_the_same_pictures(sees: Reviser, seeing: Served) -> None:
    client, found = seeing.client(), []
    for colours in (["red"], ["green"], ["red", "green"]):
        parts = [part(url(png(picture(colour)))) for colour in colours]
        row = {"prompt": asking(*[{"type": "image"} for _ in colours]), "images": [png(picture(c)) for c in colours]}
        [trail] = sees.revise([row], 1, temperature=0.0, max_new_tokens=8, policy="always")
        options = {"model": "tiny@policy=always,k=1", "messages": asking(*parts)}
        answer = client.chat.completions.create(**options, extra_body={"return_trail": True})
        assert [step["text"] for step in answer.choices[0].srpo["trail"]] == [each.text for each in trail.answers]
        chunks = client.chat.completions.create(**options, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content == trail.after(1).text
        found.append((answer.usage.prompt_tokens, text))
    assert found[0][0] == found[1][0] < found[2][0]
    assert len({text for _, text in found}) > 1  # the control: a server without eyes would answer alike
    plain = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "What?"}])
    assert plain.usage.prompt_tokens < found[0][0]


GOOD = part(url(png()))
# name → the messages of a request, given a file with a picture, and words of the refusal
HOSTILE: dict[str, tuple[Callable[[str], Any], str]] = {
    "path": (lambda file: asking(part(file)), "is a data: URL, never a file or an address"),
    "file URL": (lambda file: asking(part(f"file://{file}")), "never a file or an address"),
    "address": (lambda file: asking(part("http://127.0.0.1:1/a.png")), "never a file or an address"),
    "spaces before": (lambda file: asking(part(" " + url(png()))), "never a file or an address"),
    "path part": (lambda file: asking({"type": "image", "path": file}), "a picture is a part"),
    "image part": (lambda file: asking({"type": "image", "image": file}), "a picture is a part"),
    "base64 part": (lambda file: asking({"type": "image", "base64": url(png())}), "a picture is a part"),
    "placeholder": (lambda file: asking({"type": "image"}), "a picture is a part"),
    "two sources": (lambda file: asking({**GOOD, "path": file}), "a picture is a part"),
    "text as source": (lambda file: asking({"type": "image_url", "image_url": url(png())}), "a picture is a part"),
    "unknown key": (lambda file: asking(part(url(png()), path=file)), "a picture is a part"),
    "no URL": (lambda file: asking({"type": "image_url", "image_url": {}}), "never a file or an address"),
    "URL of a list": (lambda file: asking(part([url(png())])), "never a file or an address"),
    "record": (
        lambda file: [{"role": "user", "content": "\ufffc?", "pictures": [{"sha256": "0" * 64, "path": file}]}],
        "'pictures' of a message is not taken",
    ),
    "record beside": (lambda file: [{**asking(GOOD)[0], "pictures": [{"path": file}]}], "is not taken"),
    "detail": (lambda file: asking(part(url(png()), detail="high")), "'detail' is not honoured"),
    "text as data": (lambda file: asking(part("data:text/plain;base64,aGk=")), "is a data: URL of another kind"),
    "percent coding": (lambda file: asking(part("data:image/png,%89PNG")), "is a data: URL of another kind"),
    "damaged base64": (lambda file: asking(part(url(png())[:-5] + "!")), "whose base64 is damaged"),
    "other letters": (lambda file: asking(part("data:image/png;base64,\u00e9")), "whose base64 is damaged"),
    "empty": (lambda file: asking(part("data:image/png;base64,")), "is empty"),
    "SVG": (lambda file: asking(part(url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"))), "is not a picture in PNG"),
    "torn": (lambda file: asking(part(url(png(picture(size=(64, 64)))[:90]))), "is torn"),
    "bomb": (lambda file: asking(part(url(bomb()))), "too many pixels; want at most 4096"),
    "many pixels": (lambda file: asking(part(url(png(picture(size=(65, 64)))))), "65 × 64 pixels; want at most 4096"),
    "animation": (lambda file: asking(part(url(animated("GIF")))), "is animated"),
    "many pictures": (lambda file: asking(GOOD, GOOD, GOOD), "3 pictures in one request; this server allows 2"),
    "object character": (lambda file: asking(GOOD, text="\ufffc"), "holds U+FFFC"),
    "system": (lambda file: [{"role": "system", "content": [part(file)]}, *asking()], "never a file or an address"),
    "unknown part": (lambda file: asking({"type": "input_image", "image_url": url(png())}), "messages"),
    "number as part": (lambda file: asking(GOOD, 7), "messages"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pictures_are_refused(kind: str, seeing: Served, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    make, words = HOSTILE[kind]
    found = post(f"{seeing.url}/v1/chat/completions", json={"model": "tiny", "messages": make(str(tmp_path / "a.png"))})
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (400, "messages")
    assert words in error["message"]
    assert len(error["message"]) < 400


def test_bodies_and_prompts_that_are_too_large(seeing: Served) -> None:
    body = {"model": "tiny", "messages": asking(part(url(b"\0" * 100_000)))}
    assert post(f"{seeing.url}/v1/chat/completions", json=body).status_code == 413
    with pytest.raises(openai.BadRequestError, match="texts are expected"):
        seeing.client().completions.create(model="tiny", prompt=asking(GOOD))


def test_text_models_engines_without_sight_and_servers_that_take_none(
    served: Served, sees: Reviser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is decoded: the bomb is refused by the same words."""

    def refused(at: Served) -> bool:
        answers = [
            post(f"{at.url}/v1/chat/completions", json={"model": "tiny", "messages": asking(each)})
            for each in (GOOD, part(url(bomb())))
        ]
        words = "messages: text is expected; this model or server takes no pictures"
        return all((each.status_code, each.json().get("error", {}).get("message")) == (400, words) for each in answers)

    assert refused(served)
    with serving(sees, max_pictures=0) as none:
        assert refused(none)
    with serving(sees) as sighted:
        assert not refused(sighted)
        monkeypatch.setattr(type(sees.engine), "pictured", False)
        assert refused(sighted)


class Shutter:
    """Holds back the checks of requests with pictures until `go` is set; `begun` is set at the first one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        monkeypatch.setattr("srpo.serve.app.asked", self._asked)

    def _asked(self, *words: Any, pictures: PictureLimits, **options: Any) -> Asked:
        if pictures.most:
            self.begun.set()
            self.go.wait()
        return asked(*words, pictures=pictures, **options)


@pytest.fixture
def shutter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shutter]:
    found = Shutter(monkeypatch)
    yield found
    found.go.set()  # no thread may wait beyond its test


def test_requests_that_wait_for_decoding_fill_the_queue(sees: Reviser, shutter: Shutter) -> None:
    with serving(sees, max_waiting=1) as served, ThreadPoolExecutor() as pool:
        address, body = f"{served.url}/v1/chat/completions", {"model": "tiny", "messages": asking(GOOD)}
        first = pool.submit(post, address, json=body)
        shutter.begun.wait()
        assert get(f"{served.url}/health").json()["waiting"] == 1
        assert "srpo_waiting 1.0" in get(f"{served.url}/metrics").text
        for messages in (asking(GOOD), asking()):
            refused = post(address, json={**body, "messages": messages})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        shutter.go.set()
        assert first.result().status_code == 200
        assert get(f"{served.url}/health").json()["waiting"] == 0
        assert post(address, json=body).status_code == 200


def test_the_time_that_a_request_waits_for_decoding_counts(sees: Reviser, shutter: Shutter) -> None:
    with serving(sees, request_timeout=0.2) as served, ThreadPoolExecutor() as pool:
        address, body = f"{served.url}/v1/chat/completions", {"model": "tiny", "messages": asking(GOOD)}
        first = pool.submit(post, address, json=body)
        shutter.begun.wait()
        late = post(address, json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        shutter.go.set()
        assert first.result().status_code == 504  # decoded in time or not, its 0.2 s are over


def test_a_processor_that_cannot_be_loaded_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def lost() -> Any:
        raise ConfigError("the processor needs a library", where="model", fix="pip install 'srpo[vision]'")

    subject = reviser_for(idefics_processor())
    subject.renderer.pictures = type(subject.renderer.pictures)(lost)  # type: ignore[attr-defined]
    with serving(subject) as served:
        found = post(f"{served.url}/v1/chat/completions", json={"model": "tiny", "messages": asking(GOOD)})
        assert found.status_code == 500
        assert "needs a library" in found.json()["error"]["message"]
        assert served.client().chat.completions.create(model="tiny", messages=asking()).choices


def test_logs_hold_a_hash_and_no_bytes(sees: Reviser, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), serving(sees, GREEDY, log_prompts=True) as served:
        served.client().chat.completions.create(model="tiny", messages=asking(GOOD))
    [line] = [record.getMessage() for record in caplog.records if "prompts=" in record.getMessage()]
    assert '"sha256"' in line
    assert "base64" not in caplog.text
    assert GOOD["image_url"]["url"][40:80] not in caplog.text


def test_votes_take_no_pictures(sees: Reviser, tmp_path: Path) -> None:
    with serving(sees, votes=str(tmp_path / "votes.jsonl")) as served:
        vote = {"prompt": asking(GOOD), "first": "a", "second": "b", "vote": "first"}
        found = post(f"{served.url}/v1/votes", json=vote)
    assert (found.status_code, (tmp_path / "votes.jsonl").exists()) == (400, False)
