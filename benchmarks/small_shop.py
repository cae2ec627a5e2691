"""Commands of the library, each in a process of its own that starts with torch imported; and readers of their files.

Every command is `python -m srpo VERB …`: the process is forked from one that imported third-party libraries and nothing
of the library itself, which saves the seconds that importing torch takes.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.small_files import judge_server

# Libraries that commands import; all of them together come with the extra `test`.
HEAVY = ["torch", "transformers", "transformers.trainer", "peft", "datasets", "accelerate", "safetensors.torch"]
HEAVY += ["httpx", "jinja2", "matplotlib.pyplot", "rich.table", "rouge_score.rouge_scorer"]
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "Agg",
    "CUDA_VISIBLE_DEVICES": "",
}
# Keys that hold a clock's reading, a place, a name of a machine or a version: no number of the method.
CLOCKS = re.compile(r"(^|_)(seconds|time|runtime|date|duration|took|clock)$|_per_second$")
PLACES = re.compile(r"(^|_)(path|paths|folder|dir|host|hostname|platform|url|version|versions)$")
NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?")


class Shop:
    """A temporary folder in which commands run, one at a time.

    Attributes:
        folder: working folder of every command; all paths given to them are relative to it.
        url: address of the scripted judge.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        os.environ.update(QUIET, HF_HOME=str(folder / "home"))
        server = judge_server()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self._serving = os.fork()
        if not self._serving:
            server.serve_forever()
        server.server_close()
        for name in HEAVY:
            importlib.import_module(name)

    def close(self) -> None:
        """Ends the judge's server."""
        os.kill(self._serving, 9)
        os.waitpid(self._serving, 0)

    def srpo(self, *words: str, **settings: Any) -> str:
        """Runs `python -m srpo WORDS… --SETTING VALUE…`; a list as a value becomes several words.

        Returns:
            Standard output, scrubbed.

        Raises:
            SystemExit: the command failed; its last lines are the message.
        """

        def command() -> None:
            sys.argv = ["srpo", *words, *flags(settings)]
            runpy.run_module("srpo", run_name="__main__", alter_sys=True)

        return str(self.scrubbed(self._forked(command, " ".join(words))))

    def apart(self, work: Callable[[], Any], name: str) -> Any:
        """Runs `work` in a process of its own and returns its value, by way of JSON."""

        def written() -> None:
            (self.folder / "returned.json").write_text(json.dumps(work()), "utf-8")

        self._forked(written, name)
        return json.loads((self.folder / "returned.json").read_text("utf-8"))

    def _forked(self, work: Callable[[], None], name: str) -> str:
        self.runs += 1
        out, err = (self.folder / f"run{self.runs}.{stream}" for stream in ("out", "err"))
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            self._work(work, out, err)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise SystemExit(f"{name} ended with {code}:\n{err.read_text('utf-8')[-3000:]}")
        return out.read_text("utf-8")

    def _work(self, work: Callable[[], None], out: Path, err: Path) -> None:
        """Runs `work` in the child process with its output in two files, then ends the process."""
        code: Any = 1
        try:
            os.chdir(self.folder)
            for path, number in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            work()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def scrubbed(self, value: Any) -> Any:
        """Returns a JSON value without times, paths and versions, which differ between equal runs."""
        if isinstance(value, dict):
            return {key: self.scrubbed(each) for key, each in value.items() if not left_out(key, each)}
        if isinstance(value, list):
            return [self.scrubbed(each) for each in value]
        if isinstance(value, str):
            return value.replace(self.url, "SERVER").replace(str(self.folder), "FOLDER")
        return value

    def json(self, path: str) -> Any:
        """Returns the content of a JSON file, after `scrubbed`."""
        return self.scrubbed(json.loads((self.folder / path).read_text("utf-8")))

    def lines(self, path: str) -> list[Any]:
        """Returns the objects of a file with one JSON object a line, after `scrubbed`."""
        text = (self.folder / path).read_text("utf-8")
        return [self.scrubbed(json.loads(line)) for line in text.splitlines() if line]

    def table(self, path: str) -> list[dict[str, str]]:
        """Returns the rows of a CSV file as dictionaries, after `scrubbed`."""
        with (self.folder / path).open(encoding="utf-8", newline="") as file:
            return [self.scrubbed(dict(row)) for row in csv.DictReader(file)]

    def weights(self, path: str) -> dict[str, Any]:
        """Returns, for each safetensors file in a folder, a sha256 of its tensors, and sum and norm of all values."""
        return {
            str(file.relative_to(self.folder / path)): self.apart(partial(hashed, file), file.name)
            for file in sorted((self.folder / path).glob("*.safetensors"))
        }


def left_out(key: str, value: Any) -> bool:
    """True if an entry of a JSON object is a time, a path or a version."""
    library = key == "srpo" and isinstance(value, str)  # its version
    return library or bool(CLOCKS.search(key) or PLACES.search(key))


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as words of a command line."""
    words: list[str] = []
    for key, value in settings.items():
        several = value if isinstance(value, list) else [value]
        words += [f"--{key}", *([] if value is True else map(str, several))]
    return words


def hashed(file: Path) -> dict[str, Any]:
    """Digest and two readable numbers of a safetensors file; its metadata has no part in them."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(file)
    digest = hashlib.sha256()
    total = squares = 0.0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        total += float(tensor.double().sum())
        squares += float(tensor.double().square().sum())
    return {"sha256": digest.hexdigest(), "sum": total, "norm": squares**0.5, "tensors": len(tensors)}


def numbers(text: str) -> list[str]:
    """The numbers in a text for people, as they are printed; the words around them are free to change."""
    return NUMBER.findall(text)
