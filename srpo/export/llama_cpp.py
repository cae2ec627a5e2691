"""GGUF files in llama.cpp itself, through the package cyllama: quantised, and opened to tokenise and to answer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, SRPOError

# Types that only llama.cpp writes, largest last.
QUANTISED = ("q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k")
INSTALL = "pip install 'srpo[llama]'"


def installed() -> bool:
    """True if the package `cyllama` can be imported."""
    return find_spec("cyllama") is not None


def quantise(source: Path, target: Path, kind: str) -> None:
    """Writes a GGUF file with smaller weights.

    Args:
        source: a GGUF file of 16 or 32 bits.
        target: the file to write.
        kind: type of the weights, one of `QUANTISED`, such as "q4_k_m"; llama.cpp keeps some matrices in a larger type.

    Raises:
        ConfigError: the package `cyllama` is missing.
        SRPOError: llama.cpp refuses the file.
    """
    import gguf

    llama = _library()
    params = llama.LlamaModelQuantizeParams()
    params.ftype = int(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.upper()}"))
    params.nthread = 1
    try:
        llama.model_quantize(str(source), str(target), params)
    except RuntimeError as error:
        raise SRPOError(f"llama.cpp did not quantise it to {kind}: {error}", where=str(source)) from error


class LlamaCpp:
    """A GGUF file opened by llama.cpp on the CPU, with keys and values in float32.

    Args:
        file: the GGUF file.
        window: largest number of tokens of a prompt and its answer together.

    Raises:
        ConfigError: the package `cyllama` is missing.
        SRPOError: llama.cpp cannot open the file.
    """

    def __init__(self, file: Path, window: int) -> None:
        self._llama = llama = _library()
        params = llama.LlamaModelParams()
        params.n_gpu_layers = 0
        try:
            self._model = llama.LlamaModel(str(file), params, verbose=False)
        except ValueError as error:
            raise SRPOError(f"llama.cpp cannot open the file: {error}", where=str(file)) from error
        options = llama.LlamaContextParams()
        options.n_ctx = options.n_batch = window
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = 0  # ggml's number of float32
        self._context = llama.LlamaContext(self._model, options)
        self._batch = llama.LlamaBatch(n_tokens=window, embd=0, n_seq_max=1)
        self._sampler = llama.LlamaSampler(llama.LlamaSamplerChainParams())
        self._sampler.add_greedy()

    def split(self, text: str) -> list[int]:
        """Returns the token ids of a text in which control tokens are written out; no token is added at its ends."""
        return list(self._model.get_vocab().tokenize(text, False, True))

    def choices(self, ids: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Returns the likeliest token at each place of an answer to token ids, given all tokens before that place.

        They equal the answer exactly if greedy decoding gives it; otherwise both first differ from it at one place. All
        are read from one batch, as decoding would read the weights again for each token.
        """
        self._context.kv_cache_clear()
        self._batch.reset()
        fed = [*ids, *answer[:-1]]
        for place, token in enumerate(fed):
            self._batch.add(token, place, [0], place >= len(ids) - 1)
        self._context.decode(self._batch)
        return [self._sampler.sample(self._context, place) for place in range(len(ids) - 1, len(fed))]

    def close(self) -> None:
        """Frees the model's memory."""
        self._context.close()
        self._model.close()


def _library() -> Any:
    if not installed():
        raise ConfigError("llama.cpp is not installed", fix=INSTALL)
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    return llama_cpp
