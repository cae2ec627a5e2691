"""Order of the batches of concurrent requests: the largest first, and no answer is passed over for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from srpo.data.read import read_prompts
from srpo.generate.engine import Decoding
from srpo.revise.chain import Chain
from srpo.revise.policy import Policy
from srpo.revise.settings import RevisionSettings
from srpo.serve import scheduler
from srpo.serve.metrics import Metrics
from srpo.serve.scheduler import Job, Scheduler
from tests.revise.tiny import Scripted, reviser
from tests.serve.served import GREEDY

LONGER = RevisionSettings(1, temperature=0.0, max_new_tokens=9)
Asked = tuple[list[str], int, RevisionSettings]  # prompts, number of revisions, sampling


def asked(*prompts: str, revisions: int = 1, settings: RevisionSettings = GREEDY) -> Asked:
    return [*prompts], revisions, settings


def jobs(request: Asked) -> list[Job]:
    prompts, revisions, settings = request
    rows, queue = read_prompts([{"prompt": prompt} for prompt in prompts]), asyncio.Queue[Any]()
    return [
        Job(Chain(row, prompt, Policy.named("always"), revisions), settings, place, queue)
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]


class Recorded(Scripted):
    """An engine that records the prompts of each batch, and calls `arrive(n)` while it draws batch n."""

    batches: list[list[str]]
    arrive: Callable[[int], None]

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> Any:
        self.arrive(len(self.batches))
        self.batches.append([key.partition("/")[0] for key in keys])
        return super().complete(contexts, keys, decoding, **more)


def batches(first: Asked, arrivals: dict[int, Asked], batch_size: int = 32) -> list[list[str]]:
    """Returns the prompts of each batch; request `arrivals[n]` arrives while batch n is drawn.

    Requests with negative numbers arrive before the first batch: -1 in the first pause of the idle worker, and so on.
    """
    subject, numbers = reviser(), iter(range(100))
    engine = Recorded(subject, lambda context: str(next(numbers)), batch_size=batch_size)  # no answer is a fixed point
    engine.batches = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        pauses = iter(range(-1, -100, -1))

        async def pause(seconds: float) -> None:
            await submit(next(pauses))

        nothing = lambda chains, settings: None  # noqa: E731
        drawing = Scheduler(subject, Metrics(), ended=nothing, workers=1, most=1000, pause=pause)
        coming = {number: jobs(request) for number, request in arrivals.items()}

        async def submit(number: int) -> None:
            if number in coming:
                drawing.submit(coming[number])

        engine.arrive = lambda number: asyncio.run_coroutine_threadsafe(submit(number), loop).result()
        await asyncio.sleep(0)  # the worker is idle
        begun = jobs(first)
        drawing.submit(begun)
        for request in (begun, *coming.values()):
            ended = 0
            while ended < len(request):
                ended += (await request[0].events.get())[1] is None
        await drawing.close()

    asyncio.run(run())
    return engine.batches


def sizes(found: list[list[str]]) -> list[int]:
    return [len(batch) for batch in found]


def test_requests_that_arrive_during_the_first_batch_are_revised_with_it() -> None:
    assert sizes(batches(asked("1"), {0: asked("2", "3", "4")})) == [1, 3, 4]


def test_without_patience_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:  # control
    monkeypatch.setattr(scheduler, "PATIENCE", 0)
    assert sizes(batches(asked("1"), {0: asked("2", "3", "4")})) == [1, 1, 3, 3]


def test_a_smaller_group_is_passed_over_twice() -> None:
    lone = asked("99", revisions=0, settings=LONGER)
    crowd = {number: asked(*(f"{number}{digit}" for digit in "123")) for number in range(1, 6)}
    found = batches(asked("1", "2", "3"), {0: lone, **crowd})
    assert found.index(["99"]) == 1 + scheduler.PATIENCE


def test_an_answer_out_of_patience_is_in_the_next_batch() -> None:
    found = batches(asked("1", revisions=8), {0: asked("2", revisions=8)}, batch_size=1)
    assert [place for place, batch in enumerate(found) if batch == ["1"]] == [0, 1, 2, 5, 6, 9, 10, 13, 14]


def test_an_idle_worker_waits_while_requests_arrive() -> None:
    one_by_one = {-1: asked("2"), -2: asked("3", "4")}
    assert sizes(batches(asked("1"), one_by_one)) == [4, 4]
    full = batches(asked("1"), {-1: asked("2"), 0: asked("3", "4")}, batch_size=2)  # a full batch waits for nobody
    assert sizes(full) == [2, 2, 2, 2]


def test_an_idle_worker_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "GATHERINGS", 1)
    found = batches(asked("1"), {-1: asked("2"), 0: asked("3", "4", "5")})
    assert sizes(found) == [2, 3, 5]
