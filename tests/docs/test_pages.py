"""The pages under docs/: their code blocks run, their outputs match, and their links are valid.

The language of a block decides how it runs, in one working folder per page with the files that a reader would have:

    python     executed; the blocks of a page share their names
    sh         lines `srpo …`, each of which must end with 0
    console    lines `$ srpo …` or `$ echo $?`, each followed by its standard output, or its error
    text       not run

A comment on the line before a block changes that:

    <!-- file: NAME -->               the block is that file, written before any block is run
    <!-- output -->                   the block is the output of the block before it
    <!-- needs: LIBRARY -->           run only where that library is installed
    <!-- not executed: REASON -->

In an output, "…" matches anything, and white space matches any white space.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from srpo import errors
from srpo.cli.main import run
from srpo.train.durable import checkpoint
from tests.conftest import leave_figures_empty, make_byte_tokenizer, make_tiny_llama
from tests.house.test_trl_contract import ABSENT, OTHER_DEFAULT

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LINKED = [*PAGES, "../README.md", "../CONTRIBUTING.md", "../SECURITY.md"]
BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)

# Models that a page starts with, in addition to an SFT model and files of pairs and prompts.
GIVEN = {
    "rounds.md": ["my-srpo-model"],
    "server.md": ["my-srpo-model"],
    "serve.md": ["my-srpo-model"],
    "revise.md": ["my-srpo-model"],
    "evaluate.md": ["my-srpo-model", "my-dpo-model"],
}
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SUMS = [(a, b) for a in range(1, 5) for b in (1, 2)]


class WrongPage(AssertionError):
    """A page whose block does not do what the page promises."""


@dataclass(frozen=True)
class Block:
    """A fenced block, the comment before it, and the line its code begins on."""

    note: str
    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        WrongPage: a fence is not closed, is indented or has more than a language behind it.
    """
    found = [
        Block(each["note"] or "", each["language"], each["code"], text[: each.start("code")].count("\n") + 1)
        for each in BLOCK.finditer(text)
    ]
    if 2 * len(found) != text.count("```"):
        raise WrongPage("a fence that is not read")
    return found


class Page:
    """Runs blocks in the working folder, one after the other."""

    def __init__(self, name: str) -> None:
        self.name, self.printed, self.code = name, "", 0
        self.names: dict[str, object] = {"__name__": "page"}

    def run(self, text: str) -> None:
        """Writes the files in the text and runs its blocks in order.

        Raises:
            WrongPage: a block does not do what the page promises.
        """
        for block in sorted(blocks(text), key=lambda block: not block.note.startswith("file: ")):
            self._run(block)

    def _run(self, block: Block) -> None:
        kind, _, value = block.note.partition(": ")
        if kind not in ("", "file", "output", "needs", "not executed") or bool(value) != (kind not in ("", "output")):
            raise self._wrong(block, f"unknown comment: {block.note!r}")
        if kind == "not executed" or (kind == "needs" and importlib.util.find_spec(value) is None):
            return
        if kind == "file":
            Path(value).write_text(block.code, "utf-8")
        elif kind == "output":
            self._expect(block, block.code)
        elif block.language == "python":
            self._python(block)
        elif block.language == "sh":
            for command in lines(block.code):
                self._srpo(block, command)
                if self.code:
                    raise self._wrong(block, self.printed)
        elif block.language == "console":
            self._console(block)
        elif block.language != "text":
            raise self._wrong(block, f"{block.language or 'no language'} is not run; say so in a comment before it")

    def _python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.code, self.name, "exec")  # tracebacks name the page's own line
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.names)
        self.printed = out.getvalue()

    def _srpo(self, block: Block, command: str) -> None:
        words = shlex.split(command)
        if words[0] != "srpo":
            raise self._wrong(block, f"cannot be run here: {command}")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                self.code = run(words[1:])
            except errors.SRPOError as error:  # as srpo.cli.main.main does
                print(f"srpo: error: {error}")
                self.code = error.exit_code
        self.printed = out.getvalue()

    def _console(self, block: Block) -> None:
        _, *steps = re.split(r"^\$ ", block.code.replace("\\\n", ""), flags=re.MULTILINE)
        if not steps:
            raise self._wrong(block, "no line begins with $")
        for command, _, shown in (step.partition("\n") for step in steps):
            if command == "echo $?":
                self.printed = f"{self.code}\n"
            else:
                self._srpo(block, command)
            self._expect(block, shown)

    def _expect(self, block: Block, shown: str) -> None:
        # Tables are padded and wrapped to the terminal; only their words are compared.
        want, got = (" ".join(text.split()) for text in (shown, self.printed))
        if not re.fullmatch(re.escape(want).replace("…", ".*"), got):
            raise self._wrong(block, f"shown is\n{want}\n\nprinted was\n{got}")

    def _wrong(self, block: Block, what: str) -> WrongPage:
        return WrongPage(f"{self.name}:{block.line}: {what}")


def lines(code: str) -> list[str]:
    """The commands of a shell block."""
    return [line for line in code.replace("\\\n", "").splitlines() if line.strip() and not line.startswith("#")]


# ---------------------------------------------------------------------- running them


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SFT model, pairs, prompts, and models trained from them, as readers have."""
    from srpo import SRPOConfig, SRPOTrainer

    folder = tmp_path_factory.mktemp("toys")
    make_tiny_llama().save_pretrained(folder / "my-sft-model")
    make_byte_tokenizer(chat_template=CHAT).save_pretrained(folder / "my-sft-model")
    asked = [f"What is {a}+{b}?" for a, b in SUMS]
    pairs = [
        {"prompt": prompt, "chosen": str(a + b), "rejected": str(a + b + 1)}
        for prompt, (a, b) in zip(asked, SUMS, strict=True)
    ]
    prompts = [{"prompt": prompt, "gold": str(a + b)} for prompt, (a, b) in zip(asked, SUMS, strict=True)]
    for name, rows in (("pairs", pairs), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    args = SRPOConfig(
        output_dir=str(folder / "my-srpo-model"), max_steps=1, learning_rate=1e-3, beta=0.1, report_to="none"
    )
    trainer = SRPOTrainer(str(folder / "my-sft-model"), args=args, train_dataset=str(folder / "pairs.jsonl"))
    trainer.train()
    trainer.save_model()
    shutil.copytree(folder / "my-sft-model", folder / "my-dpo-model")
    return folder


@pytest.fixture(scope="module")
def ran(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Page → the folder in which its blocks ran; each page is run once."""

    @functools.cache
    def run_page(name: str) -> Path:
        folder = tmp_path_factory.mktemp(Path(name).stem)
        for given in ("my-sft-model", "pairs.jsonl", "prompts.jsonl", *GIVEN.get(name, ())):
            copy = shutil.copytree if (toys / given).is_dir() else shutil.copy
            copy(toys / given, folder / given)
        with as_a_reader(folder):
            Page(name).run((DOCS / name).read_text("utf-8"))
        return folder

    return run_page


@contextlib.contextmanager
def as_a_reader(folder: Path) -> Iterator[None]:
    """Runs in that folder, at a terminal of 100 columns, and restores the state that commands change in the process."""
    import datasets
    from transformers.utils import logging as hf_logging

    verbosity, modules = hf_logging.get_verbosity(), {*sys.modules}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("COLUMNS", "100")
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets-cache")
            leave_figures_empty(patch)
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        for name in {*sys.modules} - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs(name: str, ran: Callable[[str], Path]) -> None:
    ran(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nassert 1 > 2\n```\n", None),
        ("```sh\nsrpo trian\n```\n", "did you mean 'train'"),
        ("```sh\npip install srpo\n```\n", "cannot be run here"),
        (
            "```sh\n\n# first\nsrpo --version \\\n    --qqq; ls\n```\n```console\n$ srpo --version\n0.0.0\n```\n",
            "shown is",
        ),
        ("```console\n$ srpo trian\n```\n", "shown is"),
        ("```console\n$ srpo --version\n…\n$ echo $?\n64\n```\n", "shown is"),
        ("```console\nsrpo --version\n```\n", r"begins with \$"),
        ("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n", "shown is\n2\n\nprinted was\n1"),
        ("```yaml\na: 1\n```\n", "yaml is not run"),
        ("```\na\n```\n", "no language is not run"),
        ("<!-- not executed -->\n```python\n```\n", "unknown comment"),
        ("<!-- skip: slow -->\n```python\n```\n", "unknown comment"),
        ("```python title='a'\n```\n", "a fence that is not read"),
    ],
)
def test_a_wrong_page_is_found(text: str, message: str | None, tmp_path: Path) -> None:
    page = Page("a.md")
    expected = pytest.raises(WrongPage, match=message) if message else pytest.raises(AssertionError)
    with as_a_reader(tmp_path), expected:
        page.run(text)


def test_a_right_page_passes(tmp_path: Path) -> None:
    text = """
```python
import json
a = json.load(open("a.json"))["a"]
```

<!-- file: a.json -->
```json
{"a": 1}
```

```python
print(a + 1)
print("other")
```

<!-- output -->
```text
2
…
```

<!-- needs: a_library_nobody_has -->
```python
import a_library_nobody_has
```

```console
$ srpo trian \\
    --seed 1
srpo: error: unknown verb 'trian'…
$ echo $?
64
```
"""
    page = Page("a.md")
    with as_a_reader(tmp_path):
        page.run(text)
    assert page.names["a"] == 1
    assert [block.line for block in blocks(text)][:2] == [3, 9]


# ---------------------------------------------------------------------- tables and links


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the table with that head, as cells; `page` is a page's name or its text."""
    text = page if "\n" in page else (DOCS / page).read_text("utf-8")
    after = text.split(f"\n{head}\n", 1)[1].splitlines()[1:]
    rows = after[: next(i for i, line in enumerate([*after, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def named(cell: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def listed_codes(page: str) -> dict[str, int]:
    rows = table(page, "| code | error | meaning |")
    return {name: int(code) for code, names, _ in rows for name in named(names)}


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SRPOError)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert listed_codes("exit-codes.md") == codes
    text = (DOCS / "exit-codes.md").read_text("utf-8")
    for right, wrong in (
        ("| 66 |", "| 67 |"),
        (", `LengthError`", ""),
        ("`OutputError`", "`OutputError`, `OtherError`"),
    ):
        assert listed_codes(text.replace(right, wrong, 1)) != codes


def test_defaults_that_differ_from_trl_are_listed() -> None:
    differ = table("from-dpo.md", "| setting | here | TRL | why |")
    absent = table("from-dpo.md", "| setting | why |")
    # bf16 has the same default, None, with another meaning.
    assert sorted(name for row in differ for name in named(row[0])) == sorted([*OTHER_DEFAULT, "bf16"])
    assert sorted(name for row in absent for name in named(row[0])) == sorted(ABSENT)


def test_settings_that_trl_lacks_are_listed() -> None:
    trl = pytest.importorskip("trl")
    from srpo import SRPOConfig

    new = table("from-dpo.md", "| setting | what it does |")
    ours, theirs = ({field.name for field in fields(config)} for config in (SRPOConfig, trl.DPOConfig))
    assert {name for row in new for name in named(row[0])} == ours - theirs


def test_every_saved_file_is_listed(ran: Callable[[str], Path]) -> None:
    folder = ran("train.md")
    listed = [name for row in table("train.md", "| in `output_dir` | |") for cell in row for name in named(cell)]
    adapter = {name for name in listed if name.startswith("adapter")}
    passing = {f"{checkpoint.STAGING}/", f"{checkpoint.REPLACED}/"}  # there for the time of a save
    assert passing < {*listed}
    for name in {*listed} - adapter - passing:
        assert list((folder / "my-srpo-model").glob(name.replace("N/", "*"))), name
    for name in adapter:
        assert (folder / "lora-run" / name).is_file()


def test_every_metric_is_listed(ran: Callable[[str], Path]) -> None:
    logged: set[str] = set()
    for line in (ran("train.md") / "my-srpo-model" / "metrics.jsonl").read_text("utf-8").splitlines():
        logged |= {name.removeprefix("eval_") for name in json.loads(line)}
    listed = {name for row in table("train.md", "| metric | |") for name in named(row[0])}
    ours = {name for name in logged if "/" in name} | {"loss", "beta", "answer_tokens"}
    assert {re.sub("margins/.*", "margins/…", name) if name.startswith("revision") else name for name in ours} == listed


def test_every_page_is_in_an_index() -> None:
    """The lab book has an index of its own."""
    listed = {target for target, _ in links((DOCS / "index.md").read_text("utf-8"))}
    book = {f"lab-book/{target}" for target, _ in links((DOCS / "lab-book/README.md").read_text("utf-8"))}
    assert {*PAGES} - {"index.md"} == listed | book


def links(text: str) -> list[tuple[str, str]]:
    """(path, anchor) of every relative link outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [tuple(each.partition("#")[::2]) for each in found if not re.match(r"\w+:", each)]


def anchors(text: str) -> set[str]:
    """Anchors of headings, as GitHub makes them: lower case, blanks to hyphens, other punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for path, anchor in links(page.read_text("utf-8")):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(f"{path}#{anchor}")
    return broken


@pytest.mark.parametrize("name", LINKED)
def test_every_relative_link_is_valid(name: str) -> None:
    assert broken_links(DOCS / name) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# How do I choose β?\n[a](#how-do-i-choose-β) [b](#b) [c](c.md) [d](a.md#d) [e](https://a.b/c) `[f](f.md)`\n"
        "```text\n[g](g.md)\n```\n",
        "utf-8",
    )
    assert broken_links(page) == ["#b", "c.md#", "a.md#d"]
