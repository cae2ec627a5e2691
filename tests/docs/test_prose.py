"""The pages keep the limits of words that the code keeps."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.house.prose import RATES

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
]
# Fenced and indented blocks, table rows and code spans are no prose.
NO_PROSE = re.compile(r"^```.*?^```$|^    [^\n]*$|^\|[^\n]*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"^%", re.MULTILINE)


def word_rates(pages: list[str]) -> list[str]:
    """Words that a plain sentence rarely needs, used more often in the pages than `RATES` allows."""
    words, found = 0, Counter[str]()
    for page in pages:
        text = NO_PROSE.sub("", page)
        words += len(re.findall(r"[\w'-]+", text))
        for name, (pattern, _) in RATES.items():
            found[name] += len(re.findall(pattern, text, 0 if name == "none" else re.IGNORECASE))
    rates = {name: 1000 * found[name] / max(words, 1) for name in RATES}
    return [f"{name}: {rate:.1f} per 1,000 words" for name, rate in rates.items() if rate > RATES[name][1]]


def test_the_pages_keep_the_limits() -> None:
    assert word_rates([page.read_text("utf-8") for page in PAGES]) == []


def test_no_line_is_a_comment_of_the_website() -> None:
    """MyST leaves out a line that starts with a percent sign."""
    assert not [page.name for page in PAGES if COMMENT.search(NO_PROSE.sub("", page.read_text("utf-8")))]
    assert COMMENT.search("right totals in\n% of 500 orders\n")


def test_a_page_beyond_the_limits_is_found() -> None:
    assert word_rates(["What is said stands. `what`\n\n    what\n\n| what |\n\n```text\nwhat\n```\n"]) == [
        "what: 250.0 per 1,000 words",
        "stand(s): 250.0 per 1,000 words",
        "say, tell: 250.0 per 1,000 words",
    ]
