"""A sign of life of the driver: one small file in the output folder, written every ten seconds.

    with heartbeat(out, run, keys) as beat:
        beat.hear(event)                          # keeps count of what is in flight

``drivers/HOST-PID.json`` is that of one driver, so that several at work on one folder do not write
over each other. It stays when the driver ends, with how it ended, or with the last sign there was;
`signs` reads all of them. The next driver removes those of drivers that are no more.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from raybench.core.errors import Interrupted, StoreError
from raybench.core.keys import slug
from raybench.core.work import Event, Task
from raybench.sinks.mirror import push, store_of
from raybench.sinks.parts import write_atomically

__all__ = ["SILENT_S", "Heartbeat", "Sign", "heartbeat", "signs"]

BEAT_S = 10.0
SILENT_S = 60.0
"""Seconds without a sign after which a driver on another machine counts as dead."""

_FOLDER = "drivers"
_LOG = logging.getLogger("raybench.heartbeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What a driver said of itself last.

    Attributes:
        run: when its run began (UTC, ISO 8601), as in the manifests.
        host, pid, boot: its process; `boot` tells it from a later one of the same number.
        beat: when it said so, in seconds of the epoch.
        state: running, finished, interrupted or failed.
        busy: shards in flight.
        measurements: the keys' first 16 characters, of what it computes.
        error: how it failed.
    """

    run: str
    host: str
    pid: int
    boot: str
    beat: float
    state: str = "running"
    busy: int = 0
    measurements: tuple[str, ...] = ()
    error: str = ""

    def alive(self, now: float) -> bool:
        """Whether the driver is at work at `now`, in seconds of the epoch.

        On its own machine its process is looked for; from others its silence tells.
        """
        if self.state != "running":
            return False
        if self.host == socket.gethostname():
            return _boot(self.pid) == self.boot
        return now - self.beat <= SILENT_S


class Heartbeat:
    """Writes the sign of this process until it ends, from a thread of its own."""

    def __init__(self, out: Path, run: str, keys: Sequence[str]) -> None:
        host, pid = socket.gethostname(), os.getpid()
        self._path = out / _FOLDER / f"{slug(host)}-{pid}.json"
        self._sign = Sign(
            run=run,
            host=host,
            pid=pid,
            boot=_boot(pid),
            beat=0.0,
            measurements=tuple(key[:16] for key in keys),
        )
        self._flying: set[Task] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._mute = False

    def hear(self, event: Event) -> None:
        """Keep count of the shards in flight."""
        if event.task is None:
            return
        if event.kind == "started":
            self._flying.add(event.task)
        else:
            self._flying.discard(event.task)

    def start(self) -> None:
        """Write the first sign, and go on every `BEAT_S` seconds."""
        _forget(self._path.parent.parent)
        self._write(self._sign)
        self._thread.start()

    def stop(self, state: str, error: str = "") -> None:
        """Write the last sign: how the run ended."""
        self._over.set()
        self._thread.join(timeout=1.0)  # who was told to end has seconds
        self._write(replace(self._sign, state=state, error=error))

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._write(replace(self._sign, busy=len(self._flying)))

    def _write(self, sign: Sign) -> None:
        content = {"schema": 1} | asdict(replace(sign, beat=time.time()))
        try:
            write_atomically(self._path, json.dumps(content, indent=1).encode())
            push(self._path)
        except (OSError, StoreError) as error:
            # A run does not end for it: what it computes is worth more, and fails by itself.
            if not self._mute:
                _LOG.warning("no sign of life", extra={"facts": {"error": str(error)}})
            self._mute = True


@contextmanager
def heartbeat(out: Path, run: str, keys: Sequence[str]) -> Iterator[Heartbeat]:
    """Give signs of life while the block runs, and say at its end how it ended."""
    beat = Heartbeat(out, run, keys)
    beat.start()
    try:
        yield beat
    except (Interrupted, KeyboardInterrupt):
        beat.stop("interrupted")
        raise
    except BaseException as error:
        beat.stop("failed", f"{type(error).__name__}: {error}"[:2000])
        raise
    beat.stop("finished")


def signs(out: Path) -> list[Sign]:
    """Return what drivers said of themselves in `out`, the latest first."""
    found = [sign for path in (out / _FOLDER).glob("*.json") if (sign := _read(path)) is not None]
    return sorted(found, key=lambda sign: sign.beat, reverse=True)


def started() -> str:
    """Return now as runs are named by it: UTC, ISO 8601 to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(path: Path) -> Sign | None:
    try:
        content = json.loads(path.read_bytes())
        if content.pop("schema") != 1:
            return None
        return Sign(**content | {"measurements": tuple(content["measurements"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _forget(out: Path) -> None:
    """Remove the signs of drivers that are no more; one that was only silent gives another."""
    store = store_of(out)
    for path in (out / _FOLDER).glob("*.json"):
        sign = _read(path)
        if sign is not None and not sign.alive(time.time()):
            with contextlib.suppress(OSError, StoreError):
                path.unlink()
                if store is not None:
                    store.delete([f"{_FOLDER}/{path.name}"])


def _boot(pid: int) -> str:
    """Return what tells process `pid` from another one of that number; "" where there is none."""
    try:
        # Field 22 of proc_pid_stat(5): when it started, in ticks since the machine did. The name
        # before it stands in parentheses and may hold anything.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if stat[0] == "Z" else stat[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "running"
    return "running"
