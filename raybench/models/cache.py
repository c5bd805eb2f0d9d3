"""Where fetched and trained weights are kept, and how a file appears there whole or not at all."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raybench.core.cache import cache_folder

__all__ = ["cache_folder", "exclusive", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make `path` by calling `write` on a temporary neighbour, syncing it and renaming it.

    A reader sees the old file, the new file, or none; never a part of one. Where `write` raises,
    nothing stays behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`, so that of several processes one makes it and the rest wait.

    The lock only saves work: files are whole without it, and a file system that has no locks
    (some network ones) just makes the file several times.
    """
    with path.with_name(f".{path.name}.lock").open("ab") as stream:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
