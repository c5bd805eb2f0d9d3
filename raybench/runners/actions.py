"""What `Dispatch` has a runner do, in the order given."""

from dataclasses import dataclass

from raybench.core.work import Event, Task

__all__ = ["Action", "Start", "Stop", "Submit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Make a worker and call it `worker`; the number is never used again."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Give `task` to `worker`, which is ready and has none; it should take `seconds`, if known."""

    worker: int
    task: Task
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End `worker`, whatever it does; the policy knows it no more."""

    worker: int


Action = Start | Submit | Stop | Event
