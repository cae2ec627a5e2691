"""Settings of the server: address, keys, limits and logs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from srpo.errors import ConfigError
from srpo.settings import expect_valid, setting

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the server: address, keys of clients, and limits; times are in seconds.

    Raises:
        ConfigError: a number out of range, a name with characters that a model name cannot have, or no keys for an
            address that other machines can reach.

    Example:
        >>> ServeSettings(port=9000).host
        '127.0.0.1'
    """

    host: str = setting("127.0.0.1", "Address to listen on; an address other than loopback needs --keys_env.")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", least=0, most=65535)
    name: str = setting("", "Name of the served model; unset: the last part of its path.")
    keys_env: str = setting("", "Environment variable with the keys that clients must send, separated by commas.")
    votes: str = setting("", "File that votes of the page are appended to; unset: the page takes no votes.")
    max_revisions: int = setting(16, "Largest number of revisions that a request may ask for.", least=0)
    max_choices: int = setting(16, "Largest number of answers that one request may ask for.", least=1)
    max_pictures: int = setting(8, "Largest number of pictures in one request; 0 takes no pictures.", least=0)
    max_pixels: int = setting(2**24, "Largest number of pixels of a picture.", least=1)
    max_body: int = setting(1_000_000, "Largest number of bytes of one request.", least=1)
    max_waiting: int = setting(256, "Largest number of answers that wait or are written at a time.", least=1)
    request_timeout: float = setting(300.0, "Seconds that one request may take.", above=0)
    drain_timeout: float = setting(60.0, "Seconds that accepted requests get to finish after SIGTERM.", above=0)
    log_prompts: bool = setting(False, "Write prompts and answers to the access log.")

    def __post_init__(self) -> None:
        expect_valid(self)
        if "@" in self.name or "," in self.name:
            raise ConfigError(f"{self.name!r}", where="name", expected="a name without @ and comma")
        if self.host not in LOOPBACK and not self.keys_env:
            fix = "put the keys into a variable and name it with --keys_env, or listen on 127.0.0.1"
            raise ConfigError(f"{self.host} can be reached from other machines", where="host", fix=fix)
        if self.keys_env and not re.fullmatch(r"\w+", self.keys_env, re.ASCII):  # probably a key: do not show it
            fix = "put the keys into a variable, and name the variable"
            raise ConfigError("not the name of a variable", where="keys_env", fix=fix)

    def keys(self) -> list[str]:
        """Returns the keys that clients may send, from the environment variable `keys_env`; empty if none is named.

        Raises:
            ConfigError: the variable is unset or empty.
        """
        found = [key.strip() for key in os.environ.get(self.keys_env, "").split(",")] if self.keys_env else []
        if self.keys_env and not any(found):
            fix = f"export {self.keys_env}=…"
            raise ConfigError("the environment has no such variable", where=self.keys_env, fix=fix)
        return [key for key in found if key]
