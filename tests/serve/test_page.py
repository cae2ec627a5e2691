"""The page at `/` in headless Chromium: runs, blind votes, keyboard, payloads; skipped without browser and driver."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srpo.data.read import read_pairs
from srpo.judge.votes import Votes
from srpo.revise.settings import RevisionSettings
from tests.revise.tiny import Scripted, reviser
from tests.serve.served import Served, get, post, serving

PAYLOADS = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    '"><iframe srcdoc="<script>parent.pwned=1</script>">',
    "javascript:window.pwned=1",
    "<a href=javascript:window.pwned=1>x</a><b>bold</b>",
    "${window.pwned=1}{{window.pwned=1}}",
    "</textarea><script>window.pwned=1</script>",
]


def payload_reviser() -> Any:
    """A reviser whose answers are the payload in its prompt, and one more word with every revision."""
    from srpo import Reviser
    from srpo.sequences.templates import RevisionTemplate
    from tests.conftest import make_byte_tokenizer, make_tiny_llama

    template = RevisionTemplate("test", "text", "{{ prompt }}|", "{{ prompt }}|{{ draft }}?")
    subject = Reviser(make_tiny_llama(), make_byte_tokenizer(), template)

    def answer(context: str) -> str:
        prompt, _, draft = context.partition("|")
        return draft.removesuffix("?") + " more" if draft else prompt

    engine = Scripted(subject, answer)
    engine.max_length = 4096
    return subject


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="module")
def page(votes: Path) -> Iterator[Served]:
    with serving(payload_reviser(), RevisionSettings(1, temperature=0.0), votes=str(votes)) as found:
        yield found


@pytest.fixture(scope="module")
def browser(page: Served) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("needs chromium and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=900,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


def wait(browser: Any, condition: str) -> Any:
    """The value of a JavaScript condition, once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda b: b.execute_script(f"return {condition}"))


def opened(browser: Any, page: Served) -> Any:
    browser.get(page.url + "/")
    wait(browser, "state.model !== ''")
    return browser


def ask(browser: Any, prompt: str) -> None:
    browser.execute_script("document.getElementById('prompt').value = arguments[0]", prompt)
    browser.execute_script("document.getElementById('form').requestSubmit()")
    wait(browser, "!state.running && state.steps.length > 0")


def picture(browser: Any, name: str) -> None:
    """Saves a screenshot where the environment names a folder for it."""
    if folder := os.environ.get("SRPO_TEST_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{name}.png")


def test_draft_and_revision_with_their_differences(browser: Any, page: Served) -> None:
    opened(browser, page)
    ask(browser, "The answer")
    assert [each.text for each in browser.find_elements("css selector", "#steps h3")] == ["draft", "revision 1"]
    assert browser.find_element("css selector", "#steps ins").text.strip() == "more"
    assert "stopped: revisions" in browser.find_element("id", "status").text
    picture(browser, "open")


def test_a_blind_vote_by_keyboard_is_a_pair_for_training_and_a_vote_for_judges(
    browser: Any, page: Served, votes: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page).find_element("id", "blind").click()
    prompt = browser.find_element("id", "prompt")
    prompt.send_keys("Blind")
    prompt.send_keys(Keys.CONTROL, Keys.ENTER)
    wait(browser, "state.pair !== null")
    picture(browser, "blind")
    assert browser.find_elements("css selector", "#steps article") == []  # nothing says which answer is the draft
    shown = browser.find_element("id", "a").text
    browser.switch_to.active_element.send_keys("1")
    wait(browser, "document.getElementById('status').textContent.startsWith('Thank you')")
    picture(browser, "voted")
    (row,) = [row for row in map(json.loads, votes.read_text("utf-8").splitlines()) if row["prompt"] == "Blind"]
    assert (row["chosen"], row["first"], row["blind"]) == (shown, shown, True)
    assert {*row["shown"].values()} == {"draft", "revision 1"}
    assert [pair.chosen for pair in read_pairs(str(votes)) if pair.prompt == "Blind"] == [shown]
    Votes(str(votes))


def test_the_order_of_a_blind_vote_is_random(browser: Any, page: Served) -> None:
    opened(browser, page)
    steps = "state.steps = [{text: 'a', step: 'draft'}, {text: 'b', step: 'revision 1'}]"
    seen = {browser.execute_script(f"{steps}; ask(true); return state.pair.first.text") for _ in range(40)}
    assert seen == {"a", "b"}


@pytest.mark.parametrize("blind", [False, True])
def test_no_payload_runs(browser: Any, page: Served, blind: bool) -> None:
    opened(browser, page)
    if blind:
        browser.find_element("id", "blind").click()
    for payload in PAYLOADS:
        ask(browser, payload)
        where = "#a, #b" if blind else "#steps .text"
        assert payload in [each.get_property("textContent") for each in browser.find_elements("css selector", where)]
    assert browser.execute_script("return window.pwned") is None
    assert browser.find_elements("css selector", "main img, main svg, main iframe, main a, main b") == []


def test_the_payloads_run_as_html(browser: Any) -> None:
    """The control of the test above: the same texts, written as HTML into a page without protection, do run."""
    browser.get("data:text/html,<body></body>")
    browser.execute_script("document.body.innerHTML = arguments[0]", PAYLOADS[1])
    assert wait(browser, "window.pwned") == 1


def test_phone_width_and_dark_mode(browser: Any, page: Served) -> None:
    opened(browser, page)
    emulate = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulate)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        ask(browser, "A long prompt without any space: " + "x" * 200)
        picture(browser, "phone-dark")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert back == "rgb(20, 23, 27)"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_loads_nothing_from_elsewhere(browser: Any, page: Served) -> None:
    opened(browser, page)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert loaded
    assert all(each.startswith(page.url) for each in loaded)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


# ---------------------------------------------------------------------- without a browser


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/....//app.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/page.js%00.css",
        "/static/",
        "/static/page.js/..",
        "/etc/passwd",
    ],
)
def test_no_other_file_is_served(page: Served, path: str) -> None:
    import http.client

    host = page.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.request("GET", path)  # sends the path as it is
    found = connection.getresponse()
    assert found.status in (400, 404)
    assert b"import" not in found.read()


def test_headers_forbid_scripts_of_others(page: Served) -> None:
    found = get(page.url + "/")
    assert found.status_code == 200
    assert "default-src 'none'; script-src 'self'" in found.headers["content-security-policy"]
    assert "access-control-allow-origin" not in get(page.url + "/health", headers={"origin": "https://a.b"}).headers
    form = post(page.url + "/v1/votes", content="{}", headers={"content-type": "text/plain"})
    assert form.status_code == 415


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"vote": "both"}, 409),
        ({"second": "a"}, 409),
        ({"first": 1}, 400),
        ({"prompt": 3}, 400),
        ({"other": "x"}, 400),
        ({"vote": "second"}, 409),
    ],
)
def test_a_wrong_vote_is_refused(page: Served, votes: Path, change: dict[str, Any], status: int) -> None:
    vote = {"prompt": "p", "first": "a", "second": "b", "vote": "first"}
    assert post(page.url + "/v1/votes", json=vote).status_code == 200
    before = votes.read_bytes()
    assert post(page.url + "/v1/votes", json=vote | change).status_code == status
    assert votes.read_bytes() == before


def test_a_server_without_a_file_takes_no_votes(served: Served) -> None:
    vote = {"prompt": "p", "first": "a", "second": "b", "vote": "first"}
    assert post(served.url + "/v1/votes", json=vote).status_code == 404


def test_the_carry_reviser_has_no_letters() -> None:
    """Why this page has a model of its own: the tokenizer of sums drops the letters of a payload."""
    subject = reviser()
    assert "script" not in subject.renderer.tokenizer.decode(subject.renderer.draft(PAYLOADS[0]))
