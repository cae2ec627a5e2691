"""Batches of concurrent requests: prompts at the same stage and with equal sampling settings share a forward pass.

A batch has only drafts, or only revisions, with the same temperature, seed and limit of tokens. Number of revisions,
policy and stop texts are each request's own. A worker takes the largest batch of waiting answers, so that a draft
written alone waits for the next drafts and is revised with them; an answer passed over `PATIENCE` times goes first. An
idle worker waits a few milliseconds for more requests, since those sent together arrive one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from srpo.revise.chain import Chain
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Answer
from srpo.sequences.render import Renderer, options_of
from srpo.serve.metrics import Metrics
from srpo.serve.problems import Problem

# Place of the chain in its request; a new answer, the answer's text so far, the exception that ended the chain, or None
# at its end.
Event = tuple[int, Answer | str | BaseException | None]
PATIENCE = 2  # batches that an answer lets go first
GATHER, GATHERINGS = 0.005, 10  # seconds in which an idle worker expects another request; most such waits in a row


@dataclass(eq=False)
class Job:
    """One chain (a prompt with its answers so far) that waits for the model or is being answered.

    Attributes:
        chain: The prompt with its answers so far.
        settings: Sampling settings; jobs with equal settings share batches.
        place: Place of the chain in its request.
        live: True if the request receives the text of its answer while it is written.
        events: Queue of the request that receives each answer and the end.
        since: Time at which the job began to wait for its next step, on the clock of `time.monotonic`.
        left: True if the client has gone, so that no further step is taken.
        passed: Number of batches that were taken without this job since it began to wait.
    """

    chain: Chain
    settings: RevisionSettings
    place: int
    events: asyncio.Queue[Event]
    live: bool = False
    since: float = field(default_factory=time.monotonic)
    left: bool = False
    passed: int = 0

    @property
    def group(self) -> tuple[tuple[str, int], RevisionSettings]:
        """Key of the batches that this job can join: jobs with equal keys can share a batch."""
        return self.chain.stage, self.settings


class Scheduler:
    """Draws the answers of all requests with one reviser, batch by batch, on worker threads.

    Args:
        reviser: The model.
        ended: Called with the chains that end and their settings, on the thread that drew them.
        workers: Number of batches under way together: 1 for a model in this process.
        most: Largest value of `busy`.
        pause: Waits for that many seconds.
    """

    def __init__(
        self,
        reviser: Reviser,
        metrics: Metrics,
        *,
        ended: Callable[[list[Chain], RevisionSettings], None],
        workers: int,
        most: int,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.reviser, self.metrics, self.most, self._ended, self._pause = reviser, metrics, most, ended, pause
        self._waiting: list[Job] = []  # in order of arrival
        self._under_way = self._announced = 0
        self._arrived = asyncio.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="srpo-model")
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]

    @property
    def busy(self) -> int:
        """Number of answers that wait or are written; a request whose pictures are not decoded yet counts as one."""
        return len(self._waiting) + self._under_way + self._announced

    def submit(self, jobs: Sequence[Job]) -> None:
        """Adds all jobs of a request, one per answer, to the queue.

        Raises:
            Problem: The queue has no room for all of them.
        """
        self._expect_room(len(jobs))
        self._waiting += jobs
        self._changed()

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Counts one request as busy inside the block, while it has no jobs yet.

        Raises:
            Problem: The queue is full.
        """
        self._expect_room(1)
        self._announced += 1
        self.metrics.waiting.set(self.busy)
        try:
            yield
        finally:
            self._announced -= 1
            self.metrics.waiting.set(self.busy)

    def _expect_room(self, count: int) -> None:
        if self.busy + count > self.most:
            message = f"the queue is full: {self.busy} answers wait or are being written"
            raise Problem(429, message, kind="rate_limit_error", code="queue_full", retry_after=1)

    async def close(self) -> None:
        """Ends the workers; jobs that still wait get no answer."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ batches

    def _changed(self) -> None:
        self.metrics.waiting.set(self.busy)
        self._arrived.set()

    async def _work(self) -> None:
        while True:
            if batch := self._take():
                await self._step(batch)
            else:
                self._arrived.clear()
                await self._arrived.wait()
                await self._gather()

    async def _gather(self) -> None:
        """Waits while further jobs arrive and a batch has room for them."""
        seen = 0
        for _ in range(GATHERINGS):
            if not seen < len(self._waiting) < self.reviser.engine.batch_size:
                return
            seen = len(self._waiting)
            await self._pause(GATHER)

    def _take(self) -> list[Job]:
        """Removes the largest batch from the queue, or that of a job out of patience; empty without a waiting job."""
        self._waiting = [job for job in self._waiting if not job.left]
        if not self._waiting:
            return []
        most, sizes = self.reviser.engine.batch_size, Counter(job.group for job in self._waiting)
        impatient = (job for job in self._waiting if job.passed >= PATIENCE)
        first = next(impatient, None) or max(self._waiting, key=lambda job: min(sizes[job.group], most))
        others = [job for job in self._waiting if job.group == first.group and job is not first]
        batch = [first, *others][:most]
        taken = {id(job) for job in batch}
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        for job in self._waiting:
            job.passed += 1
        self._under_way += len(batch)
        return batch

    def _draw(self, jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> None:
        """Draws the next answer of each job's chain; a chain that ends gets its final answer. Runs on a worker thread.

        `loop` is the event loop of the requests, which are sent the beginnings of answers that are streamed.
        """
        chains, settings = [job.chain for job in jobs], jobs[0].settings
        live = {id(job.chain): job for job in jobs if job.live}

        def show(chain: Chain, ids: list[int]) -> None:
            if job := live.get(id(chain)):
                event = job.place, begun(self.reviser.renderer, chain, ids)
                loop.call_soon_threadsafe(job.events.put_nowait, event)

        self.reviser.step(chains, settings, show if live else None)
        ended = [chain for chain in chains if chain.ended]
        self.reviser.finish(ended)
        self._ended(ended, settings)

    async def _step(self, batch: list[Job]) -> None:
        """Draws the next answer of each job, on a thread of the pool."""
        began = time.monotonic()
        stage, _ = batch[0].chain.stage
        for job in batch:
            self.metrics.seconds.labels("queue").observe(began - job.since)
        self.metrics.batch.observe(len(batch))
        before = [len(job.chain.answers) for job in batch]
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._draw, batch, loop)
        await asyncio.wait([future])
        error = future.exception()
        self._under_way -= len(batch)
        self.metrics.seconds.labels(stage).observe(time.monotonic() - began)
        if error is not None and len(batch) > 1 and self.reviser.engine.same_batch_same_bits:
            for job in batch:  # one row may have spoilt the batch: each gets a batch of its own
                self._under_way += 1
                await self._step([job])
            return
        again = []
        for job, count in zip(batch, before, strict=True):
            for answer in job.chain.answers[count:]:
                job.events.put_nowait((job.place, answer))
            if error is not None or job.chain.ended:
                if error is None:
                    self.metrics.count(job.chain)
                job.events.put_nowait((job.place, error))
            else:
                job.since, job.passed = time.monotonic(), 0
                again.append(job)
        self._waiting = again + self._waiting
        self._changed()


def begun(renderer: Renderer, chain: Chain, ids: Sequence[int]) -> str:
    """Returns the beginning of an unfinished answer that no later token changes; "" for an answer with thinking.

    The last token is left out, because the next one may join it in a letter or a word, and so is an end that may turn
    out to be the beginning of a stop text.

    Args:
        chain: the prompt with its answers so far.
        ids: token ids of the answer so far.
    """
    options = options_of(chain.row)
    whole = renderer.decode(ids[:-1], options)
    if renderer.undecided(whole, options) or renderer.content_of(whole) != whole:
        return ""
    text, cut = chain.cut(whole)
    held = 0 if cut else max(map(len, chain.stop), default=1) - 1
    return text[: max(0, len(text) - held)].rstrip("\ufffd").rstrip()
