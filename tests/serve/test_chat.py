"""`srpo chat`: lines in, answers and files out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from srpo import Reviser
from srpo.data.read import read_pairs, read_prompts
from srpo.errors import DataError
from srpo.judge.votes import Votes
from srpo.revise.settings import RevisionSettings
from srpo.serve.chat import Chat
from tests.revise.test_pictures import reviser_for
from tests.revise.tiny import Scripted, reviser
from tests.sequences.pictured import idefics_processor, picture, png

SETTINGS = RevisionSettings(1, temperature=0.0, max_new_tokens=8, policy="always")


def talk(folder: Path, *lines: str, terminal: bool = False, sighted: Reviser | None = None) -> tuple[str, Chat]:
    """What a conversation prints; a draft is "46", a revision adds 1 to what it is shown, but for a `sighted` model."""
    subject = sighted or reviser()
    if not (terminal or sighted):
        Scripted(subject, lambda context: str(int(context.rstrip("?").split("=")[1]) + 1) if "?" in context else "46")
    environment = {"TERM": "xterm-256color"}
    out = Console(file=io.StringIO(), width=100, force_terminal=terminal, highlight=False, _environ=environment)
    chat = Chat(subject, SETTINGS, str(folder / "votes.jsonl"), out)
    remaining = iter(lines)

    def read() -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    chat.run(read)
    file: Any = out.file
    return file.getvalue(), chat


def test_a_prompt_is_drafted_and_revised(tmp_path: Path) -> None:
    shown, _ = talk(tmp_path, "12+34=")
    assert "draft       46" in shown
    assert "revision 1  4[-6-]{+7+}" in shown
    assert "stopped: revisions" in shown


def test_pictures_of_the_next_prompt(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png(picture("red")))
    show, eyes = f"/picture {tmp_path / 'red.png'}", reviser_for(idefics_processor())
    shown, chat = talk(tmp_path, show, show, "What?", "/keep", sighted=eyes)
    assert "pictures of the next prompt: 2" in shown
    assert chat.chain is not None
    [row] = read_prompts([{"prompt": "What?", "images": [str(tmp_path / "red.png")] * 2}])
    [trail] = eyes.trails([row], SETTINGS)
    assert [each.text for each in chat.chain.answers] == [each.text for each in trail.answers]
    [vote] = read_pairs(str(tmp_path / "votes.jsonl"))
    assert vote.prompt == row.prompt
    shown, chat = talk(tmp_path, show, "What?", "And?", sighted=eyes)
    assert chat.chain is not None
    assert chat.chain.row.prompt == "And?"  # a picture belongs to one prompt
    shown, chat = talk(tmp_path, "/picture none.png", "/picture https://example.org/a.png", show, "/picture", "1+1=")
    assert shown.count("/picture: 'picture': no file") == 2
    assert "pictures of the next prompt: 0" in shown
    assert "draft       46" in shown
    shown, _ = talk(tmp_path, show, "/picture ~no-such-user/a.png", "1+1=")
    assert shown.count("a text model cannot be shown them") == 1  # and the prompt after it is answered
    assert "/picture: Could not determine home directory" in shown
    assert "draft       46" in shown


def test_a_refused_prompt_takes_its_pictures_along(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    eyes = reviser_for(idefics_processor())
    shown, chat = talk(tmp_path, f"/picture {tmp_path / 'red.png'}", "<image> What?", "And?", sighted=eyes)
    assert "holds '<image>' besides a picture" in shown
    assert "pictures of the next prompt: 0" in shown
    assert chat.chain is not None
    assert chat.chain.row.prompt == "And?"


def test_more_revisions_and_undo(tmp_path: Path) -> None:
    shown, chat = talk(tmp_path, "12+34=", "/revise 2", "/undo", "/revise")
    assert chat.chain is not None
    assert [answer.text for answer in chat.chain.answers] == ["46", "47", "48", "49"]
    assert "taken back: 49" in shown
    _, chat = talk(tmp_path, "12+34=", "/undo", "/undo")
    assert chat.chain is None


def test_keep_and_reject_write_pairs_that_training_and_judges_read(tmp_path: Path) -> None:
    talk(tmp_path, "12+34=", "/keep", "/keep", "1+1=", "/reject")
    file = str(tmp_path / "votes.jsonl")
    pairs = list(read_pairs(file))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        ("12+34=", "47", "46"),
        ("1+1=", "46", "47"),
    ]
    Votes(file)
    shown, _ = talk(tmp_path, "12+34=", "/reject")
    assert "contradicts an earlier vote" in shown
    assert len(list(read_pairs(file))) == 2


def test_a_contradiction_breaks_a_vote_file(tmp_path: Path) -> None:
    """The control of the test above: without the check the file could not be read."""
    file = tmp_path / "votes.jsonl"
    rows = [{"prompt": "p", "first": "a", "second": "b", "vote": vote} for vote in ("first", "second")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="contradicts"):
        Votes(str(file))


def test_save_system_and_policy(tmp_path: Path) -> None:
    from srpo.revise.trail_files import located_trails

    trails = tmp_path / "trails.jsonl"
    shown, chat = talk(
        tmp_path, "/policy drafts", "12+34=", f"/save {trails}", "/policy", "/system Add.", "/system", "/policy alway"
    )
    (trail,) = [trail for _, trail in located_trails(str(trails))]
    assert [answer.text for answer in trail.answers] == ["46"]
    assert "policy drafts, 0 revisions" in shown
    assert "system message: Add." in shown
    assert "did you mean 'always'?" in shown
    assert chat.policy.name == "drafts"


@pytest.mark.parametrize("line", ["/keep", "/undo", "/save x", "/revise", "/revise x", "/nonsense"])
def test_a_wrong_command_is_an_error_and_the_conversation_goes_on(tmp_path: Path, line: str) -> None:
    shown, chat = talk(tmp_path, line, "12+34=")
    assert "no answer yet" in shown or "unknown command" in shown
    assert chat.chain is not None


def test_the_draft_streams_in_a_terminal(tmp_path: Path) -> None:
    shown, chat = talk(tmp_path, "12+34=", terminal=True)
    assert chat.chain is not None
    text = chat.chain.answers[0].text
    assert text
    for length in (1, 3):  # shorter beginnings were shown before the whole draft
        assert f"\x1b[0m{text[:length]}\x1b" in shown or f"{text[:length]}\r" in shown or f"{text[:length]}\n" in shown
