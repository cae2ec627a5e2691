"""Builds the documentation as a website that loads nothing from elsewhere: `python docs/site/build.py OUTPUT`.

Gathers the pages of docs/ and those of the root, writes the reference of the Python names and of the command line from
the code, and runs Sphinx with warnings as errors.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import srpo
from srpo.cli.completion import parsers
from srpo.cli.main import VERBS
from srpo.cli.training_flags import FROM_TRANSFORMERS

ROOT = Path(__file__).parents[2]
AT_THE_ROOT = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
GROUPS = {
    "Start": ["from-dpo", "real-model", "when-revising-pays", "when-revision-hurts", "results", "thirty-lines"],
    "How to": [
        *(
            "data",
            "templates",
            "thinking-models",
            "train",
            "choosing-beta",
            "chosen-reward",
            "pictures",
            "rounds",
            "revise",
            "confidence",
            "serve",
            "server",
            "evaluate",
        ),
        *("judges", "reproduce", "models-from-elsewhere", "export", "tpu"),
    ],
    "Reference": ["api", "cli", "command-line", "exit-codes", "CHANGELOG"],
    "Explanation": ["architecture", "plan", "what-a-step-costs", "lab-book/README", "CONTRIBUTING", "SECURITY"],
}


def gather(folder: Path) -> None:
    """Copies the pages into `folder` and makes the two generated ones."""
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("site", "__pycache__"))
    shutil.copy(ROOT / "docs/site/conf.py", folder)
    for name in AT_THE_ROOT:
        text = (ROOT / f"{name}.md").read_text("utf-8").replace("](docs/", "](")
        (folder / f"{name}.md").write_text(text, "utf-8")
    for page in folder.rglob("*.md"):
        text = page.read_text("utf-8")
        depth = "../" * len(page.relative_to(folder).parent.parts)
        # A block's note for the tests is no text of the page.
        text = re.sub(r"^<!--.*-->\n", "", text, flags=re.MULTILINE)
        text = text.replace("```jsonl\n", "```json\n")
        for name in AT_THE_ROOT:
            text = text.replace(f"]({depth}../{name}.md", f"]({depth}{name}.md")
        page.write_text(re.sub(r"\]\((?=[\w/.-]+/\))", "](", text), "utf-8")
    (folder / "api.md").write_text(api(), "utf-8")
    (folder / "cli.md").write_text(cli(), "utf-8")
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        index.write(contents(folder))


def contents(folder: Path) -> str:
    """The tables of contents of the side bar: each page once, those that `GROUPS` does not name at the end."""
    parts = []
    for title, names in GROUPS.items():
        parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(names) + "\n```\n")
    for name, where in (("Lab book", "lab-book"), ("Decisions", "decisions")):
        pages = sorted(path.stem for path in (folder / where).glob("*.md") if path.stem != "README")
        listed = "\n".join(pages if where == "lab-book" else (f"{where}/{page}" for page in pages))
        if where == "lab-book":
            with (folder / where / "README.md").open("a", encoding="utf-8") as index:
                index.write(f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n")
        else:
            parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {name}\n\n{listed}\n```\n")
    named = {name for names in GROUPS.values() for name in names}
    rest = sorted(path.stem for path in folder.glob("*.md") if path.stem not in {*named, "index"})
    if rest:
        parts.append("\n```{toctree}\n:hidden:\n:caption: More\n\n" + "\n".join(rest) + "\n```\n")
    return "".join(parts)


def api() -> str:
    """The reference of the public names, from their docstrings."""
    lines = [
        "# Python reference",
        "",
        "Every public name of `srpo`, from its docstring; the examples run as tests.",
        "",
    ]
    for name in sorted(srpo.__all__, key=str.lower):
        value = getattr(srpo, name)
        if name == "__version__":
            continue
        kind = "autoexception" if name.endswith("Error") else "autoclass" if isinstance(value, type) else "autofunction"
        options = [":members:"] * (kind == "autoclass" and name != "SRPOConfig")
        # Methods inherited from transformers are not documented here.
        lines += [f"## {name}", "", "```{eval-rst}", f".. {kind}:: srpo.{name}"]
        lines += [f"   {option}" for option in options] + ["```", ""]
    return "\n".join(lines)


def cli() -> str:
    """The reference of the command line, from the parsers that the settings make."""
    lines = [
        "# Command line reference",
        "",
        "Made from the settings themselves; `srpo VERB --help` shows the same.",
        "",
    ]
    for verb, parser in parsers().items():
        lines += [f"## srpo {verb}", "", (parser.description or VERBS.get(verb, "")).split("\n\n")[0].strip(), ""]
        for group in parser._action_groups:
            shown = [action for action in group._group_actions if action.dest != "help"]
            if not shown or group.title == FROM_TRANSFORMERS:
                continue
            title = group.title if group.title not in (None, "options", "positional arguments") else ""
            lines += [f"**{title}**", ""] if title else []
            lines += ["| setting | meaning |", "| --- | --- |"]
            for action in shown:
                names = [each for each in action.option_strings if "-" not in each[2:]] or [action.dest.upper()]
                if names == [f"--no_{action.dest}"]:
                    continue
                text = " ".join((action.help or "").split()).replace("%(default)s", str(action.default))
                lines.append(f"| `{names[0]}` | {_plain(text.replace('%%', '%'))} |")
            lines.append("")
        if any(group.title == FROM_TRANSFORMERS for group in parser._action_groups):
            lines += [f"`srpo {verb} --help all` lists the other settings of `transformers.TrainingArguments`.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text in which Markdown finds no markup."""
    return re.sub(r"([<>*_{}\[\]$`~|])", r"\\\1", text)


def main() -> int:
    """Builds the site; returns the exit code of Sphinx."""
    from sphinx.cmd.build import main as sphinx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the site")
    output = parser.parse_args().output
    source = output.with_name(output.name + "-source")
    for folder in (output, source):
        shutil.rmtree(folder, ignore_errors=True)
    gather(source)
    return sphinx(["-q", "-W", "--keep-going", "-b", "html", str(source), str(output)])


if __name__ == "__main__":
    sys.exit(main())
