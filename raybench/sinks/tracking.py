"""What a tracker needs that is not MLflow: probing, time limits, redaction, provenance.

    >>> redact("s3://key:secret@bucket/images")
    's3://***@bucket/images'

Nothing here imports MLflow, which costs seconds.
"""

import functools
import logging
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import requests

from raybench.core.errors import InputError, RaybenchError

__all__ = [
    "PROBE_S",
    "Thinned",
    "TrackingUnavailable",
    "calm",
    "chosen_uri",
    "probe",
    "reason",
    "redact",
    "source_commit",
    "ui_command",
]

T = TypeVar("T")

PROBE_S = 3.0
UI_HOSTS = "localhost:*,127.0.0.1:*"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_NOISY = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")

# "user:password@" after "://"; the second form is a secret that itself holds a slash, as S3's may.
_USERINFO = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#@:]*:(?!\d+[/?#])[^@\s]*@)")
_SECRET_OPTION = re.compile(
    r"""((?:^|[?&;\s]|%3F|%26)
        (?:[\w.-]*(?:token(?![a-z])|secret|password|passwd|pwd|signature|credential|access_?key
            |api_?key)[\w.-]*|sig|auth|authorization)
        (?:=|%3D)) (?:(?!%26)[^&\#\s])+""",
    re.IGNORECASE | re.VERBOSE,
)


class TrackingUnavailable(RaybenchError):  # noqa: N818 - a state of the world, not a fault
    """The tracking server or database cannot be used now; scoring can go on without it."""


class Thinned(Generic[T]):
    """A series of which at most `most` values are kept, evenly, and always the last one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._stride = 1
        self._count = 0
        self._kept: list[T] = []
        self._last: list[T] = []

    def add(self, value: T) -> None:
        """Append a value; where there are too many by then, every second one goes."""
        self._last = [value]
        if self._count % self._stride == 0:
            self._kept.append(value)
            self._last = []
        self._count += 1
        if len(self._kept) > self._most:
            self._kept = self._kept[::2]
            self._stride *= 2
            if self._kept[-1] is not value:
                self._last = [value]

    def all(self) -> list[T]:
        """Return the values kept, in order."""
        return self._kept + self._last


def redact(text: str) -> str:
    """Return `text` (a URI, a spec, an error) with credentials replaced by ``***``.

    Covers ``user:password@`` in any URI and options or query parameters that are named like a
    secret (token, signature, access_key, ...), percent-encoded or not.
    """
    return _SECRET_OPTION.sub(r"\1***", _USERINFO.sub("***@", text))


def chosen_uri(uri: str | None) -> str | None:
    """Return the tracking URI in force: the one given, else ``MLFLOW_TRACKING_URI``, else None."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or None


def ui_command(uri: str | None, out: Path) -> str:
    """Return the shell command that opens the MLflow UI on what `open_tracker` wrote.

    The server it starts answers this machine alone, by its own names, and runs no jobs: MLflow's
    defaults also answer to private addresses and start a job runner.
    """
    uri = chosen_uri(uri)
    if uri is not None and uri.startswith(("http://", "https://")):
        return f"python -m webbrowser {shlex.quote(redact(uri))}"
    store = f"sqlite:///{(out / 'mlflow.db').as_posix()}" if uri is None else redact(uri)
    mlflow = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {mlflow} ui --host 127.0.0.1 "
        f"--allowed-hosts {shlex.quote(UI_HOSTS)} --backend-store-uri {shlex.quote(store)}"
    )


def probe(uri: str, out: Path) -> str | None:
    """Return where a new experiment keeps artifacts (None: the server decides), if `uri` answers.

    MLflow retries for minutes where a server or database is absent; this takes three seconds.
    """
    if uri.startswith(("http://", "https://")):
        with requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_S, stream=True) as answer:
            if answer.status_code in (401, 403) or answer.status_code >= 500:
                raise ConnectionError(f"GET /health answered {answer.status_code} {answer.reason}")
        return None
    if uri.startswith("sqlite:///"):
        if "?" in uri:
            raise InputError(
                f"{redact(uri)}: the path of an sqlite store must not contain '?', which starts "
                "the options of a database URI; choose another output folder"
            )
        database = Path(uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=PROBE_S)) as connection:
            connection.execute("BEGIN IMMEDIATE").connection.rollback()
        return (database.resolve().parent / "mlartifacts").as_uri()
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in _DATABASE_PORTS:
        address = (parts.hostname or "localhost", parts.port or _DATABASE_PORTS[kind])
        socket.create_connection(address, PROBE_S).close()
        return (out / "mlartifacts").as_uri()
    if kind == "databricks":
        return None
    raise InputError(
        f"tracking URI {redact(uri)!r}: expected http://, https://, sqlite:///FILE, postgresql://, "
        "mysql://, mssql:// or databricks (MLflow 3 refuses its old folder store); leave it out, "
        "of MLFLOW_TRACKING_URI too, for an sqlite database in the output folder"
    )


@contextmanager
def calm(*, timeout_s: int, retries: int) -> Iterator[None]:
    """Bound and quieten MLflow inside the block; its HTTP limits are settable by environment only.

    Its link to each ended run goes to stdout, which belongs to ``--json``.
    """
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    os.environ.update(settings)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reason(error: BaseException) -> str:
    """Return the first line of `error`, without credentials."""
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


@functools.cache
def source_commit() -> str | None:
    """Return the commit of the raybench checkout this code runs from; None where it is none."""
    root = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "rev-parse", "--verify", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
