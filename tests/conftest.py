"""What every test shares: an offline process, one thread, a tiny model and a byte-level tokenizer."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys

# Before any import of torch or huggingface_hub, which read these once. Subprocesses inherit them. One thread: sums over
# these tiny shapes come out the same everywhere, and threads would only wait for each other.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRL_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
)

# The tests are of a CPU, whatever the machine has besides; those in tests/gpu alone look at a card: `make gpu`.
if "SRPO_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from srpo import progress
from tests.process_state import process_as_it_was

# Lines of progress depend on the load of the machine; tests of them set times of their own.
progress.FIRST = progress.EVERY = 1e9

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that: tests of Ctrl-C would
# wait for ever for one that nobody hears.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: a slow machine is not a failing test. The same examples every time: a red run can be run again.
hypothesis.settings.register_profile("srpo", deadline=None, derandomize=True)
hypothesis.settings.load_profile("srpo")

gc.disable()  # until all tests are collected: imports make no garbage

BYTES = 256
PAD, BOS, EOS = BYTES, BYTES + 1, BYTES + 2
VOCAB = BYTES + 3


def module_at(path: Path) -> ModuleType:
    """The module in a file that no package holds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_tiny_llama(*, seed: int = 0, **settings: Any) -> Any:
    """A seeded LlamaForCausalLM of some 35,000 weights over the vocabulary of `make_byte_tokenizer`, in eval mode.

    Args:
        seed: of the weights; the global generator is left as it was.
        settings: fields of LlamaConfig that differ from the tiny ones here.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**tiny, **settings})).eval()


def make_byte_tokenizer(*, bos: bool = True, chat_template: str | None = None) -> Any:
    """One id per UTF-8 byte, so that tokenising a text alone or inside another gives the same ids.

    Args:
        bos: False leaves the tokenizer without a beginning-of-sequence token.
        chat_template: a Jinja template, or None for a tokenizer without one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab = {**letters, "<pad>": PAD, "<bos>": BOS, "<eos>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "<eos>"} | ({"bos_token": "<bos>"} if bos else {})
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = chat_template
    return wrapped


def pytest_collection_finish(session: pytest.Session) -> None:
    """Takes the imported libraries out of garbage collection: passes over them were half the time of training tests."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()


class Frozen:
    """The test file before which all living objects were last taken out of garbage collection."""

    file = ""


def pytest_runtest_logstart(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """Takes what earlier files imported out of garbage collection, without their garbage.

    Every training makes a collection, which would visit these objects each time.
    """
    if location[0] != Frozen.file:
        Frozen.file = location[0]
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _the_process_as_it_was() -> Iterator[None]:
    with process_as_it_was():
        yield


@pytest.fixture(scope="session", autouse=True)
def _only_the_cpu_is_seeded() -> Iterator[None]:
    """Lets `torch.manual_seed` seed the CPU alone, unless the tests use a GPU.

    For each kind of device that is not in use, torch formats the whole stack at every seeding and keeps it for later:
    a twentieth of the time of the training tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "SRPO_TEST_GPU" not in os.environ and "torch" in sys.modules:
            for device in ("cuda", "mtia", "xpu"):
                patch.setattr(f"torch.{device}.manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Any]:
    """The factory `make_tiny_llama`."""
    return make_tiny_llama


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Any]:
    """The factory `make_byte_tokenizer`."""
    return make_byte_tokenizer


def leave_figures_empty(patch: pytest.MonkeyPatch) -> None:
    """Makes matplotlib write figures without drawing them, half the time of an evaluation; tests/report draws them."""
    patch.setattr("matplotlib.figure.Figure.draw", lambda figure, renderer: None)
    patch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda engine, figure: None)


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of this test are written empty."""
    leave_figures_empty(monkeypatch)


@pytest.fixture
def small_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores 50 pairs or more, not 1,000, in chunks of 32, and forks for 128: the same paths with fewer pairs."""
    monkeypatch.setattr("srpo.sequences.tree_store.STORED_FROM", 50)
    monkeypatch.setattr("srpo.sequences.parallel.CHUNK", 32)
    monkeypatch.setattr("srpo.sequences.parallel.ALONE", 128)


@pytest.fixture(scope="session")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a chat model with the traps of real ones: 151,936 words, a head larger than its body, bfloat16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("large") / "model"
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny |= {"num_key_value_heads": 1, "max_position_embeddings": 1024}
    ends = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    set_seed(0)
    config = Qwen2Config(vocab_size=151_936, tie_word_embeddings=True, **tiny, **ends)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    chat += "{% if add_generation_prompt %}assistant: {% endif %}"
    make_byte_tokenizer(chat_template=chat).save_pretrained(folder)
    return folder
