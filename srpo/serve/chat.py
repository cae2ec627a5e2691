"""A conversation in the terminal: one prompt at a time, its draft, its revisions with their changes, and votes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from srpo.data.picture import Picture, picture_of
from srpo.data.read import Prompt, PromptRow, read_prompts
from srpo.data.values import Unusable
from srpo.disk import JSONLines
from srpo.errors import ConfigError, DataError, SRPOError
from srpo.judge.votes import append_vote
from srpo.report.trail_page import ending, step_text, steps
from srpo.revise.chain import Chain, expect_sent, key_of
from srpo.revise.reviser import Reviser, Written
from srpo.revise.select import selector_of
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Answer

HELP = """  any text        drafts an answer and revises it
  /revise [N]     N more revisions of the answer, 1 without a number
  /policy [NAME]  policy of the next prompts: always, if_preferred, until_worse, until_unchanged, fixed:K, drafts
  /system [TEXT]  system message of the next prompts; without a text there is none
  /picture [FILE] shows a picture with the next prompt, and further ones; without a file there is none
  /undo           takes the last revision back, or the prompt if there is only a draft
  /keep, /reject  appends a preference: the last answer before the draft, or the draft before the last answer
  /save FILE      appends the trail to a file that `srpo evaluate` reads
  /help, /quit
"""


@dataclass
class Chat:
    """A conversation with one model in the terminal.

    Attributes:
        reviser: The model.
        settings: Sampling, policy and number of revisions.
        votes: File that collects the person's votes.
        console: The terminal.
    """

    reviser: Reviser
    settings: RevisionSettings
    votes: str
    console: Console
    system: str = ""
    pictures: list[Picture] = field(default_factory=list)  # of the next prompt
    chain: Chain | None = None
    _seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._plan(self.settings)

    def _plan(self, settings: RevisionSettings) -> None:
        """Replaces the settings, with the policy, selector and number of revisions that follow from them.

        An error leaves the old settings in place.
        """
        policy, revisions = self.reviser.policy(settings)
        self.select = selector_of(self.reviser, policy, self.reviser.select_by(settings))
        self.policy, self.revisions, self.settings = policy, revisions, settings

    def run(self, read: Callable[[], str]) -> None:
        """Reads lines until /quit or the end of the input; an error is printed and the conversation continues.

        Args:
            read: Returns the next line; EOFError ends the conversation.
        """
        self.console.print("/help lists the commands.", style="dim")
        while True:
            try:
                line = read().strip()
            except EOFError:
                return
            if line in ("/quit", "/exit"):
                return
            try:
                if line:
                    self.take(line)
            except SRPOError as error:
                self.console.print(f"  {error}", style="red", markup=False, soft_wrap=True)

    def take(self, line: str) -> None:
        """Carries out one line that a person typed: a command, or a prompt to answer.

        Raises:
            SRPOError: The command is unknown or cannot be carried out.
        """
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "revise": self._more,
            "policy": self._policy,
            "system": self._system,
            "picture": self._picture,
            "undo": self._undo,
            "keep": lambda _: self._vote("second"),
            "reject": lambda _: self._vote("first"),
            "save": self._save,
            "help": lambda _: self.console.print(HELP, markup=False, end=""),
        }
        if name not in commands:
            raise ConfigError(f"unknown command /{name}", fix="/help lists the commands")
        commands[name](rest.strip())

    def ask(self, text: str) -> None:
        """Drafts an answer to a prompt, revises it, and prints both."""
        prompt: Prompt = text
        if self.system:
            prompt = [{"role": "system", "content": self.system}, {"role": "user", "content": text}]
        pictures, self.pictures = self.pictures, []  # also if the prompt is refused, or it would refuse the next one
        try:
            row = self._row(prompt, pictures)
        except SRPOError:
            if pictures:
                self.console.print("  pictures of the next prompt: 0", style="dim")
            raise
        first = key_of(row.prompt, 0)
        self.chain = Chain(row, key_of(row.prompt, self._seen[first]), self.policy, self.revisions, self.select)
        self._seen[first] += 1
        self._draw(self.chain)

    def _row(self, prompt: Prompt, pictures: list[Picture]) -> PromptRow:
        """A prompt with its pictures; raises SRPOError if the model cannot be shown it."""
        row = PromptRow(prompt, "", {})
        if pictures:
            [row] = read_prompts([{"prompt": prompt, "images": pictures}])
        self.reviser.renderer.expect_shown(row)
        expect_sent([row], self.reviser.engine)
        return row

    # ------------------------------------------------------------------ drawing

    def _draw(self, chain: Chain) -> None:
        """Draws answers until the chain ends, each printed with its changes, then the reason of the end."""
        while not chain.ended:
            with self._streaming(chain) as watch:
                self.reviser.step([chain], self.settings, watch)
            trail = chain.trail()
            if chain.answers and not (chain.failed or chain.impossible):
                *_, last = steps(trail)
                marks = not self.console.is_terminal
                self.console.print(step_text(*last, marks=marks), end="", soft_wrap=marks)
        (trail,) = self.reviser.finish([chain])
        self.console.print(f"  stopped: {ending(trail)}", style="dim", markup=False)

    @contextmanager
    def _streaming(self, chain: Chain) -> Iterator[Written | None]:
        """Shows the tokens of an answer while it is written, where the engine reports them and this is a terminal."""
        if not self.console.is_terminal:
            yield None
            return
        name = f"revision {len(chain.answers)}" if chain.answers else "draft"
        with Live(console=self.console, transient=True, auto_refresh=False) as live:

            def show(_: Chain, ids: list[int]) -> None:
                text = Text.assemble((f"  {name:<12}", "cyan"), self.reviser.renderer.decode(ids))
                live.update(text, refresh=True)

            yield show

    # ------------------------------------------------------------------ commands

    def _current(self) -> Chain:
        if self.chain is None or not self.chain.answers:
            raise ConfigError("there is no answer yet", fix="write a prompt first")
        return self.chain

    def _more(self, rest: str) -> None:
        chain = self._current()
        if rest and not (rest.isascii() and rest.isdigit() and 0 < int(rest) < 100):
            raise ConfigError(f"{rest!r}", where="/revise", expected="a number of revisions")
        chain.stopped = chain.failed = chain.impossible = ""
        chain.limit = len(chain.answers) - 1 + int(rest or 1)
        self._draw(chain)

    def _policy(self, rest: str) -> None:
        if rest:
            self._plan(replace(self.settings, policy=rest))
        self.console.print(f"  policy {self.policy.name}, {self.revisions} revisions at most", style="dim")

    def _system(self, rest: str) -> None:
        self.system = rest
        self.console.print(
            "  " + (f"system message: {rest}" if rest else "no system message"), style="dim", markup=False
        )

    def _picture(self, rest: str) -> None:
        try:
            pictures = [*self.pictures, picture_of(Path(rest).expanduser(), "picture")] if rest else []
        except (Unusable, RuntimeError) as problem:  # RuntimeError: the home folder of ~name is unknown
            raise DataError(str(problem), where="/picture") from None
        if pictures:
            self._row("?", pictures)  # refused here if the model sees no pictures
        self.pictures = pictures
        self.console.print(f"  pictures of the next prompt: {len(self.pictures)}", style="dim")

    def _undo(self, _: str) -> None:
        chain = self._current()
        gone = chain.answers.pop()
        if not chain.answers:
            self.chain = None
            self.console.print("  the prompt is taken back", style="dim")
            return
        chain.stopped = chain.failed = chain.impossible = ""
        chain.in_hand = chain.trail().last_kept(len(chain.answers))
        chain.limit = len(chain.answers) - 1
        self.console.print(f"  taken back: {gone.text}", style="dim", markup=False)
        self.console.print(f"  answer: {chain.in_hand.text}", markup=False)

    def _vote(self, vote: str) -> None:
        chain = self._current()
        draft, last = chain.answers[0], self._last_other(chain)
        more = {"shown": {"first": "draft", "second": "revision"}, "blind": False}
        append_vote(self.votes, chain.row.prompt, draft.text, last.text, vote, **more)
        kept = "the revision" if vote == "second" else "the draft"
        self.console.print(f"  {self.votes}: {kept} is preferred", style="dim", markup=False)

    @staticmethod
    def _last_other(chain: Chain) -> Answer:
        """The newest revision that differs from the draft."""
        for answer in reversed(chain.answers[1:]):
            if answer.text != chain.answers[0].text:
                return answer
        raise ConfigError("no revision differs from the draft", fix="/revise draws another one")

    def _save(self, rest: str) -> None:
        chain = self._current()
        if not rest:
            raise ConfigError("no file is named", where="/save", fix="/save trails.jsonl")
        JSONLines(Path(rest)).append(json.loads(chain.trail().to_json()))
        self.console.print(f"  {rest}: one trail added", style="dim", markup=False)
