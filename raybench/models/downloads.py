"""Files fetched whole: atomic, capped, never an HTML page, with their SHA-256 kept beside them.

    >>> fetch(google_drive(file_id), Path("model.pt"), what="robustbench:cifar10/Linf/Name")

A file put in place by hand is accepted; its hash is recorded when it is first used.
"""

import hashlib
import logging
import re
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests

from raybench.core.errors import SpecError
from raybench.models.cache import exclusive, write_whole
from raybench.models.fingerprints import file_sha256

__all__ = ["GOOGLE_DRIVE", "MAX_BYTES", "fetch", "google_drive", "stated_hash", "verify"]

GOOGLE_DRIVE = "https://drive.usercontent.google.com/download"
MAX_BYTES = 8 * 2**30
_TIMEOUT_S = (15.0, 60.0)  # to connect, and between two pieces
_PIECE = 2**20
_log = logging.getLogger(__name__)


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """A reason, in words, why a response is not the file."""


def google_drive(file_id: str, base: str = GOOGLE_DRIVE) -> str:
    """Return the address that serves the bytes of a Google Drive file without a click."""
    return f"{base}?id={file_id}&export=download&confirm=t"


def stated_hash(url: str) -> str:
    """Return the first digits of the SHA-256 that a file's name states, as torch's hub does.

    ``resnet50-0676ba61.pth`` states 0676ba61; the answer is empty where a name states none.
    """
    found = re.search(r"-([a-f0-9]{8,})\.[^/]*$", url)
    return found.group(1) if found else ""


def fetch(
    url: str,
    path: Path,
    *,
    what: object,
    manual: str = "",
    sha256_prefix: str = "",
    max_bytes: int = MAX_BYTES,
    timeout_s: tuple[float, float] = _TIMEOUT_S,
) -> str:
    """Return the SHA-256 hex digest of `path`, fetched from `url` where it is absent.

    A file that is present is checked by `verify` instead, without any network.

    Args:
        url: where to get it.
        path: where to put it; its folder is made.
        what: begins every message (the spec).
        manual: sentence that says where a person can get the file.
        sha256_prefix: first hex digits that the digest must have, where the source states them.
        max_bytes: more than this is refused.
        timeout_s: seconds to connect, and between two pieces of the answer.

    Raises:
        SpecError: the network or the server fails, the answer is an HTML page (a quota or login
            page), incomplete, too large, or has another hash. Nothing is left behind, and the
            message gives the manual steps.
    """
    if path.exists():
        return verify(path, what=what, sha256_prefix=sha256_prefix)
    download = partial(
        _download,
        url,
        final=path,
        sha256_prefix=sha256_prefix,
        max_bytes=max_bytes,
        timeout_s=timeout_s,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path):
            if not path.exists():
                _log.info("fetching %s to %s", url, path)
                write_whole(path, download)
    except (requests.RequestException, _Refused, OSError) as error:
        foreign = isinstance(error, requests.RequestException)
        reason = type(error).__name__ if foreign else str(error)
        steps = manual or f"open {url} in a browser"
        raise SpecError(
            f"{what}: {path.name} could not be downloaded from {urlsplit(url).netloc} ({reason}). "
            f"To go on by hand: {steps}, save it as {path}, and run again"
        ) from error
    return verify(path, what=what, sha256_prefix=sha256_prefix)


def verify(path: Path, *, what: object, sha256_prefix: str = "") -> str:
    """Return the SHA-256 hex digest of the file `path`, after checking it against its record.

    The record is ``<path>.sha256``; where there is none it is written, for the next time.

    Raises:
        SpecError: the file has changed since it was recorded, lacks the stated hash, or is an
            HTML page.
    """
    with path.open("rb") as stream:
        if _is_html(stream.read(512)):
            raise SpecError(
                f"{what}: {path} is an HTML page, not weights (a quota or login page saved under "
                "this name); delete it and run again"
            )
    found = file_sha256(path)
    record = _record(path)
    recorded = (record.read_text().split() or [""])[0] if record.exists() else ""
    wanted = recorded or sha256_prefix
    if not found.startswith(wanted):
        raise SpecError(
            f"{what}: {path} has SHA-256 {found[:16]}..., expected {wanted[:16]}...: it is damaged "
            f"or was replaced. Delete it{f' and {record.name}' * record.exists()}, and run again"
        )
    if not recorded:
        try:
            _write_record(path, found)
        except OSError as error:
            _log.warning("%s: its SHA-256 cannot be recorded (%s)", path, error.strerror)
    return found


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_record(path: Path, digest: str) -> None:
    write_whole(_record(path), lambda part: part.write_text(f"{digest}  {path.name}\n"))


def _is_html(head: bytes) -> bool:
    return bool(re.match(rb"\s*(<!doctype|<html|<head|<\?xml|<!--)", head, re.IGNORECASE))


def _download(
    url: str,
    part: Path,
    *,
    final: Path,
    sha256_prefix: str,
    max_bytes: int,
    timeout_s: tuple[float, float],
) -> None:
    total, size, head = hashlib.sha256(), 0, b""
    # Identity: the announced length must be that of the bytes we count.
    headers = {"Accept-Encoding": "identity"}
    with (
        requests.get(url, stream=True, timeout=timeout_s, headers=headers) as answer,
        part.open("wb") as stream,
    ):
        if answer.status_code != 200:
            raise _Refused(f"the server answers {answer.status_code} {answer.reason}")
        announced = answer.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            raise _Refused(f"it is {int(announced):,} bytes, more than the {max_bytes:,} allowed")
        for piece in answer.iter_content(_PIECE):
            if not size:
                head = piece[:512]
                kind = answer.headers.get("Content-Type", "")
                if _is_html(head) or kind.startswith("text/html"):
                    raise _Refused(f"the server answers with an HTML page{_title(piece)}")
            size += len(piece)
            if size > max_bytes:
                raise _Refused(f"it is more than the {max_bytes:,} bytes allowed")
            total.update(piece)
            stream.write(piece)
    if announced.isdigit() and size != int(announced):
        raise _Refused(f"{size:,} of {announced} bytes came")
    if not size:
        raise _Refused("the answer is empty")
    digest = total.hexdigest()
    if not digest.startswith(sha256_prefix):
        raise _Refused(f"its SHA-256 begins {digest[:8]}, the source states {sha256_prefix}")
    # Before the file itself appears: a file without a record would be trusted as it is.
    _write_record(final, digest)


def _title(page: bytes) -> str:
    found = re.search(rb"<title>(.*?)</title>", page[:4096], re.IGNORECASE | re.DOTALL)
    return f" titled {found.group(1).decode(errors='replace').strip()!r}" if found else ""
