"""`srpo serve`: a model that drafts and revises behind OpenAI's API, with a page to try it."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.cli.trails import ModelArguments
from srpo.revise.settings import RevisionSettings
from srpo.serve.settings import ServeSettings
from srpo.settings import part, setting

DESCRIPTION = """Serve a model that drafts and revises, with OpenAI's API.

srpo serve my-model
srpo serve my-model --engine openai --base_url http://localhost:9000/v1

The model's name chooses the policy: my-model, my-model@draft, my-model@k=2, my-model@policy=always.
"""


@dataclass(kw_only=True)
class Arguments(ModelArguments):
    """Settings of `srpo serve`, which offers a model that drafts and revises through OpenAI's API."""

    model_name_or_path: str = setting("", "Folder or hub name of a trained model or adapter.", positional=True)
    revision: RevisionSettings = part(
        RevisionSettings, without=("seed",), revisions=1, group="requests that name nothing else"
    )
    server: ServeSettings = part(ServeSettings, group="server")


def main(argv: list[str]) -> int:
    """Runs `srpo serve`: answers HTTP requests until SIGTERM or Ctrl-C; returns the exit code."""
    args = parse("serve", DESCRIPTION, Arguments, argv)
    args.expect_model("serve")
    args.server.keys()  # before weights are read

    from srpo.serve.run import expect_installed, listening, name_of, serve

    expect_installed()
    quiet_transformers()
    with listening(args.server) as on:
        name = name_of(args.engine.endpoint.model or args.model_name_or_path, args.server)
        return serve(args.reviser(), name, args.revision, args.server, on)
