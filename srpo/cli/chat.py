"""`srpo chat`: a conversation with a model in the terminal, with drafts, revisions and votes on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.cli.trails import ModelArguments
from srpo.revise.settings import RevisionSettings
from srpo.settings import part, setting

DESCRIPTION = """Try a model in the terminal: it drafts, revises, and shows the changes.

srpo chat my-model
"""


@dataclass(kw_only=True)
class Arguments(ModelArguments):
    """Settings of `srpo chat`: model, sampling, and the file that collects a person's preferences between answers."""

    model_name_or_path: str = setting("", "Folder or hub name of a trained model or adapter.", positional=True)
    revision: RevisionSettings = part(RevisionSettings, revisions=1)
    votes: str = setting("votes.jsonl", "File that /keep and /reject append preferences to.")


def main(argv: list[str]) -> int:
    """Runs `srpo chat`: answers each typed prompt by draft and revisions until /quit or end of input; returns 0."""
    args = parse("chat", DESCRIPTION, Arguments, argv)
    args.expect_model("chat")

    from rich.console import Console

    from srpo.disk import writable_file
    from srpo.serve.chat import Chat

    writable_file(Path(args.votes), "--votes")
    quiet_transformers()
    console = Console(highlight=False)
    chat = Chat(args.reviser(), args.revision, args.votes, console)
    chat.run(lambda: console.input("[bold]> [/bold]"))
    return 0
