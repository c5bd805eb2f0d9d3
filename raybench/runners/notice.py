"""A worker process that is told to end: finish the task in hand if there is time, else let it go.

    notice = Notice(grace_s=30.0)
    notice.install()                               # in the main thread
    reply = notice.run(worker, task, seconds)      # Reply(receipt), or Reply(Released(...), "...")

SIGTERM is what a container, a spot machine or ``kill`` sends. Python runs its handler between two
instructions of the main thread, so one long call into a library (a forward pass) delays it.

Letting go is an error raised in the task, between any two of its instructions, the commit of its
part included. A part gets its name in one step, so there is a whole one or none; a whole one whose
receipt was lost is found by whoever gets the task next.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from raybench.core.work import Receipt, Released, Spent, Task, Worker
from raybench.runners.inprocess import attempt

__all__ = ["SPARE_S", "Notice", "Reply"]

SPARE_S = 2.0
"""Seconds of the grace that are kept for the answer to get out."""

_AGAIN_S = 0.5  # a release raised where Python drops errors (a destructor) is raised again


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and why its worker leaves after it; empty where it stays."""

    answer: Receipt | Spent | Released | str
    leaving: str = ""


class _LetGoError(BaseException):
    """Unwinds the task in hand; no Exception, so that no kernel takes it for one of its own."""


class Notice:
    """What this process knows of its end."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = max(0.0, grace_s - min(SPARE_S, grace_s / 2))
        self._in_hand = False
        self._started = 0.0
        self._seconds: float | None = None
        self._told: float | None = None
        self._leave: Callable[[int, FrameType | None], object] | None = None

    def install(self) -> None:
        """Take SIGTERM over; the handler of before ends the process when nothing is in hand."""
        before = signal.getsignal(signal.SIGTERM)
        self._leave = before if callable(before) else None
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def run(self, worker: Worker, task: Task, seconds: float | None) -> Reply:
        """Return the answer of `worker` to `task`, which should take `seconds`, if that is known.

        With nothing known the task goes on until the grace is nearly over: it would be lost anyway.
        """
        if self._told is not None:
            return Reply(Released("nothing was begun"), self._why())
        answer: Receipt | Spent | Released | str
        self._started, self._seconds = time.monotonic(), seconds
        self._in_hand = True
        try:
            answer = attempt(worker, task)
        except _LetGoError as reason:
            answer = Released(str(reason))
        finally:
            self._in_hand = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        return Reply(answer, self._why() if self._told is not None else "")

    def _why(self) -> str:
        return f"process {os.getpid()} was told to end (SIGTERM)"

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._told is not None:
            return  # the grace runs since the first
        self._told = time.monotonic()
        if not self._in_hand:
            if self._leave is None:
                raise SystemExit(128 + number)
            self._leave(number, frame)
            return
        left = None if self._seconds is None else self._seconds - (self._told - self._started)
        # At once where it cannot be done, and near the end where the estimate was wrong.
        late = left is not None and left > self._grace_s
        signal.setitimer(
            signal.ITIMER_REAL, _AGAIN_S if late else max(self._grace_s, 1e-3), _AGAIN_S
        )
        if late and _in_task(frame):
            raise _LetGoError(f"it needs {left:.1f} s more, {self._grace_s:.1f} s are left")

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        del number
        if _in_task(frame):
            raise _LetGoError(f"not done after {time.monotonic() - self._started:.1f} s")


def _in_task(frame: FrameType | None) -> bool:
    """Whether a signal came in the midst of a task: raised elsewhere, nobody would catch it.

    A flag would be late by the instructions that set it, before the task and after it.
    """
    while frame is not None:
        if frame.f_code is attempt.__code__:
            return True
        frame = frame.f_back
    return False
