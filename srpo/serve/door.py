"""ASGI middleware around every request: checks key and host, writes the access log, turns errors into responses."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from srpo.serve.metrics import Metrics
from srpo.serve.problems import Problem
from srpo.serve.settings import LOOPBACK, ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
access = logging.getLogger("srpo").getChild("access")
_PORT = re.compile(r":\d+$")
OPEN = {"/", "/health", "/static/page.js", "/static/page.css"}  # served without a key
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


class Door:
    """ASGI middleware that checks a request's key and host, logs it and counts it.

    Args:
        app: The application that handles admitted requests.
        keys: Keys of clients; empty admits everybody.
        settings: Host and limits.
        metrics: Counters of the server.
    """

    def __init__(self, app: App, keys: Sequence[str], settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.metrics, self.draining = app, metrics, False
        self._keys = [key.encode() for key in keys]
        self._hosts = {*LOOPBACK, "[::1]"} if settings.host in LOOPBACK else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes an admitted request to the application, and answers any other one with its error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, request_id = time.monotonic(), 499, secrets.token_hex(8)
        scope["srpo"] = {"id": request_id}

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = {"x-request-id": request_id, **HEADERS}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, receive, sent)
        except Problem as problem:
            from starlette.responses import JSONResponse

            refusal = JSONResponse(problem.body(), problem.status, problem.headers())
            await refusal(scope, receive, sent)
        finally:
            seconds = time.monotonic() - began
            path = scope.get("route_path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels("request").observe(seconds)
            noted = " ".join(f"{name}={value}" for name, value in scope["srpo"].items())
            access.info("%s %s %d %.0f ms %s", scope["method"], path, status, 1000 * seconds, noted)

    def _admit(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        host = _PORT.sub("", headers.get("host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            # A page of another site whose name was pointed at this machine would be let in otherwise.
            raise Problem(403, "this server answers on the loopback interface only", code="wrong_host")
        if scope["path"] in OPEN or not self._keys:
            return
        given = headers.get("authorization", b"")
        scheme, _, key = given.partition(b" ")
        right = [hmac.compare_digest(key.strip(), each) for each in self._keys]  # all of them: no early exit
        if scheme.lower() != b"bearer" or not any(right):
            message = "the key is missing or wrong; send it as Authorization: Bearer …"
            raise Problem(401, message, code="invalid_api_key")
