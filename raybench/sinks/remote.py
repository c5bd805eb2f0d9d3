"""An object store that holds results: listing, reading, writing, and the parts in it.

    store = open_store("s3://bucket/runs/1")
    part = put_part(store, "rows/.../part-000000-0c65....parquet", rows, metadata)

A store has neither renames nor hard links, so a part is no part by its name alone: it counts once a
manifest, which the driver writes, lists it with its SHA-256. An object is written whole or not at
all. Two workers that write one part with other bytes (another kind of device) leave the later one;
the driver reads back what is there before it publishes (`raybench.sinks.mirror.settle`), and
whoever reads a part compares its bytes with the manifest.

Nothing here waits for ever: requests end (`raybench.core.objects.connect`), and what a server may
get over is tried again for a stated time.
"""

import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa

from raybench.core.errors import InputError, StoreError
from raybench.core.objects import CREDENTIALS, Address, connect, read_address
from raybench.sinks.parts import PartInfo, encode_part, inspect_content

__all__ = [
    "Listed",
    "MissingError",
    "Store",
    "check_readable",
    "check_writable",
    "find_part",
    "in_parallel",
    "open_store",
    "put_part",
]

PATIENCE_S = 120.0
"""How long a worker tries to get what it computed into a store that fails."""

_PROBE, _PROBE_S = ".raybench-write-probe", 5.0
_PROBE_TEXT = b"raybench looks whether it may write here; this can be removed\n"
_OTHER_BYTES = (
    "it gives back other bytes than were written. A server that does not know the checksums of "
    "newer AWS clients keeps them with the content: set "
    "AWS_REQUEST_CHECKSUM_CALCULATION=when_required, here and for workers, or use a newer server"
)
_THREADS = 16
# What the SDKs call failures that trying again may mend.
_PASSING = (
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "THROTTL",
    "INTERNAL_FAILURE",
    "SERVICE_UNAVAILABLE",
    "REQUEST_TIMEOUT",
    "UNAVAILABLE",
    "HTTP status 5",
    "DEADLINE_EXCEEDED",
)
_REFUSED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY",
    "INVALID_CLIENT_TOKEN",
    "INVALID_SIGNATURE",
    "SIGNATURE_DOES_NOT_MATCH",
    "EXPIRED",
    "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION",
    "HTTP status 403",
    "HTTP status 401",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "OAuth2 access token",
)

T = TypeVar("T")
R = TypeVar("R")


class MissingError(StoreError):
    """There is no object of that name."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A listed object: size in bytes, and when it was written (ns, of whole seconds mostly)."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Store:
    """A place in an object store. Names of objects are relative to it, with slashes.

    Attributes:
        address: what it is called.
        filesystem: pyarrow's, connected.
        root: bucket and prefix.
    """

    address: Address
    filesystem: Any
    root: str

    def listing(self, below: str = "") -> dict[str, Listed]:
        """Return the objects below the name `below`, by name; none where nothing is there.

        Raises:
            StoreError: the store cannot be listed, or holds a name that leads out of its place.
        """
        from pyarrow import fs

        base = f"{self.root}/{below}".rstrip("/")
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        infos = self._ask(f"{below or 'it'} cannot be listed", 10.0, self._infos, selector)
        found = {}
        for info in infos:
            if info.type != fs.FileType.File:
                continue
            name = info.path.removeprefix(f"{self.root}/")
            if not _plain(name):
                raise StoreError(
                    f"{self.address.short} holds an object named {name!r}, which leads out of its "
                    "folder; nothing of raybench's is called so: remove it"
                )
            found[name] = Listed(info.size, info.mtime_ns or 0)
        return found

    def read(self, name: str, *, patience_s: float = 10.0) -> bytes:
        """Return the bytes of an object.

        Raises:
            MissingError: there is none.
            StoreError: the store does not give it.
        """
        return self._ask(f"{name} cannot be read", patience_s, self._read, name)

    def write(self, name: str, content: bytes, *, patience_s: float = 10.0) -> None:
        """Write an object; readers see the old one or this.

        Raises:
            StoreError: the store does not take it, not in `patience_s` either where that may help.
        """
        self._ask(f"{name} cannot be written", patience_s, self._write, name, content)

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; one that has gone already is no error.

        Raises:
            StoreError: the store refuses.
        """
        in_parallel(
            lambda name: self._ask(f"{name} cannot be removed", 10.0, self._delete, name), names
        )

    def _infos(self, selector: Any) -> list[Any]:
        return list(self.filesystem.get_file_info(selector))

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.root}/{name}", compression=None) as stream:
            return bytes(stream.read())

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self.root}/{name}"
        with self.filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    def _delete(self, name: str) -> None:
        try:
            self.filesystem.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return

    def _ask(self, what: str, patience_s: float, call: Callable[..., T], *values: Any) -> T:
        """Return what `call` returns, tried again where that may help; `what` begins the error."""
        until = time.monotonic() + patience_s
        pause_s = 1.0
        while True:
            try:
                return call(*values)
            except FileNotFoundError as error:
                raise MissingError(f"{self.address.short}: {what}: it is not there") from error
            except OSError as error:
                passing = any(word in str(error) for word in _PASSING)
                if not passing or time.monotonic() + pause_s > until:
                    mend = hint(self.address, error)
                    raise StoreError(
                        f"{self.address.short}: {what} ({_short(error)}); {mend}"
                    ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 15.0)


def open_store(address: Address | str) -> Store:
    """Return the store at an address; connecting takes no request where the region is known."""
    return _open(str(address))


@lru_cache(maxsize=16)
def _open(uri: str) -> Store:
    address = read_address(uri)
    try:
        filesystem, root = connect(uri)
    except (OSError, ValueError) as error:
        raise InputError(f"{address.short}: not a usable address ({_short(error)})") from error
    return Store(address, filesystem, root)


def check_writable(address: Address) -> None:
    """Write a few bytes, read them back and remove them: a run must not find out at its end.

    Removing is not insisted on: a store that keeps everything is good enough for all but repairs.

    Raises:
        InputError: as for `check_readable`, or nothing can be written there, or not as it was.
    """
    check_readable(address)  # a server that is not there is found out sooner by a question
    filesystem, root = _probe(address)
    # A name of its own: another run that looks at the same moment removes what it wrote.
    path = f"{root}/{_PROBE}-{uuid.uuid4().hex[:8]}"
    try:
        # Workers ask for parts that are not there yet, and S3 calls that forbidden where the right
        # to list ends at a prefix.
        filesystem.get_file_info(path)
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(_PROBE_TEXT)
        with filesystem.open_input_stream(path, compression=None) as stream:
            found = bytes(stream.read())
    except OSError as error:
        raise InputError(
            f"{address.short}: results cannot be written there ({_short(error)}); "
            f"{hint(address, error)}"
        ) from error
    with suppress(OSError):
        filesystem.delete_file(path)
    if found != _PROBE_TEXT:
        raise InputError(f"{address.short}: {_OTHER_BYTES}")


def check_readable(address: Address) -> None:
    """Ask for the bucket, so that a wrong name or key is told apart from an empty place.

    Takes at most about 12 s where nothing answers.

    Raises:
        InputError: what is wrong, and what mends it.
    """
    from pyarrow import fs

    filesystem, root = _probe(address)
    try:
        try:
            found = filesystem.get_file_info(address.bucket).type
        except OSError as error:
            if not any(word in str(error) for word in _REFUSED):
                raise
            # Who may list nothing but this prefix may not ask for the bucket.
            filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
            return
    except OSError as error:
        raise InputError(
            f"{address.short} cannot be used ({_short(error)}); {hint(address, error)}"
        ) from error
    if found == fs.FileType.NotFound:
        raise InputError(f"{address.short}: {_no_bucket(address)}")


def _probe(address: Address) -> tuple[Any, str]:
    try:
        return connect(str(address), attempts=2, silence_s=_PROBE_S, retry_s=2 * int(_PROBE_S))
    except (OSError, ValueError) as error:
        raise InputError(f"{address.short}: not a usable address ({_short(error)})") from error


def hint(address: Address, error: Exception) -> str:
    """Return what mends an error of the store at `address`, as a clause."""
    text = str(error)
    where = address.endpoint or "the provider's own endpoint"
    if "NO_SUCH_BUCKET" in text or ("NOT_FOUND" in text and "bucket" in text):
        return _no_bucket(address)
    if any(word in text for word in _REFUSED):
        return (
            "the credentials of this environment are absent or may not do this: it takes listing, "
            f"reading, writing and deleting objects. Credentials come from "
            f"{CREDENTIALS[address.scheme]}"
        )
    if (
        "HTTP status 301" in text
        or "PERMANENT_REDIRECT" in text
        or "AuthorizationHeaderMalformed" in text
    ):
        return "the bucket is in another region: set AWS_REGION, or ?region= in the address"
    if any(word in text for word in _PASSING):
        return (
            f"{where} does not answer as it should: check the network, AWS_ENDPOINT_URL_S3, "
            "AWS_ENDPOINT_URL and AWS_REGION, or ?endpoint_override= and ?region= in the address"
        )
    return f"asked at {where}; check the address and the credentials of this environment"


def _no_bucket(address: Address) -> str:
    where = f" at {address.endpoint}" if address.endpoint else ""
    return (
        f"there is no bucket {address.bucket!r}{where}: make it first, or mend the name (expected "
        f"{address.scheme}://bucket/prefix)"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Request numbers help nobody before a run, and Google's client lists its metadata.
    text = re.sub(r" ?\(Request ID: [^)]*\)", "", text.partition(" error_info=")[0])
    return text if len(text) <= 240 else f"{text[:240]}..."


def _plain(name: str) -> bool:
    """Whether a name stays below the folder it is put in, on any file system."""
    return all(
        piece not in ("", ".", "..") and "\\" not in piece and piece.isprintable()
        for piece in name.split("/")
    )


def in_parallel(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `call` of each item, several at a time; the first error ends what has not begun."""
    if len(items) < 2:
        return [call(item) for item in items]
    pool = ThreadPoolExecutor(min(_THREADS, len(items)), thread_name_prefix="store")
    try:
        return list(pool.map(call, items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def find_part(store: Store, name: str) -> PartInfo | None:
    """Return the facts of a part in `store` after reading all of it; None if absent or damaged.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        content = store.read(name, patience_s=PATIENCE_S)
    except MissingError:
        return None
    try:
        return inspect_content(name.rpartition("/")[2], content)
    except StoreError:
        return None


def put_part(
    store: Store, name: str, rows: pa.RecordBatch, metadata: dict[str, object]
) -> PartInfo:
    """Bring `rows` into `store` and return the facts of the part that is there.

    That is another worker's, if it was first. A damaged one is written over. The bytes depend on
    `rows` and `metadata` alone, and are those of `raybench.sinks.parts.commit_part`. What is
    returned has been read back.

    Raises:
        StoreError: the store does not take it, after two minutes of trying, or not as it is.
    """
    content = encode_part(rows, metadata)
    earlier = find_part(store, name)
    if earlier is not None:
        return earlier
    store.write(name, content, patience_s=PATIENCE_S)
    part = find_part(store, name)
    if part is None:
        raise StoreError(f"{store.address.short}: {name}: {_OTHER_BYTES}")
    return part
