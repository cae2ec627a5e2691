"""The flags that say what writes the answers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srpo.revise.serving import Serving


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    add = parser.add_argument_group("what writes the answers").add_argument
    add("--engine", choices=["hf", "vllm", "openai", "chat"], default="hf", help="see docs/server.md")
    add("--base_url", default="", help="of a server: http://localhost:8000/v1")
    add("--api_key_env", default="", help="name of the environment variable that holds its key")
    add("--served_model", default="", help="the model's name there, if it serves several")
    add("--served_reference", default="", help="the name there of the model before training, for confidence")
    add("--concurrency", type=int, default=16, help="requests to a server at the same time")
    add("--timeout", type=float, default=120.0, help="seconds that one request may take")
    add("--tries", type=int, default=6, help="requests for one answer, at most")
    add("--backoff", type=float, default=0.5, help="seconds before the second of them; doubled for each further one")
    add_device_flags(add)
    add("--speculation", default="auto", help="of vLLM: suffix, ngram, none or auto")


def add_device_flags(add: Callable[..., Any]) -> None:
    """The flags that say where and in what precision a model works in this process."""
    add("--dtype", default="float32", help="of the weights: float32, bfloat16, float16, or auto, as they are stored")
    add("--device", default="", help="cpu, cuda, cuda:1, …; unset: a GPU if there is one")


def serving(args: argparse.Namespace) -> Serving:
    """What they say."""
    from srpo.revise.serving import Serving

    return Serving(**{each.name: getattr(args, each.name) for each in fields(Serving)})
