"""Settings of a connection to a model server; engines and judges share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from srpo.settings import expect_valid, setting


@dataclass(frozen=True)
class EndpointSettings:
    """Address of a model on an OpenAI-compatible server, and limits of the requests to it; times are in seconds.

    Raises:
        ConfigError: a number out of range.

    Example:
        >>> EndpointSettings("http://localhost:8000/v1", model="my-model").timeout
        120.0
    """

    base_url: str = setting("", "Address of the server, for example http://localhost:8000/v1.")
    model: str = setting("", "Name of the model at the server; not needed if the server serves one model.")
    api_key_env: str = setting("", "Name of the environment variable that holds the key of the server.")
    concurrency: int = setting(16, "Number of requests to the server at the same time.", least=1)
    timeout: float = setting(120.0, "Seconds that one request to the server may take.", above=0)
    tries: int = setting(6, "Largest number of requests for one answer.", least=1)
    backoff: float = setting(0.5, "Seconds before a failed request is repeated; doubled each time.", least=0)
    body: dict[str, Any] = setting({}, "More fields of each request, as a JSON object; null leaves a field out.")

    def __post_init__(self) -> None:
        expect_valid(self)
