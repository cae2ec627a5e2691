"""The web application of `srpo serve`: routes of OpenAI's API, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from srpo import __version__
from srpo.errors import DataError, OutputError, SRPOError
from srpo.judge.votes import append_vote
from srpo.revise.chain import Chain
from srpo.serve.asked import Asked, asked, vote_of
from srpo.serve.door import Door
from srpo.serve.metrics import Metrics
from srpo.serve.model import ServedModel
from srpo.serve.pictures import NO_PICTURES, PictureLimits, shows
from srpo.serve.problems import Problem, problem_of
from srpo.serve.replies import DONE, Reply, error_chunk, usage
from srpo.serve.scheduler import Event, Job, Scheduler
from srpo.serve.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

GONE = (-1, None)  # event: the client has closed the connection
# Path → file of the page and its media type.
PAGE = {
    "/": ("index.html", "text/html"),
    "/static/page.js": ("page.js", "text/javascript"),
    "/static/page.css": ("page.css", "text/css"),
}
BODY_SECONDS = 60.0  # for the body of a request to arrive
CONCURRENT_UPSTREAM = 16  # batches under way together, if another server generates


class Service:
    """The request handlers of one `srpo serve` process.

    Args:
        model: The served model.
        name: Name of the model.
        settings: Limits.

    Attributes:
        app: The ASGI application.
    """

    def __init__(self, model: ServedModel, name: str, settings: ServeSettings) -> None:
        self.model, self.name, self.settings = model, name, settings
        self.metrics, self.created = Metrics(), int(time.time())
        self.scheduler: Scheduler
        self._decoding = asyncio.Lock()
        self.app = Door(self._routes(), settings.keys(), settings, self.metrics)

    def _routes(self) -> Any:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def refused(request: Request, error: Exception) -> Response:
            status = getattr(error, "status_code", 500)
            problem = error if isinstance(error, Problem) else Problem(status, str(getattr(error, "detail", "")))
            return JSONResponse(problem.body(), problem.status, problem.headers())

        def route(path: str, handler: Any, method: str) -> Route:
            async def handle(request: Request) -> Response:
                request.scope["route_path"] = path
                found: Response = await handler(request)
                return found

            return Route(path, handle, methods=[method])

        routes = [
            route("/v1/chat/completions", self._chat, "POST"),
            route("/v1/completions", self._completions, "POST"),
            route("/v1/models", self._models, "GET"),
            route("/v1/models/{name:path}", self._model, "GET"),
            route("/v1/votes", self._vote, "POST"),
            route("/health", self._health, "GET"),
            route("/metrics", self._metrics, "GET"),
            *(Route(path, _file(name, kind)) for path, (name, kind) in PAGE.items()),
        ]
        handlers: Any = {Problem: refused, HTTPException: refused}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        workers = CONCURRENT_UPSTREAM if self.model.upstream else 1
        most = self.settings.max_waiting
        reviser, ended = self.model.reviser, self.model.look_at
        self.scheduler = Scheduler(reviser, self.metrics, ended=ended, workers=workers, most=most)
        try:
            yield
        finally:
            await self.scheduler.close()

    # ------------------------------------------------------------------ small routes

    async def _health(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        model = self.model
        found = {
            **{"status": "ok", "model": self.name, "waiting": self.scheduler.busy, "srpo": __version__},
            **{"policy": model.policy.name, "revisions": model.revisions, "votes": bool(self.settings.votes)},
            "max_revisions": self.settings.max_revisions,
        }
        return JSONResponse(found)

    async def _metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        names = [self.name, f"{self.name}@draft", f"{self.name}@k=1", f"{self.name}@k=2"]
        return JSONResponse({"object": "list", "data": [self._card(name) for name in names]})

    async def _model(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        name = request.path_params["name"]
        key = {"messages": [{"role": "user", "content": "?"}]}
        asked({"model": name, **key}, chat=True, name=self.name, most=self.settings.max_revisions, choices=1)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        card: dict[str, Any] = {"id": name, "object": "model", "created": self.created, "owned_by": "srpo"}
        if self.model.reviser.engine.max_length is not None:
            card["max_model_len"] = self.model.reviser.engine.max_length
        return card if name == self.name else {**card, "parent": self.name}

    async def _vote(self, request: Request) -> Response:
        """Appends a vote that a person gave on the page to the file of votes; returns the response."""
        from starlette.responses import JSONResponse

        if not self.settings.votes:
            raise Problem(404, "this server takes no votes; start it with --votes FILE", code="no_votes")
        vote = vote_of(await self.body(request))
        try:
            await asyncio.to_thread(append_vote, self.settings.votes, model=self.name, **vote)
        except DataError as error:
            raise Problem(409, error.what, param="vote", code="vote_refused") from None
        except OutputError as error:
            message = f"the vote is not recorded: {error.what}"
            raise Problem(507, message, kind="server_error", code="cannot_write") from None
        return JSONResponse({"recorded": True})

    # ------------------------------------------------------------------ completions

    async def _chat(self, request: Request) -> Response:
        return await self._complete(request, chat=True)

    async def _completions(self, request: Request) -> Response:
        return await self._complete(request, chat=False)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        from starlette.responses import JSONResponse, Response, StreamingResponse

        body = await self.body(request)
        until = time.monotonic() + self.settings.request_timeout
        found, jobs, queue = await self._accepted(body, until, chat=chat)
        self.scheduler.submit(jobs)
        reply = Reply(found.model, chat, found.trail)
        note = request.scope["srpo"]
        if self.settings.log_prompts:
            note["prompts"] = json.dumps([row.prompt for row in found.rows], ensure_ascii=False)
        events = self._events(request, jobs, queue, until)
        if found.stream:
            stream = self._stream(events, jobs, reply, found, note)
            return StreamingResponse(stream, media_type="text/event-stream")
        async for event in events:
            if event is GONE:
                return Response(status_code=499)
        chains = [job.chain for job in jobs]
        _expect_answered(chains)
        self._note(note, chains)
        return JSONResponse(reply.whole(chains))

    async def _accepted(
        self, body: object, until: float, *, chat: bool
    ) -> tuple[Asked, list[Job], asyncio.Queue[Event]]:
        """Checks a request's body and makes its jobs; pictures are decoded in a thread, of one request at a time.

        Args:
            until: Time on the clock of `time.monotonic` after which decoding does not begin.

        Raises:
            Problem: The request is refused, the queue is full, or the pictures waited too long.
        """
        most, choices = self.settings.max_revisions, self.settings.max_choices

        def accept(pictures: PictureLimits = NO_PICTURES) -> tuple[Asked, list[Job], asyncio.Queue[Event]]:
            found = asked(body, chat=chat, name=self.name, most=most, choices=choices, pictures=pictures)
            return found, *self.model.jobs(found)

        def accept_pictures() -> tuple[Asked, list[Job], asyncio.Queue[Event]]:
            try:
                allowed = self.settings.max_pictures if self.model.sees else 0
            except SRPOError as error:  # the processor cannot be loaded
                raise problem_of(error, upstream=False) from None
            return accept(PictureLimits(allowed, self.settings.max_pixels))

        if not (chat and isinstance(body, dict) and shows(body.get("messages"))):
            return accept()
        with self.scheduler.announced():
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._decoding.acquire()
            except TimeoutError:
                raise self._too_late() from None
            try:
                return await asyncio.to_thread(accept_pictures)
            finally:
                self._decoding.release()

    def _too_late(self) -> Problem:
        message = f"no answer within {self.settings.request_timeout:g} s"
        return Problem(504, message, kind="server_error", code="timeout")

    async def _stream(
        self, events: AsyncIterator[Event], jobs: list[Job], reply: Reply, found: Asked, note: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        """Yields the chunks of a streamed answer; an error ends the stream with its JSON object."""
        chains = [job.chain for job in jobs]
        seen, sent, ended = [0] * len(jobs), [""] * len(jobs), 0
        try:
            for place in range(len(jobs)):
                yield reply.role_chunk(place)
            async for event in events:
                place, value = event
                if event is GONE:
                    return
                if value is None:
                    _expect_answered([chains[place]])
                    ended += 1
                    last = () if found.usage_chunk or ended < len(jobs) else chains
                    for chunk in reply.text_chunks(place, chains[place], sent[place], last):
                        yield chunk
                elif isinstance(value, str):
                    if len(value) > len(sent[place]):
                        yield reply.delta_chunk(place, value[len(sent[place]) :])
                        sent[place] = value
                    continue
                elif found.trail:
                    yield reply.event_chunk(place, chains[place], seen[place])
                seen[place] += 1
            if found.usage_chunk:
                yield reply.usage_chunk(chains)
            self._note(note, chains)
        except Problem as problem:
            note["error"] = problem.code or problem.kind
            yield error_chunk(problem)
        yield DONE

    async def _events(
        self, request: Request, jobs: list[Job], queue: asyncio.Queue[Event], until: float
    ) -> AsyncIterator[Event]:
        """Yields every answer and end of the jobs, or `GONE` once the client has closed the connection.

        Args:
            until: Time on the clock of `time.monotonic` at which the request has taken too long.

        Raises:
            Problem: A job failed, or the request took too long.
        """
        watcher = asyncio.create_task(_watch(request, queue))
        open_jobs = len(jobs)
        try:
            while open_jobs:
                try:
                    event = await asyncio.wait_for(queue.get(), until - time.monotonic())
                except TimeoutError:
                    raise self._too_late() from None
                if isinstance(event[1], BaseException):
                    raise problem_of(event[1], upstream=self.model.upstream)
                yield event
                if event is GONE:
                    return
                open_jobs -= event[1] is None
        finally:
            watcher.cancel()
            for job in jobs:
                job.left = True

    async def body(self, request: Request) -> Any:
        """Reads the body of an HTTP request and returns its parsed JSON.

        Raises:
            Problem: The body is not sent as application/json, is too large, too slow, not UTF-8 or not JSON.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of another site could be sent without asking this server first
            raise Problem(415, "Content-Type: application/json is expected")
        content, most = bytearray(), self.settings.max_body
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    content += piece
                    if len(content) > most:
                        raise Problem(413, f"the body is larger than {most} bytes", code="body_too_large")
        except TimeoutError:
            raise Problem(408, "the body did not arrive in time", code="timeout") from None
        try:
            return json.loads(content.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise Problem(400, f"the body is not UTF-8: {error.reason}", code="invalid_json") from None
        except RecursionError:
            raise Problem(400, "the body is nested too deep", code="invalid_json") from None
        except ValueError as error:
            raise Problem(400, f"the body is not JSON: {error}", code="invalid_json") from None

    def _note(self, note: dict[str, Any], chains: list[Chain]) -> None:
        """Adds counts of tokens and revisions, and with `log_prompts` the answers, to a request's access-log line."""
        found = usage(chains)
        note["prompt_tokens"], note["completion_tokens"] = found["prompt_tokens"], found["completion_tokens"]
        note["revisions"] = sum(len(chain.answers) - 1 for chain in chains)
        if self.settings.log_prompts:
            note["answers"] = json.dumps([chain.in_hand.text for chain in chains], ensure_ascii=False)


def _expect_answered(chains: list[Chain]) -> None:
    """Checks that each chain has an answer.

    Raises:
        Problem: The prompt does not fit the model, or its server gave no answer.
    """
    for chain in chains:
        if chain.failed:
            raise Problem(502, f"the model's server: {chain.failed}", kind="server_error", code="upstream_error")
        if chain.impossible and not chain.answers:
            raise Problem(400, chain.impossible, param="messages", code="context_length_exceeded")


async def _watch(request: Request, queue: asyncio.Queue[Event]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    queue.put_nowait(GONE)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _file(name: str, kind: str) -> Any:
    """Returns the handler of requests for one file of the page.

    The file is read here, once: no path in a request can reach the disk.
    """
    from starlette.responses import Response

    content = (files("srpo.serve") / "static" / name).read_bytes()

    async def handle(request: Request) -> Response:
        request.scope["route_path"] = "page"
        return Response(content, media_type=kind)

    return handle
