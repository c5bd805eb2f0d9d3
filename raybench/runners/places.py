"""The places for workers: which are free, and which were filled in vain too often.

    places = Places(2, max_failed_starts=3)
    slot = places.take()                          # a worker is started there
    places.worked(slot)                           # it finished a task
    closed = places.empty(slot, Loss.ALIVE)       # it is gone; the place is free again, or closed

Nothing here knows what a worker is or which task it holds.
"""

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["MAX_LOSSES", "Loss", "Places"]

MAX_LOSSES = 8
"""Workers that one slot may lose in a row, without a finished task, before it is closed."""


class Loss(Enum):
    """How a slot lost its worker, as far as that speaks against the slot.

    AT_START: it was never ready. ALIVE: it died later. TOLD: it was told to end while it had
    something to do. EXCUSED: by no fault of the slot.
    """

    AT_START = auto()
    ALIVE = auto()
    TOLD = auto()
    EXCUSED = auto()


@dataclass(slots=True, kw_only=True)
class _Slot:
    """A place for one worker at a time, and how often it was filled in vain."""

    failed_starts: int = 0
    losses: int = 0
    told: int = 0


class Places:
    """`count` slots; one with `max_failed_starts` failures in a row, or MAX_LOSSES, closes."""

    def __init__(self, count: int, *, max_failed_starts: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._free = list(range(count))[::-1]
        self._max_failed_starts = max_failed_starts
        self._any_ready = False
        self.num_open = count

    @property
    def count(self) -> int:
        """All slots, closed ones included."""
        return len(self._slots)

    @property
    def any_ready(self) -> bool:
        """Whether any worker was ever ready."""
        return self._any_ready

    @property
    def any_free(self) -> bool:
        """Whether a worker could be started somewhere."""
        return bool(self._free)

    @property
    def hopeless(self) -> bool:
        """Whether no slot is open, or each slot failed to start before any worker was ready."""
        if not self.num_open:
            return True
        failed = [slot.failed_starts for slot in self._slots]
        return not self._any_ready and all(failed) and sum(failed) >= self._max_failed_starts

    def widen(self, count: int) -> None:
        """Have `count` slots where there were fewer."""
        more = range(len(self._slots), count)
        self._slots += [_Slot() for _ in more]
        self._free[:0] = reversed(more)
        self.num_open += len(more)

    def take(self) -> int:
        """Return a free slot, now taken."""
        return self._free.pop()

    def ready(self, slot: int) -> None:
        """Take note that the worker in `slot` is ready."""
        self._any_ready = True
        self._slots[slot].failed_starts = 0

    def worked(self, slot: int) -> None:
        """Take note that the worker in `slot` finished a task."""
        self._slots[slot].losses = self._slots[slot].told = 0

    def empty(self, slot: int, loss: Loss) -> bool:
        """Free `slot`, whose worker is gone; return whether it closes instead."""
        known = self._slots[slot]
        known.failed_starts += loss is Loss.AT_START
        known.losses += loss is Loss.ALIVE
        # Being told to end says nothing of the slot, unless nothing ever gets done there.
        known.told += loss is Loss.TOLD
        closes = (
            known.failed_starts >= self._max_failed_starts
            or known.losses >= MAX_LOSSES
            or known.told >= MAX_LOSSES
        )
        if closes:
            self.num_open -= 1
        else:
            self._free.append(slot)
        return closes
