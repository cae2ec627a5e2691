"""`srpo recipes`: lists the settings files that come with the package, and copies one into the working folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo.cli.flags import parse
from srpo.errors import UsageError, did_you_mean
from srpo.settings import setting

TEMPLATE = "chat-lora.yaml.jinja"
GIB = 2**30
# Estimates: tokens of a pair of UltraFeedback under the template quote (a prompt of 200 and answers of 300 tokens), and
# floating-point operations a second of an RTX 4090 in bfloat16 at two fifths of its peak.
PAIR_TOKENS = 200 + 8 * 300
SPEED = 0.4 * 165e12


@dataclass(frozen=True)
class ChatModel:
    """A chat model for which srpo has a settings file of LoRA training.

    Attributes:
        hub: name on the Hugging Face hub.
        billions: number of parameters, in 10⁹.
        hidden, layers: width and depth, which decide the memory of activations.
        thinking: true if its chat template asks for thinking unless an option turns it off.
        gated: true if the hub asks for a login.
        four_bits: true if the frozen base is in 4 bits (QLoRA).
    """

    hub: str
    billions: float
    hidden: int
    layers: int
    thinking: bool = False
    gated: bool = False
    four_bits: bool = False

    @property
    def checkpointing(self) -> bool:
        """True if training needs activation checkpointing to fit into 24 GiB: models above 2.5 billion parameters."""
        return self.billions > 2.5

    @property
    def memory(self) -> float:
        """Estimated memory of training in GiB: weights, activations of one pair, and 1.5 GiB for all the rest.

        A weight takes 2 bytes, or 0.65 in 4 bits with scales and embeddings. Activations take 2.9 MB a token in a model
        of hidden size 2,048 with 16 layers (docs/what-a-step-costs.md), and a third of that with activation
        checkpointing.
        """
        activations = 2.9e6 * PAIR_TOKENS * self.hidden * self.layers / (2048 * 16) / (3 if self.checkpointing else 1)
        return ((0.65e9 if self.four_bits else 2e9) * self.billions + activations) / GIB + 1.5

    @property
    def minutes(self) -> float:
        """Estimated minutes of training on 10,000 pairs with an RTX 4090.

        Each parameter takes 6 operations per token, 8 with activation checkpointing.
        """
        operations = (8 if self.checkpointing else 6) * self.billions * 1e9 * PAIR_TOKENS * 10_000
        return operations / SPEED / 60


CHAT_MODELS = {
    "qwen3-0.6b": ChatModel("Qwen/Qwen3-0.6B", 0.6, 1024, 28, thinking=True),
    "qwen3-1.7b": ChatModel("Qwen/Qwen3-1.7B", 1.7, 2048, 28, thinking=True),
    "qwen3-4b": ChatModel("Qwen/Qwen3-4B", 4.0, 2560, 36, thinking=True),
    "llama-3.2-1b": ChatModel("meta-llama/Llama-3.2-1B-Instruct", 1.2, 2048, 16, gated=True),
    "llama-3.2-3b": ChatModel("meta-llama/Llama-3.2-3B-Instruct", 3.2, 3072, 28, gated=True),
    "gemma-3-270m": ChatModel("google/gemma-3-270m-it", 0.27, 640, 18, gated=True),
    "gemma-3-1b": ChatModel("google/gemma-3-1b-it", 1.0, 1152, 26, gated=True),
    "smollm3-3b": ChatModel("HuggingFaceTB/SmolLM3-3B", 3.1, 2048, 36, thinking=True),
    "qwen3-8b-qlora": ChatModel("Qwen/Qwen3-8B", 8.2, 4096, 36, thinking=True, four_bits=True),
    "llama-3.1-8b-qlora": ChatModel("meta-llama/Llama-3.1-8B-Instruct", 8.0, 4096, 32, gated=True, four_bits=True),
}


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo recipes`, which lists and copies the settings files of training that come with srpo."""

    action: str = setting("list", "list, or copy: write one recipe.", choices=("list", "copy"), positional=True)
    name: str = setting("", "Name of the recipe to copy.", positional=True)
    output: str = setting("", "File to write; unset: NAME.yaml in this folder.")


def recipes_folder() -> Path:
    """Returns the folder of srpo's settings files: in the installed package, or next to the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipes() -> Iterator[tuple[str, str]]:
    """Yields (name, first sentence) of every settings file that comes with srpo, those of chat models first."""
    for name, model in CHAT_MODELS.items():
        kind = "QLoRA" if model.four_bits else "LoRA"
        estimate = f"estimated {model.memory:.0f} GiB, {model.minutes:.0f} minutes on an RTX 4090"
        yield name, f"{model.hub}, {kind}; {estimate}"
    for path in sorted(recipes_folder().glob("*.yaml")):
        first = path.read_text("utf-8").partition("\n")[0]
        yield path.stem, first.removeprefix("# ")


def text_of(name: str, file: str) -> str:
    """Returns the text of one of srpo's settings files.

    Args:
        name: name of the recipe, see `recipes`.
        file: path that the text will be saved to, which its commands name.

    Raises:
        UsageError: no recipe has the name.
    """
    names = [known for known, _ in recipes()]
    if name not in names:
        fix = did_you_mean(name, names) or "`srpo recipes` lists the recipes"
        raise UsageError(f"no recipe {name!r}", expected="one of " + ", ".join(names), fix=fix)
    if name not in CHAT_MODELS:
        return (recipes_folder() / f"{name}.yaml").read_text("utf-8").replace(f"recipes/{name}.yaml", file)
    import jinja2

    model = CHAT_MODELS[name]
    values: dict[str, Any] = {each: getattr(model, each) for each in ("hub", "thinking", "gated", "four_bits")}
    values |= {"memory": f"{model.memory:.0f}", "minutes": f"{model.minutes:.0f}", "run": f"runs/{name}"}
    values |= {"checkpointing": str(model.checkpointing).lower(), "title": model.hub, "file": file}
    text = (recipes_folder() / TEMPLATE).read_text("utf-8")
    rules = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return rules.from_string(text).render(values)


def main(argv: list[str]) -> int:
    """Runs `srpo recipes`: lists the settings files that come with srpo, or copies one; returns 0.

    Raises:
        UsageError: no such recipe.
        OutputError: the file exists or cannot be written.
    """
    description = "List the recipes that come with srpo, or copy one: srpo recipes copy qwen3-0.6b"
    args = parse("recipes", description, Arguments, argv)
    if args.action == "list":
        found = list(recipes())
        width = max(len(name) for name, _ in found)
        for name, first in found:
            print(f"{name:<{width}}  {first}")
        print("\n`srpo recipes copy NAME` writes NAME.yaml, which names its commands.")
        return 0

    from srpo.disk import write_file
    from srpo.errors import OutputError

    file = Path(args.output or f"{args.name}.yaml")
    text = text_of(args.name, str(file))
    if file.exists():
        raise OutputError("exists already", where=str(file), fix="name another file: --output FILE")
    write_file(file, text.encode(), flag="--output")
    print(f"{file} is written; its first lines name the commands.")
    return 0
