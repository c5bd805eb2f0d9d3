"""What passes between the driver, a runner and a worker: tasks down, receipts up, never rows.

A runner knows nothing of models or files: it is given tasks and a picklable factory that makes a
worker (a callable ``Task -> Receipt``), and returns an `Outcome`. A worker commits its shard
before it answers, so a lost answer loses nothing: the driver finds the part on disk.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from raybench.core.errors import InputError

__all__ = [
    "Event",
    "Outcome",
    "Receipt",
    "Released",
    "Resources",
    "Runner",
    "Spent",
    "Task",
    "Worker",
]


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One shard of one measurement.

    Attributes:
        measurement: its index in the plan.
        shard: index of the shard.
        resident: names the model a worker must hold to run it.
        shard_size: images in a shard of this measurement; 0 is the plan's. Stored parts keep the
            size they were cut by, whatever a later run asks for.
    """

    measurement: int
    shard: int
    resident: str
    shard_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a task's part is committed.

    Attributes:
        task: the task.
        file: part file name inside the measurement's folder.
        sha256: hex digest of the file's bytes.
        size: bytes of the file.
        rows: rows in it (one for each sample id of the shard, error rows included).
        errors: how many of them could not be scored.
        queries: images the model was asked about (0 where the part was already there).
        seconds: wall time the worker spent computing (0 where the part was already there).
        paid: images sent to a model that is paid for by the query, tries that failed included; the
            rest was in its cache. None for a model that costs nothing to ask.
        model_seconds: part of `seconds` in the model's own forward and backward passes (on CUDA:
            of the device, by its own clock).
    """

    task: Task
    file: str
    sha256: str
    size: int
    rows: int
    errors: int
    queries: int
    seconds: float
    paid: int | None = None
    model_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Released:
    """The answer of a worker that must leave before its task is done: why, on one line."""

    text: str


@dataclass(frozen=True, slots=True)
class Spent:
    """A worker's answer where its model's query budget ended the task: the error, on one line."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a run may take, and when it gives up.

    Attributes:
        actors: worker processes; None means one for each available core (or GPU), those of nodes
            that join later included.
        cpus_per_actor: cores reserved, and torch threads used, by each worker.
        gpus_per_actor: GPUs reserved by each worker; fractions share a device.
        max_attempts: tries for each task before it is reported as failed.
        no_progress_s: seconds without any finished task, after which the run gives up.
        grace_s: seconds that a worker process has left when it is told to end (SIGTERM).
        address: Ray address to join; None joins a running cluster or starts a local one.
    """

    actors: int | None = None
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    max_attempts: int = 3
    no_progress_s: float = 900.0
    grace_s: float = 30.0
    address: str | None = None

    def __post_init__(self) -> None:
        rules = (
            (self.actors is None or self.actors >= 1, "actors", "at least 1, or None for auto"),
            (self.cpus_per_actor > 0, "cpus_per_actor", "above 0"),
            (self.gpus_per_actor >= 0, "gpus_per_actor", "at least 0"),
            (self.max_attempts >= 1, "max_attempts", "at least 1"),
            (self.no_progress_s > 0, "no_progress_s", "above 0"),
            (self.grace_s >= 0, "grace_s", "at least 0"),
        )
        for holds, name, rule in rules:
            if not holds:
                raise InputError(f"{name} must be {rule}, found {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a listener may show.

    ``kind`` is started, done, retry, failed, released (put back, no attempt charged), spent,
    worker-lost, worker-left (it was told to end) or note.

    `receipt` is set for ``done``; `text` explains every other kind. `worker` is the number of the
    worker concerned, where there is one.
    """

    kind: str
    task: Task | None = None
    receipt: Receipt | None = None
    text: str = ""
    worker: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run achieved: receipts by task, and for each failed task its last error.

    `gave_up` is the reason a run ended early (no progress, no worker could be made), else None.
    `spent` holds the tasks that were dropped, most of them untried, since the query budget of
    their model is spent, each with the error that said so.
    """

    receipts: dict[Task, Receipt] = field(default_factory=dict)
    failures: dict[Task, str] = field(default_factory=dict)
    gave_up: str | None = None
    spent: dict[Task, str] = field(default_factory=dict)


class Worker(Protocol):
    """Computes and commits one task; called by one runner, one task at a time."""

    def __call__(self, task: Task) -> Receipt:
        """Return the receipt of `task`, committed."""
        ...


class Runner(Protocol):
    """Runs every task somewhere. `stop` is polled; a non-None exit code raises Interrupted.

    `more` is asked for further tasks, none of them seen before, whenever none is left undecided;
    it is given the outcome so far. The run is over when it has none. Workers are kept in between.
    """

    def __call__(
        self,
        make_worker: Callable[[], Worker],
        tasks: Iterable[Task],
        resources: Resources,
        *,
        listener: Callable[[Event], None],
        stop: Callable[[], int | None],
        more: Callable[[Outcome], Iterable[Task]] | None = None,
    ) -> Outcome:
        """Return what was achieved; task failures are in the outcome, never raised."""
        ...
