"""Progress on stderr: live bars on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from raybench.core.plan import Measurement
from raybench.core.work import Event

if TYPE_CHECKING:
    from raybench.driver import Display

__all__ = ["make_display"]

_LINE_EVERY_S = 10.0


def make_display(*, quiet: bool = False, bars: bool = True) -> "Display":
    """Return the display that fits where stderr goes.

    `bars` allows one for each measurement; a run with more than a screen holds wants lines.
    """
    if quiet:
        return _Quiet()
    console = Console(stderr=True, highlight=False)
    return _Bars(console) if bars and console.is_terminal else _Lines()


def _label(measurement: Measurement) -> str:
    reading = measurement.evaluation.canonical().partition("?")[0]
    return f"{measurement.model.name} · {reading}"


class _Quiet:
    """Shows nothing at all."""

    def begin(
        self, measurements: Sequence[Measurement], shards: Sequence[int], done: Sequence[int]
    ) -> None:
        del measurements, shards, done

    def event(self, event: Event) -> None:
        del event

    def note(self, text: str) -> None:
        del text

    def end(self) -> None:
        return


class _Bars:
    """One live bar for each measurement with shards, images/s and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._bars: list[TaskID] = []
        self._speed: list[tuple[int, float]] = []

    def begin(
        self, measurements: Sequence[Measurement], shards: Sequence[int], done: Sequence[int]
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        for measurement, total, ready in zip(measurements, shards, done, strict=True):
            bar = self._progress.add_task(
                _label(measurement), total=total, completed=ready, speed=""
            )
            self._bars.append(bar)
            self._speed.append((0, 0.0))
        self._progress.start()

    def event(self, event: Event) -> None:
        if event.receipt is None or self._progress is None:
            if event.kind != "started" and event.text:
                self.note(f"{event.kind}: {event.text}")
            return
        index = event.receipt.task.measurement
        images, seconds = self._speed[index]
        images, seconds = images + event.receipt.rows, seconds + event.receipt.seconds
        self._speed[index] = (images, seconds)
        speed = f"{images / seconds:.1f} images/s a worker" if seconds else ""
        self._progress.update(self._bars[index], advance=1, speed=speed)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class _Lines:
    """A line every ten seconds, and one for everything that goes wrong."""

    def __init__(self) -> None:
        self._labels: list[str] = []
        self._shards: list[int] = []
        self._done: list[int] = []
        self._images = 0
        self._began = self._said = time.monotonic()

    def begin(
        self, measurements: Sequence[Measurement], shards: Sequence[int], done: Sequence[int]
    ) -> None:
        self._labels = [_label(measurement) for measurement in measurements]
        self._shards, self._done = list(shards), list(done)
        self._began = time.monotonic()
        self.note(f"{sum(done)} of {sum(shards)} shards are there")

    def event(self, event: Event) -> None:
        if event.receipt is None:
            if event.kind != "started" and event.text:
                self.note(f"{event.kind}: {event.text}")
            return
        index = event.receipt.task.measurement
        self._done[index] += 1
        self._images += event.receipt.rows
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S or self._done[index] == self._shards[index]:
            self._said = now
            speed = self._images / max(now - self._began, 1e-9)
            left = sum(self._shards) - sum(self._done)
            per_shard = (now - self._began) / max(1, self._images / max(event.receipt.rows, 1))
            self.note(
                f"{self._labels[index]}: {self._done[index]}/{self._shards[index]} shards, "
                f"{speed:.1f} images/s, about {left * per_shard:.0f} s left in all"
            )

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        return
