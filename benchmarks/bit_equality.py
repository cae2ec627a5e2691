"""Every number of small runs, before and after a change of code that must not change any.

    python -m benchmarks.bit_equality before.json
    python -m benchmarks.bit_equality after.json
    python -m benchmarks.bit_equality --compare before.json after.json
    python -m benchmarks.bit_equality --self_test before.json

The runs use the command line, the public names of `srpo` and the files that commands write. They take minutes on one
core, on a CPU, and need Linux and the extra `test`. Floats are compared by all their bits and weights by the digest of
their bytes. Clocks, paths and versions are left out. Two machines, or two versions of torch, need not agree: compare on
one.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTH = 160  # characters of a value that a line shows


def main() -> None:
    """Writes the numbers of all small runs, compares two such files, or runs the self-test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", help="JSON file to write the numbers to")
    parser.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), help="two such files to compare")
    parser.add_argument("--self_test", metavar="A.json", help="change one number in a copy of this file and find it")
    args = parser.parse_args()
    if args.compare:
        one, other = (json.loads(Path(path).read_text("utf-8")) for path in args.compare)
        raise SystemExit(compare(one, other))
    if args.self_test:
        raise SystemExit(self_test(json.loads(Path(args.self_test).read_text("utf-8"))))
    if not args.output:
        parser.error("name a file to write, or --compare, or --self_test")
    write(Path(args.output).absolute())


def write(output: Path) -> None:
    """Makes all numbers in a temporary folder and writes them."""
    from benchmarks.small_runs import run_groups

    library = importlib.util.find_spec("srpo")
    print(f"numbers of {library.origin if library else 'no library'}", flush=True)
    groups: dict[str, Any] = {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for name, found in run_groups(Path(place)):
            values = dict(leaves(found))
            groups[name] = {"sha256": digest(values), "values": values}
            seconds = time.perf_counter() - began
            print(f"{seconds:5.0f} s  {name}: {len(values)} values, {groups[name]['sha256'][:12]}", flush=True)
    output.write_text(json.dumps(groups, ensure_ascii=False, indent=0) + "\n", "utf-8")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in nested lists and dictionaries, each with the path to it; empty ones are values too."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, f"{path} / {key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from leaves(each, f"{path}[{number}]")
    else:
        yield path, value


def exact(value: Any) -> str:
    """A value with its type and, for floats, every bit; not a number equals itself."""
    return f"float {value.hex()}" if isinstance(value, float) else f"{type(value).__name__} {json.dumps(value)}"


def digest(values: dict[str, Any]) -> str:
    """sha256 of all paths and exact values, whatever the order of keys."""
    lines = "".join(f"{path} = {exact(value)}\n" for path, value in sorted(values.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Paths whose values differ, or that one side lacks; those of numbers come first."""
    paths = [path for path in {**one, **other} if path not in one or path not in other]
    paths += [path for path in one if path in other and exact(one[path]) != exact(other[path])]
    return sorted(paths, key=lambda path: not isinstance(one.get(path, other.get(path)), int | float))


def reported(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Of each group, whether it is equal and a line that says so or names the first difference."""
    for name in {**one, **other}:
        if name not in one or name not in other:
            yield False, f"{name}: missing in {'A' if name not in one else 'B'}"
            continue
        values = one[name]["values"], other[name]["values"]
        found = differences(*values)
        if found:
            count = sum(isinstance(values[0].get(path, values[1].get(path)), int | float) for path in found)
            first = " -> ".join(repr(side[found[0]])[:WIDTH] if found[0] in side else "missing" for side in values)
            told = f"{len(found)} of {len(values[0])} values differ, {count} of them numbers"
            yield False, f"{name}: {told}; first {found[0]}: {first}"
        elif one[name]["sha256"] != other[name]["sha256"]:
            yield False, f"{name}: digests differ, values do not: a file was edited"
        else:
            yield True, f"{name}: equal ({len(values[0])} values)"


def compare(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Prints a line for each group.

    Returns:
        0 if all groups are equal, 1 if not.
    """
    lines = list(reported(one, other))
    print(*(line for _, line in lines), sep="\n")
    return int(not all(equal for equal, _ in lines))


def first_number(values: dict[str, Any]) -> str:
    """Path of the first float, or of the first integer where there is no float."""
    for kind in (float, int):
        for path, value in values.items():
            if isinstance(value, kind) and not isinstance(value, bool):
                return path
    raise SystemExit("a group without numbers")


def self_test(numbers: dict[str, Any]) -> int:
    """Changes the first float of each group by its last bit, in a copy; that and nothing else has to be reported.

    A group without floats has its first integer changed by one.

    Returns:
        0 if the copy without a change is equal and every change is found, 1 if not.
    """
    failed = not all(equal for equal, _ in reported(numbers, copy.deepcopy(numbers)))
    for name, group in numbers.items():
        path = first_number(group["values"])
        number = group["values"][path]
        values = {
            **group["values"],
            path: math.nextafter(number, math.inf) if isinstance(number, float) else number + 1,
        }
        changed = {**numbers, name: {"sha256": digest(values), "values": values}}
        lines = [line for equal, line in reported(numbers, changed) if not equal]
        failed |= len(lines) != 1 or f"1 of {len(values)} values differ" not in lines[0] or path not in lines[0]
        print(*lines, sep="\n")
    print("self-test failed" if failed else "self-test passed: every changed number was found")
    return int(failed)


if __name__ == "__main__":
    main()
