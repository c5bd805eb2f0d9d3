"""What asking a black-box model has cost, and its answers, kept on disk for every process.

    ledger = open_ledger("https://api.example.com/v1/classify", "2026-10")
    wait_s = ledger.reserve(32, budget=100_000, rps=10.0)   # counted before anything is sent
    answers.put(key, values)                                # kept before it is used

Both are sqlite files below the cache folder, in a folder of the address and the stated version.
A query is counted, durably, before it is sent: whatever dies when, the count is never less than
what went out. Journals are rollback journals, which unlike sqlite's newer ones work on network
file systems that have locks.
"""

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from raybench.core.errors import BudgetSpentError, StoreError
from raybench.core.keys import digest
from raybench.models.cache import cache_folder

__all__ = ["LONGEST_WAIT_S", "Answers", "Ledger", "open_answers", "open_ledger"]

LONGEST_WAIT_S = 600.0
"""The longest that a server can make us wait by Retry-After."""

_LOCK_S = 60.0
_SELECT = "SELECT kind, columns, content, sha256 FROM answers WHERE key = ?"
_KINDS: dict[str, Any] = {"f": np.dtype("<f4"), "d": np.dtype("<f8"), "q": np.dtype("<i8")}


def open_ledger(url: str, version: str | None) -> "Ledger":
    """Return the ledger of what is asked at `url` as `version`; made at the first call.

    Raises:
        StoreError: it is damaged, or the file system has no locks.
    """
    return Ledger(_folder(url, version) / "ledger.sqlite", url)


def open_answers(url: str, version: str | None) -> "Answers":
    """Return the answers that were had at `url` as `version`; see `open_ledger`."""
    return Answers(_folder(url, version) / "answers.sqlite")


def _folder(url: str, version: str | None) -> Path:
    return cache_folder("http", digest([url, version])[:24])


class _Database:
    """One sqlite file, used by threads in turn; what it cannot do is a `StoreError`."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._named():
            self._connection = sqlite3.connect(
                path, timeout=_LOCK_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.executescript(schema)
            except sqlite3.Error:
                self._connection.close()
                raise

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file's write lock; what was written is on the disk when the block ends."""
        with self._lock, self._named():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._lock, self._named(), closing(self._connection.execute(query, values)) as found:
            row: tuple[Any, ...] | None = found.fetchone()
            return row

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path}: {error}; if it is damaged, move it away (what it counted is then "
                "lost), and if its folder has no locks or no room, set RAYBENCH_CACHE to another"
            ) from error


class Ledger:
    """Counts the queries of one model and paces its requests, for all processes that see the file.

    `paid` counts those of this process: images sent, tries that failed included.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.paid = 0
        self._database = _Database(
            path,
            """
            CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
            CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value REAL NOT NULL);
            """,
        )
        with self._database.transaction() as file:
            for name, value in (("id", uuid.uuid4().hex[:12]), ("url", url)):
                file.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            for name in ("paid", "next", "seen"):
                file.execute("INSERT OR IGNORE INTO counts VALUES (?, 0)", (name,))

    @property
    def id(self) -> str:
        """What tells this ledger from one that another machine, or another day, has begun."""
        row = self._database.one("SELECT value FROM facts WHERE name = 'id'")
        assert row is not None
        return str(row[0])

    @property
    def total(self) -> int:
        """Queries counted by all processes since the ledger began."""
        return self._count("paid")

    def reserve(self, queries: int, *, budget: int | None, rps: float | None) -> float:
        """Count `queries` about to be sent, and return the seconds to wait before that.

        Requests are given turns `rps` a second over all processes, behind any pause.

        Raises:
            BudgetSpentError: they would exceed `budget`; nothing is counted then.
        """
        with self._database.transaction() as file:
            counts = dict(file.execute("SELECT name, value FROM counts").fetchall())
            paid = int(counts["paid"])
            if budget is not None and paid + queries > budget:
                raise BudgetSpentError(f"{paid:,} of {budget:,} queries are spent")
            now = time.time()
            # A clock that was set back would have everybody wait for its old time.
            turn = max(now, counts["next"] - max(0.0, counts["seen"] - now))
            following = turn + 1 / rps if rps else turn
            changes = {"paid": paid + queries, "next": following, "seen": now}
            for name, value in changes.items():
                file.execute("UPDATE counts SET value = ? WHERE name = ?", (value, name))
            self.paid += queries
        return float(turn - now)

    def refund(self, queries: int) -> None:
        """Take back `queries` of which not a byte was sent."""
        with self._database.transaction() as file:
            file.execute("UPDATE counts SET value = value - ? WHERE name = 'paid'", (queries,))
            self.paid -= queries

    def pause(self, seconds: float) -> None:
        """Let every process wait `seconds` before it sends again."""
        until = time.time() + min(seconds, LONGEST_WAIT_S)
        with self._database.transaction() as file:
            file.execute(
                "UPDATE counts SET value = max(value, ?) WHERE name = 'next'",
                (until,),
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _count(self, name: str) -> int:
        row = self._database.one("SELECT value FROM counts WHERE name = ?", name)
        assert row is not None
        return int(row[0])


class Answers:
    """Arrays by content key; a damaged one counts as absent."""

    def __init__(self, path: Path) -> None:
        self._database = _Database(
            path,
            """
            CREATE TABLE IF NOT EXISTS answers
            (key BLOB PRIMARY KEY, kind TEXT NOT NULL, columns INTEGER NOT NULL,
             content BLOB NOT NULL, sha256 BLOB NOT NULL);
            """,
        )

    def get(self, key: bytes) -> np.ndarray | None:
        """Return the answer kept under `key`: float64 [N, K] or int64 [N]."""
        return _unpack(self._database.one(_SELECT, key))

    def keep(self, key: bytes, values: np.ndarray) -> np.ndarray:
        """Keep `values`, float64 [N, K] or int64 [N], and return what is kept: the first stays.

        So processes that asked the same at the same time go on with the same answer.
        """
        kind, columns = ("q", 0) if values.ndim == 1 else ("d", values.shape[1])
        if kind == "d" and _fits_single(values):
            kind = "f"  # half the size: most servers compute in single precision
        content = np.ascontiguousarray(values, _KINDS[kind]).tobytes()
        with self._database.transaction() as file:
            kept = _unpack(file.execute(_SELECT, (key,)).fetchone())
            if kept is not None:
                return kept
            file.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
                (key, kind, columns, content, sha256(content).digest()),
            )
        return values

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _unpack(row: tuple[Any, ...] | None) -> np.ndarray | None:
    """Return the array of a row of the table, or None where it is absent or damaged."""
    if row is None:
        return None
    kind, columns, content, checksum = row
    if sha256(content).digest() != checksum:
        return None
    values: np.ndarray = np.frombuffer(content, _KINDS[kind])
    return values.astype(np.float64).reshape(-1, columns) if columns else values.astype(np.int64)


def _fits_single(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values, values.astype(np.float32), equal_nan=True))
