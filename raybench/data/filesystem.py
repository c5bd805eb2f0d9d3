"""Where files are: a local folder or an object store, listed and read through pyarrow.fs.

    >>> root = locate("s3://bucket/photos")
    >>> list_files(root, (".png",))

Local paths, ``file://``, ``s3://`` and ``gs://`` are known. Credentials come from the environment
or the machine's role, never from a spec, since specs are recorded with every result.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from raybench.core.errors import SpecError, near_miss
from raybench.core.objects import CREDENTIALS, connect, has_credentials
from raybench.core.objects import SCHEMES as STORES

__all__ = [
    "MAX_FILE_BYTES",
    "File",
    "Root",
    "Unreadable",
    "exists",
    "kind_of",
    "list_files",
    "locate",
    "open_file",
    "parent",
    "read_bytes",
    "stamp",
]

MAX_FILE_BYTES = 2**30
_SCHEMES = ("file", *STORES)


class Unreadable(Exception):  # noqa: N818 - a finding about one sample, which becomes a Failure
    """A reason, in words, why one image cannot be had; it never leaves this layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A place to read from.

    Attributes:
        text: the path or URI as the user gave it.
        path: the same inside `filesystem`, without a slash at its end.
        filesystem: a pyarrow FileSystem; picklable.
        local: whether it is this machine's file system.
    """

    text: str
    path: str
    filesystem: Any
    local: bool

    def inside(self, name: str) -> str:
        """Return the path inside the file system of the file `name` below this root."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def below(self, name: str) -> "Root":
        """Return the place of the file `name` below this root."""
        return Root(
            text=self.source(name),
            path=self.inside(name),
            filesystem=self.filesystem,
            local=self.local,
        )

    def source(self, name: str) -> str:
        """Return where the file `name` is, in the user's own terms."""
        return f"{self.text.rstrip('/')}/{name}" if name else self.text


@dataclass(frozen=True, slots=True)
class File:
    """A listed file: its POSIX path below the root, and what the listing said of it."""

    name: str
    size: int
    mtime_ns: int


def locate(text: str) -> Root:
    """Return the place that a path or URI names; nothing is opened.

    Raises:
        SpecError: an unknown scheme, a URI that is malformed, or one with credentials in it.
    """
    scheme, separator, _ = text.partition("://")
    if not separator:
        # Resolved once, so that "inside the folder" means the folder itself, not a link to it.
        path = str(Path(text).expanduser().resolve())
        return Root(text=text, path=path, filesystem=fs.LocalFileSystem(), local=True)
    if scheme not in _SCHEMES:
        raise SpecError(f"{text}: no store is named {scheme!r}{near_miss(scheme, _SCHEMES)}")
    if has_credentials(text):
        raise SpecError(
            f"a {scheme}:// path must not hold credentials: specs are stored with the results. "
            f"Leave them to the environment: {CREDENTIALS.get(scheme, CREDENTIALS['s3'])}"
        )
    try:
        filesystem, path = connect(text)
    except (OSError, ValueError, NotImplementedError) as error:
        raise SpecError(f"{text}: not a usable address ({error})") from error
    local = isinstance(filesystem, fs.LocalFileSystem)
    if local:
        path = str(Path(path).resolve())
    return Root(text=text, path=path.rstrip("/") or "/", filesystem=filesystem, local=local)


def exists(root: Root) -> bool:
    """Return whether anything is there.

    Raises:
        SpecError: the store cannot be asked.
    """
    return bool(_kind(root) != fs.FileType.NotFound)


def _kind(root: Root) -> Any:
    try:
        return root.filesystem.get_file_info(root.path).type
    except OSError as error:
        raise _no_access(root, error) from error


def kind_of(root: Root) -> str:
    """Return "file" or "folder".

    Raises:
        SpecError: nothing is there, or the store cannot be asked.
    """
    kind = _kind(root)
    if kind == fs.FileType.NotFound:
        hint = f" (looked for {root.path})" if root.local and root.path != root.text else ""
        raise SpecError(f"{root.text}: there is no such file or folder{hint}")
    return "folder" if kind == fs.FileType.Directory else "file"


def parent(root: Root) -> tuple[Root, str]:
    """Return the folder of a root that is a file, and the file's name in it."""
    folder, name = posixpath.split(root.path)
    text = root.text.removesuffix(name).rstrip("/") or ("/" if root.text.startswith("/") else ".")
    return Root(text=text, path=folder, filesystem=root.filesystem, local=root.local), name


def list_files(root: Root, suffixes: Sequence[str]) -> list[File]:
    """Return the files below a folder whose names end in `suffixes` (any case), sorted by path.

    Names that begin with a dot, and all below folders named so, are left out. A link to a file
    inside the folder is a file of its own; linked folders inside are left out, since what they show
    is listed where it lies.

    Raises:
        SpecError: it is no folder or cannot be listed; a link that leads out of the folder or
            nowhere; a name that is not UTF-8.
    """
    if kind_of(root) != "folder":
        raise SpecError(f"{root.text}: is a file, expected a folder")
    try:
        names = _walk(root) if root.local else _select(root)
        found = [file for file in names if file.name.lower().endswith(tuple(suffixes))]
    except OSError as error:
        raise _no_access(root, error) from error
    return sorted(found, key=lambda file: file.name)


def open_file(root: Root, name: str = "") -> Any:
    """Return the file `name` below `root` (or the root itself), open for reading at any place."""
    return root.filesystem.open_input_file(root.inside(name))


def read_bytes(root: Root, name: str = "") -> bytes:
    """Return the content of one file.

    Raises:
        Unreadable: it is absent, forbidden, or larger than `MAX_FILE_BYTES`.
        OSError: the store failed; asking again may help.
    """
    try:
        with open_file(root, name) as stream:
            size = stream.size()
            if size > MAX_FILE_BYTES:
                raise Unreadable(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
            content: bytes = stream.read()
            return content
    except FileNotFoundError as error:
        raise Unreadable("the file is not there any more") from error
    except PermissionError as error:
        raise Unreadable("the file may not be read (permission denied)") from error


def stamp(root: Root, file: File) -> str:
    """Return what tells one content of a file from another.

    For a local file that is the SHA-256 of its bytes, so it costs one read of the file; for a
    remote one it is its path, size and time of change, as listed.
    """
    if not root.local:
        return f"{root.inside(file.name)}|{file.size}|{file.mtime_ns}"
    try:
        with open(root.inside(file.name), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, PermissionError):
        return "unreadable"


def _select(root: Root) -> Iterator[File]:
    head = f"{root.path.rstrip('/')}/"
    for info in root.filesystem.get_file_info(fs.FileSelector(root.path, recursive=True)):
        name = info.path.removeprefix(head)
        hidden = any(piece.startswith(".") for piece in name.split("/"))
        if info.type == fs.FileType.File and not hidden:
            yield File(name, info.size, info.mtime_ns or 0)


def _walk(root: Root) -> Iterator[File]:
    """Yield the regular files below a local root, refusing what leads out of it."""
    pending = [root.path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink() and not _leads_inside(entry.path, root):
                    raise SpecError(
                        f"{root.text}: {os.path.relpath(entry.path, root.path)!r} is a link that "
                        "leads out of the folder or nowhere; remove it, or copy what it means "
                        "into the folder"
                    )
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file():
                    yield _file(entry, root)


def _leads_inside(path: str, root: Root) -> bool:
    target = os.path.realpath(path)
    return os.path.exists(target) and os.path.commonpath([target, root.path]) == root.path


def _file(entry: "os.DirEntry[str]", root: Root) -> File:
    name = os.path.relpath(entry.path, root.path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{root.text}: the file name {name!a} is not UTF-8; rename it") from None
    facts = entry.stat()
    return File(name, facts.st_size, facts.st_mtime_ns)


def _no_access(root: Root, error: OSError) -> SpecError:
    hint = (
        "check its permissions"
        if root.local
        else "check the address, the region and the credentials of this environment"
    )
    return SpecError(f"{root.text}: cannot be listed ({error}); {hint}")
