"""Servers of a reviser in this process, and the standard client."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from srpo import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.serve.app import Service
from srpo.serve.model import ServedModel
from srpo.serve.run import listening, make_server, server_options
from srpo.serve.settings import ServeSettings

# A test file that imports this one is skipped without the extra `test`.
for name in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(name, reason="needs the extra serve, which the extra test includes")
openai: Any = pytest.importorskip("openai", reason="needs the extra test")

# No test may depend on the load of the machine: httpx would give up after 5 seconds.
PATIENCE = 600.0
get, post, request = (functools.partial(each, timeout=PATIENCE) for each in (httpx.get, httpx.post, httpx.request))
GREEDY = RevisionSettings(1, temperature=0.0, max_new_tokens=8)


class Served:
    """A server under way: its address, its parts, and the standard client."""

    def __init__(self, service: Service, url: str, server: Any) -> None:
        self.service, self.url, self._server = service, url, server

    def stop(self) -> None:
        """Does what SIGTERM does."""
        self._server.should_exit = True

    def client(self, key: str = "none", **options: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE, **options)

    def async_client(self) -> Any:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


@contextmanager
def serving(subject: Reviser, defaults: RevisionSettings = GREEDY, **settings: Any) -> Iterator[Served]:
    """Serves a reviser on a free port until the block is left."""
    import uvicorn

    options = ServeSettings(port=0, **settings)
    service = Service(ServedModel(subject, defaults), "tiny", options)
    server: Any = make_server(uvicorn.Config(**server_options(service, options)))
    on = listening(options)
    on.listen()
    address = f"http://127.0.0.1:{on.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [on]}, daemon=True)
    thread.start()
    try:
        yield Served(service, address, server)
    finally:
        server.should_exit = True
        thread.join()
