"""Settings: dataclasses built from values by name, with their ranges, choices, kinds and parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from srpo.errors import ConfigError
from srpo.settings import build, expect_valid, options, part, setting, shared, values_of


@dataclass(frozen=True)
class Server:
    address: str = setting("", "Address of the server.")
    timeout: float = setting(120.0, "Seconds that one request may take.", above=0)
    body: dict[str, Any] = setting({}, "More fields of each request, as JSON.")


@dataclass
class Job:
    order: str = setting("both", "Order of the answers.", choices=("both", "one"))
    limit: int | None = setting(None, "Largest number of rows.", least=1)
    seeds: list[int] = setting([0], "Seeds of the draws.")
    seed: int = shared("seed")
    server: Server = part(Server, prefix="judge_", names={"address": "judge_url"}, timeout=60.0)

    def __post_init__(self) -> None:
        expect_valid(self)


def test_flags_are_named_by_the_parts_prefix_and_names() -> None:
    assert [(option.name, option.default) for option in options(Job)] == [
        ("order", "both"),
        ("limit", None),
        ("seeds", [0]),
        ("seed", 0),
        ("judge_url", ""),
        ("judge_timeout", 60.0),
        ("judge_body", {}),
    ]


def test_values_reach_their_part_and_come_back() -> None:
    values = {"order": "one", "judge_url": "http://x", "judge_body": '{"seed": 1}', "judge_timeout": "2e1", "seeds": 3}
    job = build(Job, values)
    assert job == Job("one", seeds=[3], server=Server("http://x", 20.0, {"seed": 1}))
    assert build(Job, values_of(job)) == job
    assert build(Job, {}) == Job()
    assert build(Job, {"judge_url": "u"}).server.timeout == 60.0  # the part's default, not the dataclass's


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"order": "bth"}, "order: 'bth'; expected one of both, one; did you mean 'both'?"),
        ({"limit": 0}, "limit: 0; expected 1 or more"),
        ({"limit": "many"}, "limit: 'many'; expected a whole number"),
        ({"judge_timeout": 0}, "judge_timeout: 0; expected above 0"),
        ({"judge_timeout": float("nan")}, "judge_timeout: nan; expected above 0"),
        ({"judge_body": "[1]"}, "judge_body: [1]; expected a mapping"),
        ({"seed": True}, "seed: True; expected a whole number"),
        ({"seeds": ["a"]}, "seeds: ['a']; expected a list, each a whole number"),
        ({"timeout": 1}, "unknown key 'timeout'; did you mean 'judge_timeout'?"),
    ],
)
def test_invalid_values_name_their_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Job, values)
    assert str(caught.value) == message


def test_values_from_a_file_name_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^s\.yaml: limit: 0; expected 1 or more"):
        build(Job, {"limit": 0}, file="s.yaml")


def test_dataclasses_made_in_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="order: 'three'"):
        Job(order="three")
    assert Server(timeout=-1.0).timeout == -1.0  # control: a dataclass that does not ask for the check has none


def test_each_instance_has_lists_of_its_own() -> None:
    Job().seeds.append(1)
    assert Job().seeds == [0]
