"""Addresses of object stores, ``s3://bucket/prefix?option=value`` and ``gs://...``, and the way in.

    >>> read_address("s3://bucket/runs/1").path
    'bucket/runs/1'

Images and results are opened by the same function. Credentials come from the environment or the
machine's role, never from an address, since addresses are recorded. Where S3 is comes from the
address (``endpoint_override``, ``region``, ``scheme``), else from the environment
(``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_DEFAULT_REGION``), else from
the bucket's own region. Every wait for an answer ends: see `connect`.
"""

import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from raybench.core.errors import InputError, near_miss

__all__ = [
    "CREDENTIALS",
    "SCHEMES",
    "Address",
    "connect",
    "has_credentials",
    "is_address",
    "read_address",
]

SCHEMES = ("gs", "s3")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
}
"""Where the credentials of a store come from, by scheme, for messages."""

_OPTIONS = {
    "s3": ("endpoint_override", "force_virtual_addressing", "region", "scheme", "tls_ca_file_path"),
    "gs": ("endpoint_override", "project_id", "retry_limit_seconds", "scheme"),
}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):/")
# Before the first slash a colon, anywhere after it an @: a secret may itself hold slashes.
_SECRET = re.compile(r"^\w+://[^/]*:[^?]*@")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_CONNECT_S, _SILENCE_S = 5.0, 20.0
_GS_RETRY_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A place in an object store.

    Attributes:
        scheme: s3 or gs.
        path: bucket, and the prefix in it, without a slash at its end.
        options: what the address says besides, by name.
        anonymous: whether it is asked without credentials, as ``anonymous@`` says.
    """

    scheme: str
    path: str
    options: dict[str, str] = field(default_factory=dict)
    anonymous: bool = False

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.path.partition("/")[0]

    @property
    def endpoint(self) -> str:
        """HOST:PORT or a URL of the server, or empty for the provider's own."""
        known = self.options.get("endpoint_override", "")
        if known or self.scheme != "s3":
            return known
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""

    @property
    def short(self) -> str:
        """The address without its options, as people and messages name it."""
        return f"{self.scheme}://{self.path}"

    def __str__(self) -> str:
        """Return the whole address."""
        tail = f"?{urlencode(sorted(self.options.items()))}" if self.options else ""
        user = "anonymous@" if self.anonymous else ""
        return f"{self.scheme}://{user}{quote(self.path, safe='/@=+,~!$()*: ')}{tail}"

    def explicit(self) -> "Address":
        """Return the address with endpoint and region in it, for processes elsewhere.

        Takes the network, where neither address nor environment names an endpoint.

        Raises:
            OSError: the bucket's region cannot be found.
        """
        if self.scheme != "s3":
            return self
        found = {"region": _region(self)}
        if self.endpoint:
            found["endpoint_override"] = self.endpoint
        known = {name: value for name, value in found.items() if value}
        return replace(self, options=known | self.options)


def is_address(text: str) -> bool:
    """Return whether `text` begins like ``scheme://``, of whatever scheme, and is no local path."""
    return _SCHEME.match(text) is not None


def has_credentials(text: str) -> bool:
    """Return whether an address holds something like ``user:secret@``."""
    return _SECRET.match(text) is not None


def read_address(text: str) -> Address:
    """Return the place that ``s3://bucket/prefix?...`` or ``gs://...`` names; nothing is opened.

    Also read is ``s3:/bucket``, what pathlib makes of it.

    Raises:
        InputError: another scheme, no bucket, credentials, a path that could leave its place, or an
            option that is not known. A secret is not repeated.
    """
    begun = _SCHEME.match(text)
    scheme = begun.group(1).lower() if begun else ""
    if has_credentials(text):
        raise InputError(
            f"a {scheme}:// address must not hold credentials: it is recorded. Leave them to the "
            f"environment: {CREDENTIALS.get(scheme, CREDENTIALS['s3'])}"
        )
    if begun is None or scheme not in SCHEMES:
        raise InputError(f"{text}: no store is named {scheme!r}{near_miss(scheme, SCHEMES)}")
    rest, _, query = text[begun.end() :].lstrip("/").partition("?")
    path = unquote(rest).rstrip("/")
    anonymous = path.startswith("anonymous@")
    path = path.removeprefix("anonymous@")
    bucket, *pieces = path.split("/")
    if not _BUCKET.fullmatch(bucket):
        raise InputError(
            f"{text}: {bucket!r} is no name of a bucket; expected {scheme}://bucket/prefix"
        )
    if any(piece in ("", ".", "..") or not piece.isprintable() for piece in pieces):
        raise InputError(
            f"{text}: expected a plain path behind the bucket, without empty pieces, '.' and '..'"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    if "endpoint_override" in options:
        # pathlib takes one of two slashes.
        known = options["endpoint_override"]
        options["endpoint_override"] = re.sub(r"^(https?):/+", r"\1://", known)
    for name, value in options.items():
        if name not in _OPTIONS[scheme]:
            hint = near_miss(name, _OPTIONS[scheme])
            raise InputError(f"{text}: no option is named {name!r}{hint}")
        if name == "endpoint_override" and "@" in value:
            raise InputError(f"{scheme}://{path}: endpoint_override must not hold credentials")
    return Address(scheme=scheme, path=path, options=options, anonymous=anonymous)


def connect(
    uri: str, *, attempts: int = 4, silence_s: float = _SILENCE_S, retry_s: int = _GS_RETRY_S
) -> tuple[Any, str]:
    """Return the pyarrow file system of `uri`, and the path inside it.

    Args:
        uri: an address, or ``file://``.
        attempts: tries of a request to S3, with growing pauses (6 s for 4 where nothing listens).
        silence_s: seconds without a byte after which such a try ends, or 5 s without a connection.
        retry_s: seconds for which Google's client tries, where the address sets no
            ``retry_limit_seconds``.

    Raises:
        InputError: as for `read_address`.
        OSError, ValueError: the address cannot be used.
    """
    from pyarrow import fs

    if uri.startswith("file://"):
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path
    address = read_address(uri)
    if address.scheme == "gs":
        options = {"retry_limit_seconds": str(retry_s)} | address.options
        filesystem, path = fs.FileSystem.from_uri(str(replace(address, options=options)))
        return filesystem, path
    endpoint, scheme = address.endpoint, address.options.get("scheme", "https")
    if "://" in endpoint:
        scheme, _, endpoint = endpoint.partition("://")
    return (
        fs.S3FileSystem(
            anonymous=address.anonymous,
            region=_region(address) or None,
            scheme=scheme,
            endpoint_override=endpoint.strip("/") or None,
            force_virtual_addressing=address.options.get("force_virtual_addressing") == "true",
            tls_ca_file_path=address.options.get("tls_ca_file_path")
            or os.environ.get("AWS_CA_BUNDLE"),
            connect_timeout=_CONNECT_S,
            request_timeout=silence_s,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            # Small objects take one request, and a missing bucket shows when it is written.
            allow_delayed_open=True,
        ),
        address.path,
    )


def _region(address: Address) -> str:
    """Return the region to sign for; empty leaves it to the SDK (profile, then us-east-1)."""
    named = address.options.get("region")
    if named:
        return named
    stated = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if address.endpoint:
        return stated or "us-east-1"
    # Another bucket of the same job may lie elsewhere than what the environment says.
    return _home(address.bucket) or stated


@lru_cache(maxsize=64)
def _home(bucket: str) -> str:
    """Return the region of a bucket of Amazon's, or "" where it does not say."""
    from pyarrow import fs

    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError:
        return ""
