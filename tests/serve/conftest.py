"""One server of the tiny carry model for all tests that change nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from srpo import Reviser
    from tests.serve.served import Served


@pytest.fixture(scope="session")
def tiny() -> Reviser:
    """A reviser with a confidence."""
    from tests.revise.tiny import carry_llama, reviser

    return reviser(reference=carry_llama(1), beta=0.3)


@pytest.fixture(scope="session")
def served(tiny: Reviser) -> Iterator[Served]:
    """The server."""
    from tests.serve.served import serving

    with serving(tiny) as found:
        yield found


@pytest.fixture(scope="session")
def client(served: Served) -> Any:
    """The standard client of the server."""
    return served.client()
