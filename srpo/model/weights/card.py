"""The model card: README.md beside a saved model, in the hub's format, without absolute paths and secrets.

A card that a person wrote is never changed: srpo's card is then SRPO_CARD.md, and the log names it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from srpo.secrets import redacted, redacted_command
from srpo.versions import versions

CARD_FILE = "README.md"
OTHER_CARD_FILE = "SRPO_CARD.md"
MARK = "<!-- Written by srpo, and written anew with the model; take this line out to keep your changes. -->"
SHOWN = (  # settings that the card shows
    *("objective", "beta", "alpha", "logps_reduction", "learning_rate", "lr_scheduler_type", "num_train_epochs"),
    *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "truncate", "seed"),
)
_PATH = re.compile(r"(?<![\w.:/~-])~?(?:/[\w.@+-]+){2,}")  # an absolute path that is not part of a URL
CITATION = """@inproceedings{choi2025srpo,
  title     = {Self-Improving Robust Preference Optimization},
  author    = {Choi, Eugene and Ahmadian, Arash and Geist, Matthieu and Pietquin, Olivier and
               Azar, Mohammad Gheshlaghi},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2406.01660}
}"""


@dataclass(frozen=True)
class Card:
    """Contents of a model card, the README.md of a saved model.

    Attributes:
        base: folder or hub name of the model that was trained; the card shows only the last part of a folder's path.
        adapter: whether the saved model is an adapter.
        settings: all settings of the training by name; the card shows those in `SHOWN`.
        facts: further lines for the table of settings: reference, template, data.
        results: name of a metric → its value in the last evaluation.
        command: words of the command line; empty for a run started from Python.
        comments: paragraphs below the title.
    """

    base: str
    adapter: bool
    settings: Mapping[str, object]
    facts: Mapping[str, object]
    results: Mapping[str, float] = field(default_factory=dict)
    command: Sequence[str] = ()
    comments: Sequence[str] = ()

    def text(self) -> str:
        """Returns the model card as Markdown text, front matter included."""
        base = portable(self.base)
        on_hub = bool(base) and not os.path.isdir(self.base)
        front = [
            "library_name: " + ("peft" if self.adapter else "transformers"),
            "pipeline_tag: text-generation",
            *([f"base_model: {json.dumps(base)}"] if on_hub else []),
            f"license: {licence_of(self.base)}  # the base model's; unknown where its card does not say",
            "tags: [srpo, preference-optimization]",
        ]
        shown = {name: self.settings[name] for name in SHOWN if self.settings.get(name) is not None}
        parts = [
            "---\n" + "\n".join(front) + "\n---",
            MARK,
            f"# {'An adapter' if self.adapter else 'A model'} trained with srpo" + (f" from {base}" if base else ""),
            *self.comments,
            "It drafts an answer and revises it; `revision_template.json` beside it says how a draft is shown:\n\n"
            "```sh\nsrpo revise --model_name_or_path THIS_FOLDER --input prompts.jsonl --output trails.jsonl\n```",
            "## Training\n\n" + _table({**self.facts, **shown}),
            "## Results\n\n" + (_table(self.results) if self.results else "None were measured in training."),
            *(["## Command\n\n```sh\n" + portable_command(self.command) + "\n```"] if self.command else []),
            "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions().items() if version),
            "## Citation\n\n```bibtex\n" + CITATION + "\n```",
        ]
        return str(redacted("\n\n".join(parts) + "\n"))


def write_card(folder: Path, card: Card, theirs: bytes | None) -> None:
    """Writes a model card into the folder of a saved model, as README.md or beside a README.md that a person wrote.

    Args:
        card: contents of the card.
        theirs: README.md as `read_card` returned it before the model was saved, since PEFT changes it; None if absent.
    """
    file = folder / CARD_FILE
    if theirs is not None:
        file.write_bytes(theirs)
        if MARK.encode() not in theirs:
            logging.getLogger("srpo").info("srpo: %s is not srpo's and stays; the card is %s", file, OTHER_CARD_FILE)
            file = folder / OTHER_CARD_FILE
    file.write_text(card.text(), "utf-8")


def read_card(folder: Path) -> bytes | None:
    """Returns the contents of the folder's README.md; None if it has none."""
    try:
        return (folder / CARD_FILE).read_bytes()
    except OSError:
        return None


def licence_of(base: str) -> str:
    """Returns the licence named in README.md of the base model's folder; "unknown" without one, or for a hub name."""
    text = (read_card(Path(base)) or b"").decode("utf-8", "replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    named = re.search(r"^license: *([\w.+-]+) *(?:#.*)?$", front[1], re.MULTILINE) if front else None
    return named[1] if named else "unknown"


def portable(path: str) -> str:
    """Returns a path for publication: of an absolute path the last part alone, any other path unchanged."""
    if os.path.isabs(path) or path.startswith(("~", "..")) or re.match(r"[A-Za-z]:\\", path):
        return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return path


def portable_command(words: Sequence[str]) -> str:
    """Returns a command line as text; absolute paths are cut to their last part, and secrets shown as `***`."""
    shown = []
    for word in redacted_command(words):
        flag, equals, value = word.partition("=")
        word = flag + equals + portable(value) if equals and flag.startswith("-") else portable(word)
        word = _PATH.sub(lambda path: portable(path[0]), word)  # a path inside another value, such as JSON
        shown.append(word if re.fullmatch(r"[\w@%+=:,./*-]+", word) else json.dumps(word, ensure_ascii=False))
    return " ".join(shown)


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
