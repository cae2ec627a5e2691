"""Counters of the server in the format of Prometheus."""

from __future__ import annotations

from typing import Any

from srpo.revise.chain import Chain
from srpo.revise.trail import FAILED, IMPOSSIBLE

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of one server in Prometheus' format, in a registry of their own: servers may share a process.

    Attributes:
        requests: Answered requests by path and status.
        tokens: Generated tokens of drafts and of revisions, and the tokens of draft contexts.
        revisions: Revisions kept and refused.
        stopped: Finished trails by the reason of their end.
        waiting: Answers that wait or are being written, as `Scheduler.busy` counts them.
        seconds: Durations of stages: queue, draft, revision, request.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("srpo_requests", "Answered requests.", ["path", "status"], **made)
        self.tokens = Counter("srpo_tokens", "Tokens read and generated.", ["kind"], **made)
        self.revisions = Counter("srpo_revisions", "Revisions by the policy's decision.", ["decision"], **made)
        self.stopped = Counter("srpo_trails", "Finished trails by the reason of their end.", ["stopped"], **made)
        self.waiting = Gauge("srpo_waiting", "Answers that wait or are being written.", **made)
        self.batch = Histogram("srpo_batch_size", "Prompts in one batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **made)
        self.seconds = Histogram("srpo_seconds", "Seconds of a stage.", ["stage"], buckets=SECONDS, **made)

    def text(self) -> bytes:
        """Returns all counters as the text that Prometheus reads."""
        from prometheus_client import generate_latest

        found: bytes = generate_latest(self._registry)
        return found

    def count(self, chain: Chain) -> None:
        """Adds one finished chain (a prompt with its answers) to the counters of tokens, revisions and trails."""
        for place, answer in enumerate(chain.answers):
            self.tokens.labels("revision" if place else "draft").inc(answer.tokens)
            if place:
                self.revisions.labels("kept" if answer.kept else "refused").inc()
            else:
                self.tokens.labels("prompt").inc(answer.forward_tokens - answer.tokens)
        stopped = chain.trail().stopped
        for prefix in (FAILED, IMPOSSIBLE):
            stopped = prefix.strip(": ") if stopped.startswith(prefix) else stopped  # the reason may be any text
        self.stopped.labels(stopped).inc()
