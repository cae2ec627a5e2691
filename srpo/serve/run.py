"""Runs the server until a signal, then lets accepted requests finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, OutputError
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.serve.app import Service
from srpo.serve.model import ServedModel
from srpo.serve.settings import ServeSettings

log = logging.getLogger("srpo")
STOPS = (signal.SIGTERM, signal.SIGINT)


def expect_installed() -> None:
    """Checks that the libraries of the server are installed.

    Raises:
        ConfigError: one is missing.
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed", where="serve", fix="pip install 'srpo[serve]'") from None


def listening(settings: ServeSettings) -> socket.socket:
    """Opens and returns the socket of the server, before weights are read.

    Raises:
        OutputError: the address is in use, or no address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
    except OSError as error:
        found.close()
        place = f"{settings.host}:{settings.port}"
        fix = "name another --host or --port"
        raise OutputError(f"cannot listen: {error.strerror}", where=place, fix=fix) from None
    return found


def serve(reviser: Reviser, name: str, revision: RevisionSettings, settings: ServeSettings, on: socket.socket) -> int:
    """Answers requests until SIGTERM or SIGINT, finishes accepted ones, and returns exit code 0.

    Args:
        name: name of the served model.
        revision: defaults of requests.
        on: the open socket.

    Raises:
        ConfigError: the default policy needs a confidence that the model lacks.
    """
    import uvicorn

    service = Service(ServedModel(reviser, revision), name, settings)
    server = make_server(uvicorn.Config(**server_options(service, settings)))
    host, port = on.getsockname()[:2]
    policy, most = service.model.policy.name, service.model.revisions
    shown = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    log.info("srpo: serving %s at %s/v1 (policy %s, %d revisions at most)", name, shown, policy, most)
    asyncio.run(server.serve(sockets=[on]))
    return 0


def server_options(service: Service, settings: ServeSettings) -> dict[str, Any]:
    """Returns the keyword arguments of uvicorn's configuration for this server."""
    return {
        "app": service.app,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "on",
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": int(settings.drain_timeout) or 1,
        "h11_max_incomplete_event_size": 64 * 1024,
        "http": "h11",
        "ws": "none",
        "loop": "asyncio",
    }


def make_server(config: Any) -> Any:
    """Returns a uvicorn server that ends normally at a signal; uvicorn's own class would raise the signal again."""
    import uvicorn

    logging.getLogger("uvicorn.error").addFilter(_without_traceback)

    class Server(uvicorn.Server):
        should_exit: bool
        force_exit: bool

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            loop = asyncio.get_running_loop()
            before = {number: signal.getsignal(number) for number in STOPS}
            for number in STOPS:
                loop.add_signal_handler(number, self._stop, number)
            try:
                yield
            finally:
                for number, handler in before.items():
                    loop.remove_signal_handler(number)
                    signal.signal(number, handler)

        def _stop(self, number: int) -> None:
            if self.should_exit:  # a second signal does not wait
                self.force_exit = True
            self.should_exit = True
            log.info("srpo: %s: no new requests; accepted ones finish", signal.Signals(number).name)

    return Server(config)


def _without_traceback(record: logging.LogRecord) -> bool:
    """A log filter that drops records below WARNING, and replaces a traceback by the name of the exception's class.

    Lines of a traceback may hold prompts.
    """
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = f"srpo: internal error: {kind.__name__ if kind else 'unknown'}", ()
        record.exc_info = record.exc_text = None
    return record.levelno >= logging.WARNING


def name_of(path: str, settings: ServeSettings) -> str:
    """Returns the name of the served model: the one in the settings, or the last part of `path`, the model's."""
    return settings.name or (Path(path).name or "model").replace("@", "-").replace(",", "-")
