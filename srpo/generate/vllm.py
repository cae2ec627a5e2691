"""Completions and log-probs from vLLM in this process: a full model, or an adapter on its base.

Contexts are the token ids of training. vLLM computes shared prefixes once, above all the prompt of a draft and its
revisions. It takes guesses from the context, which contains the draft, so it verifies many tokens of a revision at
once. Greedy answers equal those of the transformers engine up to rounding. Draws come from the same distribution with
vLLM's own numbers: equal (seed, key) repeat a draw on the same installation, and no other engine repeats it.

vLLM's processes start as Python's own do: a script that makes a `VLLMEngine` needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo.errors import BackendError, ConfigError, did_you_mean
from srpo.generate.engine import Completion, ContextAnswer, Decoding, Keep, seed_of
from srpo.model.weights.adapter import ADAPTER_FILE
from srpo.model.weights.load import adapter_base

log = logging.getLogger("srpo")

SPECULATIONS = ("auto", "suffix", "ngram", "none")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's max_lora_rank
GUESSED = 16  # largest number of tokens verified at once
# vllm reads these variables on import: send no usage statistics, log no details of the start.
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


class VLLMEngine:
    """An engine that completes token ids with vLLM in this process.

    Args:
        model: Folder or hub name of a model or adapter; safetensors only.
        batch_size: Prompts passed together; vLLM forms its own batches.
        speculation: suffix, ngram, none, or auto: suffix if `arctic_inference` is installed, otherwise ngram.
        dtype: Dtype of the weights by name, such as "bfloat16", or "auto".
        base_model: Base model of an adapter, instead of the one in its `adapter_config.json`.
        options: Arguments of `vllm.LLM`, such as `max_model_len`, `gpu_memory_utilization`, `tensor_parallel_size`.

    Attributes:
        speculation: The speculation in use.

    Raises:
        ConfigError: vLLM is not installed, or an unknown speculation.
        InputError: The folder has no model.
        BackendError: vLLM cannot serve this adapter.
    """

    same_batch_same_bits = False

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 256,
        speculation: str = "auto",
        dtype: str = "float32",
        base_model: str | None = None,
        **options: object,
    ) -> None:
        if speculation not in SPECULATIONS:
            fix = did_you_mean(speculation, SPECULATIONS)
            raise ConfigError(f"{speculation!r}", where="speculation", expected=f"one of {SPECULATIONS}", fix=fix)
        vllm = _imported()
        self.batch_size, self.model = batch_size, model
        self.speculation = _resolved(speculation)
        base = adapter_base(model, base_model)
        self._adapter: Any = None
        if base is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("adapter", 1, str(Path(model).resolve()))
            options = {"enable_lora": True, "max_loras": 1, **_adapter_options(model), **options}
        if self.speculation != "none":
            method = {"method": self.speculation, "num_speculative_tokens": GUESSED}
            lookup = {"prompt_lookup_min": 2, "prompt_lookup_max": 4} if self.speculation == "ngram" else {}
            # With an adapter, vLLM needs room for the guesses of all rows at once.
            room = {"max_num_seqs": batch_size, "max_num_batched_tokens": max(8192, batch_size * (GUESSED + 1))}
            options = {"speculative_config": {**method, **lookup}, **room, **options}
        self._sampling = vllm.SamplingParams
        self._llm = vllm.LLM(
            base or model,
            dtype=dtype,
            load_format="safetensors",
            generation_config="vllm",  # the model's own file may shape the distribution
            skip_tokenizer_init=True,  # ids in, ids out
            enable_prefix_caching=True,
            **options,
        )
        log.info("srpo: vLLM %s, speculation %s", vllm.__version__, self.speculation)

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of context and answer together."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    @property
    def has_adapter(self) -> bool:
        """True if the model is an adapter on a base model."""
        return self._adapter is not None

    def close(self) -> None:
        """Ends vLLM's processes and frees its memory."""
        self._llm.llm_engine.engine_core.shutdown()

    def complete(
        self,
        contexts: Sequence[Sequence[int]],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        keep: Keep | None = None,
    ) -> list[Completion]:
        """Returns one completion per context, in order, drawn by vLLM.

        The arguments are those of `Engine.complete`; guesses have no effect.
        """
        settings = [
            self._sampling(
                temperature=decoding.temperature,
                max_tokens=decoding.max_new_tokens,
                seed=seed_of(decoding.seed, key) if decoding.temperature > 0 else None,
                ignore_eos=True,  # the model's files may name other end tokens than training
                stop_token_ids=list(decoding.stop_ids),
                detokenize=False,
            )
            for key in keys
        ]
        began = time.perf_counter()
        outputs = self._generate(contexts, settings, adapter=True)
        seconds = (time.perf_counter() - began) / max(1, len(contexts))
        done = [
            Completion(tuple(each.outputs[0].token_ids), each.outputs[0].finish_reason == "stop", seconds)
            for each in outputs
        ]
        if keep is not None:
            for place, completion in enumerate(done):
                keep(place, completion)
        return done

    def logps(self, pairs: Sequence[ContextAnswer]) -> list[float]:
        """Returns log π of the answer in each (context ids, answer ids) pair: nats, summed over the answer's tokens."""
        return self._logps(pairs, adapter=True)

    def base_logps(self, pairs: Sequence[ContextAnswer]) -> list[float]:
        """Returns the log-prob of each answer under the base model without the adapter; nats, summed over tokens.

        Raises:
            ConfigError: The model is not an adapter.
        """
        if self._adapter is None:
            fix = "pass an engine of the model before training"
            raise ConfigError("a full model cannot be its own reference", where="reference", fix=fix)
        return self._logps(pairs, adapter=False)

    def _logps(self, pairs: Sequence[ContextAnswer], *, adapter: bool) -> list[float]:
        settings = self._sampling(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._generate([[*context, *answer] for context, answer in pairs], settings, adapter=adapter)
        sums = []
        for (context, answer), output in zip(pairs, outputs, strict=True):
            rows = output.prompt_logprobs[len(context) :]
            sums.append(sum(float(row[id_].logprob) for row, id_ in zip(rows, answer, strict=True)))
        return sums

    def _generate(self, contexts: Sequence[Sequence[int]], settings: object, *, adapter: bool) -> list[Any]:
        prompts = [{"prompt_token_ids": list(context)} for context in contexts]
        outputs: list[Any] = self._llm.generate(
            prompts, settings, lora_request=self._adapter if adapter else None, use_tqdm=False
        )
        return outputs


def _imported() -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        fix = "install vLLM for this machine, or use a vLLM server: --engine openai"
        raise ConfigError(f"vLLM cannot be imported: {error}", where="engine", fix=fix) from None
    return vllm


def _resolved(speculation: str) -> str:
    """Returns the kind of speculation that "auto" selects; checks that the package for "suffix" is installed."""
    has_suffix = importlib.util.find_spec("arctic_inference") is not None
    if speculation == "suffix" and not has_suffix:
        fix = "pip install arctic-inference, or use ngram"
        raise ConfigError("suffix speculation needs arctic_inference", where="speculation", fix=fix)
    return speculation if speculation != "auto" else "suffix" if has_suffix else "ngram"


def _adapter_options(folder: str) -> dict[str, Any]:
    """Returns vLLM's options for the adapter in a folder: the smallest sufficient rank, and the adapted modules.

    Without the list of modules vLLM also adapts the output head, and then fails on log-probs of several prompts.
    """
    row = json.loads((Path(folder) / ADAPTER_FILE).read_text("utf-8"))
    largest = max([row.get("r", 0), *(row.get("rank_pattern") or {}).values()])
    fitting = [rank for rank in RANKS if rank >= largest]
    if row.get("peft_type") != "LORA" or not fitting:
        problem = f"vLLM serves LoRA adapters up to rank {RANKS[-1]}"
        raise BackendError(problem, where=folder, fix="merge it into its base: srpo merge")
    modules = row.get("target_modules")
    return {"max_lora_rank": fitting[0], **({"lora_target_modules": modules} if isinstance(modules, list) else {})}
