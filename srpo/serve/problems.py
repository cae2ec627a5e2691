"""Errors of the server in the shape of OpenAI's API, with their HTTP status."""

from __future__ import annotations

from typing import Any

from srpo.errors import ConfigError, DataError, InputError, SRPOError

INVALID = "invalid_request_error"


class Problem(Exception):
    """Raised for a request that the server refuses or fails to answer; becomes an HTTP response.

    Args:
        status: HTTP status.
        message: Text for the client.
        kind: Type of the error in OpenAI's vocabulary.
        param: Name of the field at fault.
        code: Code in OpenAI's vocabulary.
        retry_after: Seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """Returns the JSON object of the error, in the shape of OpenAI's API."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Returns the HTTP headers of the error: Retry-After, if a time is known."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def unsupported(name: str, problem: str) -> Problem:
    """Returns the error, HTTP status 400, for a request field `name` that this server does not honour.

    `problem` says what is wrong, in words.
    """
    return Problem(400, f"{name}: {problem}", param=name, code="unsupported_parameter")


def invalid(name: str, problem: str) -> Problem:
    """Returns the error, HTTP status 400, for a request field `name` with an unusable value.

    `problem` says what is wrong with it, in words.
    """
    return Problem(400, f"{name}: {problem}", param=name, code="invalid_value")


def problem_of(error: BaseException, *, upstream: bool) -> Problem:
    """Returns the HTTP error to send for an exception of the model or its engine.

    Args:
        upstream: True if the engine is another server, whose faults are not the client's.
    """
    if isinstance(error, Problem):
        return error
    if upstream and isinstance(error, InputError | ConfigError):
        return Problem(502, f"the model's server: {error}", kind="server_error", code="upstream_error")
    if isinstance(error, DataError):
        return Problem(400, str(error), code="invalid_prompt")
    if isinstance(error, SRPOError):
        return Problem(500, str(error), kind="server_error", code="internal_error")
    # The text of another exception may repeat a prompt.
    return Problem(500, f"internal error: {type(error).__name__}", kind="server_error", code="internal_error")
