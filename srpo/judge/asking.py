"""How a model is asked to judge, what that will take, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from srpo.errors import ConfigError

MILLION = 1_000_000


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        model: its name at the server.
        temperature: 0 for the likeliest verdict.
        max_tokens: of one reply, reasoning included; a reply that ends before its verdict is unscored, and paid for.
        orders: "both" shows each pair both ways round; "one" shows `first` first, at half the price, and leaves the
            judge's liking for a position in the verdict.
        run: another number asks everything again, to see how far the judge agrees with itself.
        runs: how often everything is asked, under this number and those after it; the first is the verdict.
        price_in, price_out: of a million tokens, in whatever currency; None where it is not known.
        max_cost: no call is made that could take the cost of this judge's calls above it; None for no limit. A call
            that failed at our end and was paid for all the same is not known to us.
        body: further fields of a request, or others: `{"max_tokens": None, "max_completion_tokens": 4096}`; None leaves
            a field out.

    Raises:
        ConfigError: a number out of range, or a limit without a price.
    """

    model: str
    temperature: float = 0.0
    max_tokens: int = 1024
    orders: Literal["both", "one"] = "both"
    run: int = 0
    runs: int = 1
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("no model is named", where="judge_model", expected="its name at the server")
        if self.orders not in ("both", "one"):
            raise ConfigError(f"{self.orders!r}", where="orders", expected="both or one")
        if not self.temperature >= 0:
            raise ConfigError(f"{self.temperature}", where="temperature", expected="0 or more")
        for name in ("max_tokens", "runs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", where=name, expected="1 or more")
        for name in {*self.body} & {"model", "messages", "stream", "n"}:
            raise ConfigError(f"{name!r} is not yours to set", where="body", expected="other fields of a request")
        for name in ("price_in", "price_out", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{value}", where=name, expected="0 or more")
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("one price of two", where="price", expected="both, of a million tokens read and written")
        if self.max_cost is not None and self.price_in is None:
            raise ConfigError("a limit without prices", where="max_cost", fix="give price_in and price_out as well")

    @property
    def longest(self) -> int:
        """Tokens of the longest reply that a request allows."""
        named = [self.body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return max([count for count in named if type(count) is int] or [self.max_tokens])

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Of so many tokens; 0 where the prices are not known."""
        return (tokens_in * (self.price_in or 0.0) + tokens_out * (self.price_out or 0.0)) / MILLION
