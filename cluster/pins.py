"""Versions that the rendered files name, read from where they are pinned already."""

import re
from pathlib import Path

__all__ = ["locked", "locked_all"]


def locked(package: str, lock: Path) -> str:
    """Return the version of `package` in a lock file.

    Raises:
        ValueError: the lock has none, or several.
    """
    found = locked_all(lock).get(package, ())
    if len(found) != 1:
        raise ValueError(f"{lock}: expected one version of {package}, found {list(found)}")
    return found[0]


def locked_all(lock: Path) -> dict[str, tuple[str, ...]]:
    """Return all versions in a lock file, by package: several where markers part them."""
    versions: dict[str, tuple[str, ...]] = {}
    for name, version in re.findall(r"(?m)^([a-z0-9_.-]+)==([^\s;\\]+)", lock.read_text("utf-8")):
        versions[name] = (*versions.get(name, ()), version)
    return versions
