"""JSON over HTTP to a model server: many requests at once, their answers in order, and every item ends exactly once.

    answered            2xx with JSON that the caller's `read` takes
    failed, a reason    this request cannot be served (4xx), or every try at it went wrong: 429, 5xx, a timeout, a
                        broken connection, torn JSON, an answer that `read` cannot use
    unchanged           the whole run stopped before it: no server answers, the key is refused, Ctrl-C

A key, or what stands before the @ of a URL, reaches no message: what a server says is scrubbed of them first.
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
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from srpo.errors import ConfigError, InputError, SRPOError

T = TypeVar("T")
Body = Mapping[str, Any] | None  # of a POST request; None makes it a GET

WORTH_ANOTHER_TRY = {408, 425, 429, *range(500, 600)}
WRONG_FOR_ALL = {401, 403, 404, 405, *range(300, 400)}  # no other request would fare better
LONGEST_WAIT = 60.0  # seconds between two tries; a server may ask for more, up to the next
LONGEST_RETRY_AFTER = 600.0
LARGEST = 1 << 26  # bytes of one answer
WINDOW = 4  # × concurrency items are under way or wait for an earlier one to end


class _TryAgain(Exception):
    """This try went wrong; another may not. `after` is how long the server wants to be left alone, where it says so."""

    def __init__(self, reason: str, *, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after, self.unreachable = after, unreachable


class UnusableAnswer(_TryAgain):
    """Raised by a `read`: the JSON came whole, but what is needed does not stand in it. The request is tried again."""


class Refused(Exception):
    """This request cannot be served, however often it is sent. A `read` may raise it, too."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """How one request ended.

    Attributes:
        value: what `read` made of the answer; None if the request failed.
        failed: why there is none, in one line without secrets; empty if there is one.
        tries: requests sent.
        seconds: from the first of them to the end, waits included.
        worn_out: every try went wrong, so that another time may be different; False for a request that was refused.
    """

    value: T | None
    failed: str = ""
    tries: int = 1
    seconds: float = 0.0
    worn_out: bool = False


class Endpoint:
    """A server that takes and gives JSON.

    Args:
        base_url: what stands before every path, e.g. `http://localhost:8000/v1`; `user:password@` in it is sent as
            basic authentication, and a query is added to every request.
        api_key_env: name of the environment variable that holds the key, sent as a bearer token. A key given itself
            would stay in shell histories and process lists.
        timeout: seconds one try may take from the request to the last byte of the answer.
        tries: for one item.
        concurrency: requests under way at the same time, at most.
        backoff: seconds before the second try; twice as many before each further one, up to a minute, less a random
            part. A Retry-After from the server counts instead, and holds back every other request as well.

    Raises:
        ConfigError: no such URL, an unset or empty key, two ways to authenticate, a number out of range, no httpx.

    Example:
        >>> Endpoint("http://me:secret@localhost:8000/v1/?token=secret")
        Endpoint('http://localhost:8000/v1')
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str = "",
        timeout: float = 120.0,
        tries: int = 6,
        concurrency: int = 16,
        backoff: float = 0.5,
    ) -> None:
        for name, value, least in (("tries", tries, 1), ("concurrency", concurrency, 1), ("backoff", backoff, 0)):
            if not value >= least:
                raise ConfigError(f"{value}", where=name, expected=f"{least} or more")
        if not timeout > 0:
            raise ConfigError(f"{timeout}", where="timeout", expected="seconds above 0")
        self.timeout, self.tries, self.concurrency, self.backoff = timeout, tries, concurrency, backoff
        self.url, self._query, userinfo = _parts(base_url)
        key = _key(api_key_env)
        if key and userinfo:
            raise ConfigError("a key, and a user in the URL", where="base_url", fix="authenticate in one way")
        self._secrets = _spellings(key, userinfo, self._query)
        self._client = _client(key, userinfo, timeout, concurrency)
        self._closing = weakref.finalize(self, self._client.close)
        self._slots = threading.Semaphore(concurrency)
        self._quiet_until = 0.0  # of the monotonic clock; a server over its limit wants no request at all

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def each(
        self,
        path: str,
        bodies: Iterable[Mapping[str, Any]],
        read: Callable[[Any], T],
        keep: Callable[[Mapping[str, Any], T], None] | None = None,
    ) -> Iterator[Reply[T]]:
        """The replies to one request per body, in the order of the bodies, each as soon as those before it ended.

        Args:
            path: appended to the base URL: `completions`, say.
            bodies: a JSON object each, sent by POST; taken as they are needed.
            read: the parsed answer → what is wanted of it. It runs on other threads. Where the answer lacks what is
                needed it raises `UnusableAnswer`, or the KeyError, IndexError or TypeError of looking for it.
            keep: told of each body and what was read of its answer, on the same thread as soon as it came and before
                another request takes its turn: an answer that was paid for should not be lost to a kill while it
                waits for the ones before it.

        Raises:
            ConfigError: the server refuses the key, or knows no such path or model.
            InputError: no server answers, or every try has failed at as many items in a row as run at once.
        """
        stop = threading.Event()
        jobs: deque[_Job[T]] = deque()
        in_a_row = 0
        source = iter(bodies)
        try:
            while True:
                for body in itertools.islice(source, WINDOW * self.concurrency - len(jobs)):
                    kept = functools.partial(_kept, body, read, keep)
                    jobs.append(_Job(functools.partial(self._item, path, body, kept, stop)))
                if not jobs:
                    return
                reply = jobs.popleft().result()
                in_a_row = in_a_row + 1 if reply.worn_out else 0
                if in_a_row > max(8, self.concurrency):
                    fix = "see to the server; the same command goes on"
                    raise InputError(f"{in_a_row} requests in a row failed: {reply.failed}", where=self.url, fix=fix)
                yield reply
        finally:
            stop.set()  # what still waits for its turn is not sent

    def get(self, path: str, read: Callable[[Any], T]) -> Reply[T]:
        """The reply to a GET request. A path that the server does not know is a failed reply, and no error."""
        return self._item(path, None, read, threading.Event())

    def close(self) -> None:
        """Closes the connections; otherwise they are closed when nobody asks here any more."""
        self._closing()

    # ------------------------------------------------------------------ one item

    def _item(self, path: str, body: Body, read: Callable[[Any], T], stop: threading.Event) -> Reply[T]:
        """Tries until the item ends."""
        began = time.monotonic()
        problem = _TryAgain("not sent", after=0.0)
        for attempt in range(1, self.tries + 1):
            if stop.wait(self._pause(attempt, problem)):
                return Reply(None, "not sent", attempt - 1)
            try:
                return Reply(self._try(path, body, read), "", attempt, time.monotonic() - began)
            except Refused as error:
                return Reply(None, str(error), attempt, time.monotonic() - began)
            except _TryAgain as error:
                problem = error
        if problem.unreachable:
            raise InputError(f"no server answers: {problem}", where=self.url, fix="start it, or mend the URL")
        return Reply(None, f"{problem} ({self.tries} tries)", self.tries, time.monotonic() - began, worn_out=True)

    def _pause(self, attempt: int, problem: _TryAgain) -> float:
        """Seconds before that attempt; the random part keeps requests that failed together from coming back so."""
        pause = problem.after
        if pause is None:
            pause = min(LONGEST_WAIT, self.backoff * 2 ** (attempt - 2)) * random.uniform(0.5, 1.0)
        return max(pause, self._quiet_until - time.monotonic())

    def _try(self, path: str, body: Body, read: Callable[[Any], T]) -> T:
        """One request, and what is made of its answer."""
        with self._slots:
            status, retry_after, content = self._send(path, body)
            return self._made(path, body, read, status, retry_after, content)

    def _made(
        self, path: str, body: Body, read: Callable[[Any], T], status: int, retry_after: float | None, content: bytes
    ) -> T:
        """What `read` makes of an answer, or why there is nothing to read."""
        if 200 <= status < 300:
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
        said = f"HTTP {status}: {self._clean(_message(content))}"
        if status in WORTH_ANOTHER_TRY:
            if retry_after is not None:
                self._quiet_until = max(self._quiet_until, time.monotonic() + retry_after)
            raise _TryAgain(said, after=retry_after)
        if status in WRONG_FOR_ALL and (body is not None or status in (401, 403)):
            fix = "name the variable that holds the key" if status in (401, 403) else "mend the URL or the model's name"
            raise ConfigError(said, where=f"{self.url}/{path}", fix=fix)
        raise Refused(said)

    def _send(self, path: str, body: Body) -> tuple[int, float | None, bytes]:
        """(status, seconds of Retry-After, content) of one request; the body is read here, so that the timeout is one
        for the whole rather than for each piece of it."""
        import httpx

        content = bytearray()
        sent: dict[str, Any] = {"method": "GET"}
        if body is not None:
            headers = {"Content-Type": "application/json"}
            sent = {"method": "POST", "content": json.dumps(body).encode(), "headers": headers}
        try:
            until = time.monotonic() + self.timeout
            with self._client.stream(url=f"{self.url}/{path}{self._query}", **sent) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        raise Refused(f"an answer of more than {LARGEST} bytes")
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("dribbling")
        except httpx.ConnectError as error:
            raise _TryAgain(self._clean(str(error)), unreachable=True) from None
        except httpx.TimeoutException:
            raise _TryAgain(f"no answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:
            raise _TryAgain(f"the connection broke: {self._clean(str(error))}") from None
        return response.status_code, _seconds(response.headers.get("retry-after", "")), bytes(content)

    def _clean(self, text: str) -> str:
        """One short line without secrets or control characters."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(re.sub(r"[^ -~\u00a0-\ud7ff\ue000-\U0010ffff]+", " ", text).split())[:200]


class _Job(Generic[T]):
    """One item on a thread of its own. A daemon thread: Ctrl-C must not wait for a server that does not answer."""

    def __init__(self, work: Callable[[], Reply[T]]) -> None:
        self._work, self._done = work, threading.Event()
        self._ended: Reply[T] | SRPOError | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._ended = self._work()
        except SRPOError as error:
            self._ended = error
        finally:
            self._done.set()

    def result(self) -> Reply[T]:
        self._done.wait()
        if isinstance(self._ended, SRPOError):
            raise self._ended
        assert self._ended is not None  # the thread's own traceback has been printed
        return self._ended


def _kept(
    body: Mapping[str, Any], read: Callable[[Any], T], keep: Callable[[Mapping[str, Any], T], None] | None, answer: Any
) -> T:
    value = read(answer)
    if keep is not None:
        keep(body, value)
    return value


# ---------------------------------------------------------------------- what is in a URL, a header, an error


def _parts(base_url: str) -> tuple[str, str, str]:
    """(URL that may be shown, "?query" or "", "user:password" or "") of the URL as given."""
    fix = "write it as http://host:port/v1"
    try:
        split = urlsplit(base_url.strip())
        port = f":{split.port}" if split.port else ""
    except ValueError:  # its message would quote the URL
        raise ConfigError("no URL", where="base_url", fix=fix) from None
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ConfigError("no http:// or https:// URL", where="base_url", fix=fix)
    host = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
    if "@" in split.path:  # a slash in the password ended the host there
        raise ConfigError("an @ behind the host", where="base_url", fix="write / in a password as %2F")
    shown = urlunsplit((split.scheme, host + port, split.path.rstrip("/"), "", ""))
    return shown, f"?{split.query}" if split.query else "", split.netloc.rpartition("@")[0]


def _key(api_key_env: str) -> str:
    """The key in that variable of the environment; none where no variable is named."""
    if not api_key_env:
        return ""
    key = os.environ.get(api_key_env, "").strip()
    if not re.fullmatch(r"\w+", api_key_env, re.ASCII):  # a key, rather than a name: not to be shown
        raise ConfigError(
            "not the name of a variable", where="api_key_env", fix="put the key into a variable, name that"
        )
    if not key:
        raise ConfigError("the environment has no such variable", where=api_key_env, fix=f"export {api_key_env}=…")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("holds what cannot be sent in a header", where=api_key_env, expected="printable ASCII")
    return key


def _spellings(key: str, userinfo: str, query: str) -> list[str]:
    """Every form in which a secret may come back, the longest first."""
    plain = [key, *(unquote(part) for part in userinfo.split(":", 1))]
    plain += [unquote(value) for value in re.findall(r"=([^&]+)", query)]
    encoded = [base64.b64encode(unquote(userinfo).encode()).decode()] if userinfo else []
    forms = {form for secret in plain for form in (secret, quote(secret, safe=""))} | {
        *encoded,
        *userinfo.split(":", 1),
    }
    return sorted(forms - {""}, key=len, reverse=True)


def _client(key: str, userinfo: str, timeout: float, concurrency: int) -> Any:
    try:
        import httpx
    except ImportError:
        raise ConfigError("httpx is not installed", where="base_url", fix="pip install 'srpo[server]'") from None
    # It logs every request with its whole URL, and what stands in a query may be a secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    user, _, password = userinfo.partition(":")
    return httpx.Client(
        auth=(unquote(user), unquote(password)) if userinfo else None,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(timeout, pool=None),
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
    )


def _seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for, a number or a date; None where it says nothing that can be read."""
    try:
        wanted = float(retry_after)
    except ValueError:
        try:
            wanted = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(wanted, 0.0), LONGEST_RETRY_AFTER) if wanted == wanted else None


def _message(content: bytes) -> str:
    """What a server says went wrong: the message in its JSON where there is one, else the text."""
    text = content[:100_000].decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except ValueError:
        return text
    for key in ("error", "message", "detail"):
        said = said.get(key, said) if isinstance(said, dict) else said
    return said if isinstance(said, str) else text
