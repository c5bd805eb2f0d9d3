"""A worker that misbehaves on chosen shards, importable by Ray's worker processes."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from raybench.core.work import Receipt, Task


@dataclass(frozen=True)
class FaultyWorker:
    """Logs each call as a line 'shard resident pid' in its folder, then behaves as told."""

    folder: str
    raises: frozenset[int] = frozenset()
    raises_once: frozenset[int] = frozenset()
    dies: frozenset[int] = frozenset()
    dies_once: frozenset[int] = frozenset()
    exits_once: frozenset[int] = frozenset()
    seconds: float = 0.0

    def __call__(self, task: Task) -> Receipt:
        line = f"{task.shard} {task.resident} {os.getpid()}\n".encode()
        log = os.open(Path(self.folder, "calls"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, line)
        os.close(log)
        time.sleep(self.seconds)
        once = self._first_time(task)
        if task.shard in self.dies or (once and task.shard in self.dies_once):
            os.kill(os.getpid(), signal.SIGKILL)
        if once and task.shard in self.exits_once:
            os._exit(1)
        if task.shard in self.raises or (once and task.shard in self.raises_once):
            raise ArithmeticError(f"shard {task.shard} is poison")
        return Receipt(
            task=task,
            file=f"{task.shard}.parquet",
            sha256="0" * 64,
            size=1,
            rows=1,
            errors=0,
            queries=0,
            seconds=0.0,
        )

    def _first_time(self, task: Task) -> bool:
        try:
            Path(self.folder, f"seen-{task.measurement}-{task.shard}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class ThreadsWorker(FaultyWorker):
    """Answers with the number of threads that numeric libraries were told to use."""

    def __call__(self, task: Task) -> Receipt:
        return replace(super().__call__(task), file=os.environ["OMP_NUM_THREADS"])


@dataclass(frozen=True)
class TimedWorker(FaultyWorker):
    """Says how long it takes, so that the driver learns.

    Shards from 100 on take no time; those in `waits` wait until another has begun elsewhere.
    """

    waits: frozenset[int] = frozenset()

    def __call__(self, task: Task) -> Receipt:
        quick = replace(self, seconds=0.0) if task.shard >= 100 else self
        begun = time.monotonic()
        receipt = FaultyWorker.__call__(quick, task)
        while task.shard in self.waits and len({pid for _, _, pid in calls(Path(self.folder))}) < 2:
            time.sleep(0.05)
        return replace(receipt, seconds=time.monotonic() - begun)


class MeasuredWorker(FaultyWorker):
    """Answers with round figures."""

    def __call__(self, task: Task) -> Receipt:
        figures = {"rows": 10, "errors": 1, "queries": 1000, "seconds": 2.0, "model_seconds": 1.5}
        return replace(super().__call__(task), **figures)


def make_none() -> FaultyWorker:
    raise LookupError("no weights under that name")


def make_slowly(folder: str, seconds: float) -> FaultyWorker:
    """Take a while the first time, and say which process does, in ``made``."""
    made = Path(folder, "made")
    if not made.exists():
        made.write_text(str(os.getpid()))
        time.sleep(seconds)
    return FaultyWorker(folder)


def make_dead() -> FaultyWorker:
    os._exit(7)


def calls(folder: Path) -> list[tuple[int, str, int]]:
    """Every call made, as (shard, resident, pid), in the order of the log."""
    lines = (folder / "calls").read_text().splitlines()
    return [(int(shard), resident, int(pid)) for shard, resident, pid in map(str.split, lines)]
