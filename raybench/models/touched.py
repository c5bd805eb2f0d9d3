"""Which files a model is made of, told by the loaders while they read them.

    with files_read() as files:
        model = load_model(spec)

Loaders call `note_file`; nobody has to ask them. `files` then holds every file of weights, and the
source of every class of the network that is in no well-known library.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

__all__ = ["files_read", "note_file"]

_files: ContextVar[list[Path] | None] = ContextVar("files of the model being loaded", default=None)


def note_file(path: str | Path) -> None:
    """Say that the model being loaded is made of `path`, if anybody wants to know."""
    found = _files.get()
    if found is not None:
        found.append(Path(path))


@contextmanager
def files_read() -> Iterator[list[Path]]:
    """Gather the files that loaders note while the block runs."""
    found: list[Path] = []
    token = _files.set(found)
    try:
        yield found
    finally:
        _files.reset(token)
