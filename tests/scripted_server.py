"""A real HTTP server on the loopback interface that misbehaves as a script tells it to.

The script is a function of the JSON body and of how often that same body came before; so what an item meets does not
depend on the order in which concurrent requests arrive.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = dict[str, Any]


@dataclass(frozen=True)
class Say:
    """One answer.

    Attributes:
        body: sent as JSON, or as it is if it is text.
        hang: nothing is sent at all until the server is shut down.
        cut: so many bytes of the body are sent, then the connection is closed.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    cut: int | None = None


@dataclass
class Asked:
    """What reached the server, in order of arrival."""

    url: str
    paths: list[str] = field(default_factory=list)
    bodies: list[JSON] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0  # requests under way together, at most

    def times(self, body: JSON) -> int:
        return self.bodies.count(body)


@contextmanager
def serve(script: Callable[[JSON, int], Say], models: list[JSON] | None = None) -> Iterator[Asked]:
    """Serves until the block is left; `script(body, before)` is what to answer to a POST.

    Args:
        models: the answer to `GET /v1/models`; None knows no such path.
    """
    lock, over = threading.Lock(), threading.Event()
    under_way = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes; the second would wait for the first's receipt

        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                before = asked.times(body)
                asked.paths.append(self.path)
                asked.bodies.append(body)
                asked.headers.append({name.lower(): value for name, value in self.headers.items()})
                under_way += 1
                asked.at_once = max(asked.at_once, under_way)
            try:
                said = script(body, before)
            finally:
                with lock:
                    under_way -= 1
            if said.hang:
                over.wait()
                self.close_connection = True
                return
            content = (said.body if isinstance(said.body, str) else json.dumps(said.body)).encode()
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: said.cut])
            self.close_connection = said.cut is not None

        def do_GET(self) -> None:
            known = models is not None and self.path == "/v1/models"
            content = json.dumps({"data": models}).encode() if known else b"not found"
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            pass  # a client that was killed or gave up

    server = Server(("127.0.0.1", 0), Handler)
    asked = Asked(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
