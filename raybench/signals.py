"""Being asked to stop: SIGTERM and Ctrl-C as a flag that work polls, or as an exception."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from raybench.core.errors import Interrupted

__all__ = ["StopFlag", "catch_signals"]


@dataclass(slots=True)
class StopFlag:
    """Set by a signal handler, polled by the runners: the exit code asked for, or None."""

    code: int | None = None

    def __call__(self) -> int | None:
        """Return the exit code to stop with, or None to go on."""
        return self.code


@contextmanager
def catch_signals(flag: StopFlag, *, at_once: bool = False) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into `flag` while the block runs; a second one raises Interrupted.

    With `at_once` the first one raises too: right where nothing has to be put in order first.

    Must be entered after Ray has started, because ``ray.init`` puts its own handler for SIGTERM.
    """
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143}

    def handle(number: int, frame: FrameType | None) -> None:
        asked_before = flag.code is not None
        flag.code = codes[signal.Signals(number)]
        if asked_before or at_once:
            raise Interrupted(flag.code)

    try:
        before = {number: signal.signal(number, handle) for number in codes}
    except ValueError:  # not the main thread (a notebook, a server): nobody signals us there
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
