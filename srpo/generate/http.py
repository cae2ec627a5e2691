"""JSON over HTTP to a model server: many concurrent requests, replies in order, and each item ends exactly once.

    answered    a 2xx status with JSON that the caller's `read` accepts
    failed      with a reason: the server refuses the request (4xx), or each try failed (429, 5xx, a timeout, a broken
                connection, incomplete JSON, an answer that `read` rejects)
    unchanged   the run stopped before the item: no server, a refused key, Ctrl-C

httpx sends the requests and tenacity repeats them; see docs/decisions/0009. Keys and passwords are removed from all
text that comes from a server.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import logging
import os
import random
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, unquote

from srpo.errors import ConfigError, InputError, SRPOError
from srpo.generate.settings import EndpointSettings
from srpo.signals import signals

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

T = TypeVar("T")
JSONObject = Mapping[str, Any]

TEMPORARY = {408, 425, 429, *range(500, 600)}  # statuses worth another try
WRONG_FOR_ALL = {401, 403, 404, 405, *range(300, 400)}  # statuses that every request would get
LONGEST_WAIT = 60.0  # seconds between two tries without a Retry-After
LONGEST_RETRY_AFTER = 600.0  # seconds
LARGEST = 1 << 26  # bytes of one answer
PULSE = 0.5  # seconds between two looks for a signal that came unnoticed
WINDOW = 4  # items under way, or waiting for an earlier item to end, per concurrent request


class _TryAgain(Exception):
    """A failed try that may succeed when repeated; `after` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, *, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after, self.unreachable = after, unreachable


class UnusableAnswer(_TryAgain):
    """Raised by a caller's `read` for valid JSON without the needed content; the request is sent again."""


class Refused(Exception):
    """The server refuses a request for good, so it is not repeated. A caller's `read` may raise it too."""


class _Stopped(Exception):
    """The run stopped before a request was sent."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """Result of one HTTP request, all its tries included.

    Attributes:
        value: The server's answer, converted by the caller's `read`; None if the request failed.
        failed: Reason in one line without secrets; empty for an answered request.
        tries: Number of requests sent.
        seconds: Time from the first request to the end, waits included.
        worn_out: True if all tries failed and a later run may succeed; False for a refused request.
    """

    value: T | None
    failed: str = ""
    tries: int = 1
    seconds: float = 0.0
    worn_out: bool = False


class Endpoint:
    """A model server that takes and returns JSON over HTTP.

    Args:
        base_url: URL before every path, such as `http://localhost:8000/v1`. `user:password@` is sent as basic
            authentication, and a query is added to every request.
        options: Other fields of `EndpointSettings`. `timeout` covers one try, from the request to the last byte of the
            answer. The wait before the second try is `backoff` seconds less a random part of up to one half; it doubles
            with each try, up to a minute. A Retry-After replaces the wait and holds back all requests. `api_key_env` is
            the name of an environment variable: shell histories and process lists would show the key itself.

    Attributes:
        close: Closes the connections; garbage collection does the same.

    Raises:
        ConfigError: An invalid URL, an unset or empty key, two ways to authenticate, a number out of range, or missing
            packages.

    Example:
        >>> Endpoint("http://me:secret@localhost:8000/v1/?token=secret")
        Endpoint('http://localhost:8000/v1')
    """

    def __init__(self, base_url: str, **options: Any) -> None:
        settings = EndpointSettings(base_url, **options)
        self.timeout, self.backoff = settings.timeout, settings.backoff
        self.tries, self.concurrency = settings.tries, settings.concurrency
        key = _key(settings.api_key_env)
        self._client = _client(base_url, key, self.timeout, self.concurrency)
        self._secrets = _spellings(self._client, key)
        self.url = str(self._client.base_url.copy_with(userinfo=b"")).rstrip("/")
        self.close = weakref.finalize(self, self._client.close)
        self._slots = threading.Semaphore(self.concurrency)
        self._quiet_until = 0.0  # monotonic clock; a server over its limit wants no request at all

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def each(
        self,
        path: str,
        bodies: Iterable[JSONObject],
        read: Callable[[JSONObject], T],
        keep: Callable[[JSONObject, T], None] | None = None,
    ) -> Iterator[Reply[T]]:
        """Sends one request per body; yields the replies in order, each as soon as all earlier requests ended.

        Args:
            path: Path after the base URL, such as `completions`.
            bodies: One JSON object per POST request, consumed as needed.
            read: Converts the parsed JSON answer, on another thread. Raises `UnusableAnswer`, KeyError, IndexError or
                TypeError for an answer without the needed content.
            keep: Receives each body and its value on the thread of `read`, as soon as the answer arrives. Stored there,
                an answer that waits for earlier items survives if the process is killed.

        Raises:
            ConfigError: The server refuses the key, or has no such path or model.
            InputError: No server answers, or all tries failed for too many items in a row: more than 8, and more than
                run at once.
        """
        stop = threading.Event()
        futures: deque[Future[Reply[T]]] = deque()
        in_a_row = 0
        source = iter(bodies)
        try:
            while True:
                for body in itertools.islice(source, WINDOW * self.concurrency - len(futures)):
                    read_and_keep = functools.partial(_read_and_keep, body, read, keep)
                    futures.append(_start(functools.partial(self._item, path, body, read_and_keep, stop)))
                if not futures:
                    return
                reply = _awaited(futures.popleft())
                in_a_row = in_a_row + 1 if reply.worn_out else 0
                if in_a_row > max(8, self.concurrency):
                    fix = "check the server; the same command continues"
                    raise InputError(f"{in_a_row} requests in a row failed: {reply.failed}", where=self.url, fix=fix)
                yield reply
        finally:
            stop.set()  # waiting requests are not sent

    def get(self, path: str, read: Callable[[JSONObject], T]) -> Reply[T]:
        """Returns the reply to a GET request; an unknown path gives a failed reply, not an error."""
        return self._item(path, None, read, threading.Event())

    # ------------------------------------------------------------------ one item

    def _item(
        self, path: str, body: JSONObject | None, read: Callable[[JSONObject], T], stop: threading.Event
    ) -> Reply[T]:
        """Sends one request, repeating failed tries, and returns its reply; setting `stop` ends the waits."""
        from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt

        began = time.monotonic()
        retrying = Retrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=stop_after_attempt(self.tries),
            wait=self._wait,
            sleep=sleep_using_event(stop),
            reraise=True,
        )
        value, failed, worn_out = None, "", False
        try:
            value = retrying(self._try, path, body, read, stop)
        except _Stopped:
            return Reply(None, "not sent", retrying.statistics["attempt_number"] - 1)
        except Refused as error:
            failed = str(error)
        except _TryAgain as error:
            if error.unreachable:
                fix = "start the server, or correct the URL"
                raise InputError(f"no server answers: {error}", where=self.url, fix=fix) from None
            failed, worn_out = f"{error} ({self.tries} tries)", True
        return Reply(value, failed, retrying.statistics["attempt_number"], time.monotonic() - began, worn_out)

    def _wait(self, state: RetryCallState) -> float:
        """Returns the seconds before the next try of a request; a random part spreads requests that failed together."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TryAgain) and error.after is not None:
            return error.after
        return min(LONGEST_WAIT, self.backoff * 2 ** (state.attempt_number - 1)) * random.uniform(0.5, 1.0)

    def _try(self, path: str, body: JSONObject | None, read: Callable[[JSONObject], T], stop: threading.Event) -> T:
        """Sends a request once, after any Retry-After has passed, and returns the answer converted by `read`."""
        if stop.wait(max(0.0, self._quiet_until - time.monotonic())):
            raise _Stopped
        with self._slots:
            if stop.is_set():  # the caller may have left while this request waited for its slot
                raise _Stopped
            status, retry_after, content = self._send(path, body)
            if 200 <= status < 300:
                return self._value(content, read)
            problem = f"HTTP {status}: {self._clean(_message(content))}"
            if status in TEMPORARY:
                if retry_after is not None:
                    self._quiet_until = max(self._quiet_until, time.monotonic() + retry_after)
                raise _TryAgain(problem, after=retry_after)
            if status in WRONG_FOR_ALL and (body is not None or status in (401, 403)):
                fix = (
                    "name the variable that holds the key" if status in (401, 403) else "correct the URL or model name"
                )
                raise ConfigError(problem, where=f"{self.url}/{path}", fix=fix)
            raise Refused(problem)

    def _value(self, content: bytes, read: Callable[[JSONObject], T]) -> T:
        """Converts the bytes of an answer by `read`; errors become `_TryAgain` or `Refused`, without secrets."""
        try:
            return read(json.loads(content))
        except UnusableAnswer as error:
            raise _TryAgain(self._clean(str(error))) from None
        except Refused as error:
            raise Refused(self._clean(str(error))) from None
        except (KeyError, IndexError, TypeError) as error:
            raise _TryAgain(self._clean(f"JSON of another shape: {error!r}")) from None
        except (ValueError, RecursionError):
            raise _TryAgain("torn JSON") from None

    def _send(self, path: str, body: JSONObject | None) -> tuple[int, float | None, bytes]:
        """Sends one request; returns status, Retry-After in seconds and content.

        httpx applies its timeout to each piece of an answer; reading piece by piece here applies it to the whole.
        """
        import httpx

        method, sent, content = ("GET", None, bytearray()) if body is None else ("POST", json.dumps(body), bytearray())
        until = time.monotonic() + self.timeout
        try:
            with self._client.stream(method, path, content=sent) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        raise Refused(f"an answer of more than {LARGEST} bytes")
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("answer too slow")
        except httpx.ConnectError as error:
            raise _TryAgain(self._clean(str(error)), unreachable=True) from None
        except httpx.TimeoutException:
            raise _TryAgain(f"no answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:
            raise _TryAgain(f"the connection broke: {self._clean(str(error))}") from None
        return response.status_code, _seconds(response.headers.get("retry-after", "")), bytes(content)

    def _clean(self, text: str) -> str:
        """Returns a server's text as one short line without secrets or control characters."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(re.sub(r"[^ -~\u00a0-\ud7ff\ue000-\U0010ffff]+", " ", text).split())[:200]


def connect(settings: EndpointSettings) -> Endpoint:
    """Opens a client for the model server that the settings name; raises the errors of `Endpoint`."""
    names = ("api_key_env", "timeout", "tries", "concurrency", "backoff")
    return Endpoint(settings.base_url, **{name: getattr(settings, name) for name in names})


def _start(work: Callable[[], T]) -> Future[T]:
    """Runs a function on a daemon thread: Ctrl-C must not wait for a silent server, as an executor's threads would."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except SRPOError as error:
            future.set_exception(error)
        finally:
            future.cancel()  # only has an effect after an unexpected error, whose traceback the thread prints

    threading.Thread(target=run, daemon=True).start()
    return future


def _read_and_keep(
    body: JSONObject, read: Callable[[JSONObject], T], keep: Callable[[JSONObject, T], None] | None, answer: JSONObject
) -> T:
    value = read(answer)
    if keep is not None:
        keep(body, value)
    return value


# ---------------------------------------------------------------------- URLs, headers and error texts


def _client(base_url: str, key: str, timeout: float, concurrency: int) -> httpx.Client:
    """Returns the HTTP client of a base URL; httpx takes user, password and query from the URL."""
    try:
        import httpx
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed", where="base_url", fix="pip install 'srpo[server]'"
        ) from None
    # httpx logs every request with its whole URL, and a query may hold a secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    fix = "write it as http://host:port/v1"
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:  # its message would quote the URL
        raise ConfigError("not a URL", where="base_url", fix=fix) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("not an http:// or https:// URL", where="base_url", fix=fix)
    if "@" in url.path:  # a slash in the password ended the host there
        raise ConfigError("an @ behind the host", where="base_url", fix="write / in a password as %2F")
    if key and url.userinfo:
        raise ConfigError("a key, and a user in the URL", where="base_url", fix="authenticate in one way")
    return httpx.Client(
        base_url=url.copy_with(query=None, fragment=None),
        params=url.params,
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        timeout=httpx.Timeout(timeout, pool=None),
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
    )


def _key(api_key_env: str) -> str:
    """Returns the API key in the environment variable `api_key_env`; "" if no variable is named."""
    if not api_key_env:
        return ""
    if not re.fullmatch(r"\w+", api_key_env, re.ASCII):  # probably the key itself: the message must not show it
        fix = "put the key into a variable, and name the variable"
        raise ConfigError("not the name of a variable", where="api_key_env", fix=fix)
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError("the environment has no such variable", where=api_key_env, fix=f"export {api_key_env}=…")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("a header cannot carry its value", where=api_key_env, expected="printable ASCII")
    return key


def _spellings(client: httpx.Client, key: str) -> list[str]:
    """Returns every form in which a server's text may repeat the key or the URL's secrets, the longest first."""
    userinfo = client.base_url.userinfo.decode()
    parts = userinfo.split(":", 1)
    plain = [key, *map(unquote, parts), *client.params.values()]
    encoded = {base64.b64encode(unquote(userinfo).encode()).decode()} if userinfo else set()
    forms = {form for secret in plain for form in (secret, quote(secret, safe=""))} | encoded | {*parts}
    return sorted(forms - {""}, key=len, reverse=True)


def _seconds(retry_after: str) -> float | None:
    """Returns the seconds of a Retry-After header, a number or a date; None for an unreadable one."""
    try:
        wanted = float(retry_after)
    except ValueError:
        try:
            wanted = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(wanted, 0.0), LONGEST_RETRY_AFTER) if wanted == wanted else None


def _message(content: bytes) -> str:
    """Returns the message in a server's JSON error, or the whole text."""
    text = content[:100_000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    for key in ("error", "message", "detail"):
        found = found.get(key, found) if isinstance(found, dict) else found
    return found if isinstance(found, str) else text


def _awaited(future: Future[T]) -> T:
    """Returns the result of a future; waits in short pieces, since a signal does not always end a wait of Python's."""
    while not wait([future], PULSE).done:
        signals.expect_none()
    return future.result()
