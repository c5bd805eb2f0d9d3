"""What became of the shards of one measurement in one run, counted from the runner's events.

    tally = Tally()
    tally.add(event, now=time.monotonic())
    tally.images_per_second, tally.model_share

Shards that an earlier run computed are not in it.
"""

from dataclasses import dataclass

from raybench.core.work import Event

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counts of shards and images, and the seconds that workers took.

    Attributes:
        done: shards computed.
        failed: given up after their last attempt.
        retried: tried again after an attempt that failed.
        released: put back by a worker that had to leave, which costs no attempt.
        images: rows of those done.
        unscored: of them, error rows.
        queries: images that the model was asked about.
        seconds: of workers, summed, models' loading included.
        model_seconds: of them, in the model's own forward and backward passes.
    """

    done: int = 0
    failed: int = 0
    retried: int = 0
    released: int = 0
    images: int = 0
    unscored: int = 0
    queries: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    _began: float | None = None
    _last: float = 0.0

    def add(self, event: Event, *, now: float) -> None:
        """Count an event that came at `now`, in seconds of any clock that never runs backwards."""
        if event.kind == "started" and self._began is None:
            self._began = now
        self.failed += event.kind == "failed"
        self.retried += event.kind == "retry"
        self.released += event.kind == "released"
        receipt = event.receipt
        if receipt is not None:
            self._last = now
            self.done += 1
            self.images += receipt.rows
            self.unscored += receipt.errors
            self.queries += receipt.queries
            self.seconds += receipt.seconds
            self.model_seconds += receipt.model_seconds

    @property
    def images_per_second(self) -> float:
        """Images done in a second of wall time, from the first start to the last receipt."""
        elapsed = self._last - (self._last if self._began is None else self._began)
        return self.images / elapsed if elapsed > 0 else 0.0

    @property
    def model_share(self) -> float:
        """Share of the workers' time that the model itself took, 0 to 1."""
        return self.model_seconds / self.seconds if self.seconds > 0 else 0.0
