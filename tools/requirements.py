"""Prints srpo's dependencies and theirs as `name==version` lines, as installed here and without extras."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, found: dict[str, str]) -> dict[str, str]:
    """Adds to `found` (name → version) what a distribution needs on this machine, and what that needs in turn."""
    for line in distribution(name).requires or []:
        needed = Requirement(line)
        key = canonicalize_name(needed.name)
        if key in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        try:
            found[key] = distribution(key).version
        except PackageNotFoundError:
            raise SystemExit(f"{key} is needed by {name} and not installed") from None
        closure(key, found)
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(closure("srpo", {}).items())))
